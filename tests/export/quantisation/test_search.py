"""What stays in half precision is chosen by measurements that are right, few, and never lost."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from esrgan_deploy import ModelSpec
from esrgan_deploy._errors import ExportError
from esrgan_deploy._metrics import luma
from esrgan_deploy.export.graphs import Recipe, storable, weight_steps
from esrgan_deploy.export.nets import RRDBNet, SRVGGNetCompact, layers, output_of
from esrgan_deploy.export.quantisation import Simulation
from esrgan_deploy.export.quantisation.search import (
    HeldLoss,
    Loss,
    Point,
    SearchOptions,
    frontier,
    search,
    table,
)
from esrgan_deploy.export.quantisation.search._ledger import Ledger, digest_of
from esrgan_deploy.export.quantisation.search._loss import tensor_of
from esrgan_deploy.export.quantisation.search._sensitivity import sensitivities

COMPACT = ModelSpec(
    architecture="srvggnetcompact", scale=2, in_channels=3, out_channels=3, features=8, blocks=3, growth=0,
    source_sha256="0" * 64,
)  # fmt: skip

# By convolution, a channel that it reads and the convolutions whose first channel makes it.
SPOILED = {
    "body.0.rdb2.conv5": (8, ["body.0.rdb2.conv1"]),
    "conv_up1": (0, ["conv_first", *(f"body.0.rdb{i}.conv5" for i in (1, 2, 3)), "conv_body"]),
}


class _Case:
    """A random net, pictures whose truth is its own output with noise on it, and a recipe of plain maxima."""

    def __init__(self, spec, *, kind="int8", spoil="", side=16):
        torch.manual_seed(3)
        make = RRDBNet if spec.architecture == "rrdbnet" else SRVGGNetCompact
        self.spec, self.layers, self.module = spec, layers(spec), make(spec).eval().requires_grad_(False)
        self.kind = kind
        self._prepare(spoil)
        random = np.random.default_rng(5)
        pictures = [random.integers(0, 256, (1, side, side + 4, 3), np.uint8) for _ in range(3)]
        self.outputs = [self.module(tensor_of(picture)) for picture in pictures]
        self.pairs = []
        for picture, out in zip(pictures, self.outputs, strict=True):
            levels = out.clamp(0, 1).mul(255).permute(0, 2, 3, 1).numpy()
            seen = np.clip(np.rint(levels + random.normal(0, 2, levels.shape)), 0, 255).astype(np.uint8)
            self.pairs.append((picture, seen))
        self.held = HeldLoss(self.pairs, self.outputs)
        self.recipe = self._recipe()

    def _prepare(self, spoil):
        """Give every layer a part in the output, and the output the range of a picture."""
        for layer in self.layers:
            self.module.get_submodule(layer.name).weight.mul_(2.4)
        if spoil:
            # One weight of each row takes the whole range, on a channel that is always 0, and the others round away.
            channel, makers = SPOILED[spoil]
            for maker in map(self.module.get_submodule, makers):
                maker.weight[0], maker.bias[0] = 0, 0
            weight = self.module.get_submodule(spoil).weight
            weight[:, channel, 1, 1] = 400 * weight.abs().amax()
        last = self.module.get_submodule(self.layers[-1].name)
        out = self.module(torch.rand(1, 3, 32, 32))
        last.weight.mul_(0.15 / out.std())
        last.bias.copy_((last.bias - out.mean()) * 0.15 / out.std() + 0.5)

    def _recipe(self):
        largest = {}
        for layer in self.layers:

            def seen(conv, given, made, group=layer.group):
                largest[group] = max(largest.get(group, 0.0), float(given[0].abs().max()))

            self.module.get_submodule(layer.name).register_forward_hook(seen)
        for picture, _ in self.pairs:
            self.module(tensor_of(picture))
        for layer in self.layers:
            self.module.get_submodule(layer.name)._forward_hooks.clear()
        top = {"int8": 127.0, "fp8": 448.0}[self.kind]
        return Recipe(
            formats={layer.name: self.kind for layer in self.layers if layer.place not in ("first", "last")},
            activations={group: float(storable(np.array(value / top))) for group, value in largest.items()},
            weights={
                layer.name: weight_steps(
                    self.module.get_submodule(layer.name).weight.numpy(), layer, self.kind, per_channel=True
                )
                for layer in self.layers
            },
        )

    def simulation(self):
        return Simulation(self.module, self.layers, self.recipe)

    def search(self, *, state=None, say=lambda line: None, progress=lambda made: None, **options):
        simulation, heard = self.simulation(), {"state": state, "say": say, "progress": progress}
        try:
            return search(simulation, self.layers, self.spec, self.held, SearchOptions(**options), **heard)
        finally:
            simulation.detach()

    def loss_of(self, names):
        """The held loss of these convolutions quantised, by nothing but the module."""
        simulation = self.simulation()
        with simulation.using(names):
            loss = self.held(simulation)
        simulation.detach()
        return loss


@pytest.fixture(scope="module", params=["rrdbnet", "srvggnetcompact"])
def case(request, rrdb_spec):
    return _Case(rrdb_spec(blocks=1) if request.param == "rrdbnet" else COMPACT)


@pytest.fixture(scope="module")
def rrdb(rrdb_spec):
    return _Case(rrdb_spec(blocks=1))


@pytest.mark.parametrize(
    "fields",
    [{}, {"scale": 2, "unshuffle": 2}, {"scale": 3, "blocks": 1}, {"scale": 1, "unshuffle": 4}, None],
)
def test_the_stages_compute_what_the_module_does(rrdb_spec, fields):
    """A residual left out between two stages, and every sensitivity is of another net."""
    spec = COMPACT if fields is None else rrdb_spec(**fields)
    module = (SRVGGNetCompact if fields is None else RRDBNet)(spec).eval()
    picture = torch.rand(2, 3, 16, 12)
    pieces = module.stages()
    units = [piece.unit for piece in pieces if piece.unit]
    assert units == list(dict.fromkeys(layer.unit for layer in layers(spec)))
    with torch.inference_mode():
        assert torch.equal(output_of(pieces, module.start(picture)), module(picture))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("architecture", ["rrdbnet", "srvggnetcompact"])
def test_a_sensitivity_from_a_cached_prefix_is_that_of_the_whole_net(rrdb_spec, architecture, kind):
    """A stale prefix, or a unit measured with another one on, ranks the wrong layers."""
    case = _Case(rrdb_spec(blocks=2) if architecture == "rrdbnet" else COMPACT, kind=kind)
    simulation = case.simulation()
    before = case.held(simulation)
    found = sensitivities(simulation, case.layers, case.spec, case.held)
    assert case.held(simulation) == before
    simulation.detach()
    # Smaller than a crop, the pictures are measured whole.
    assert (found.crops, found.pixels) == (3, 3 * 16 * 20)
    assert [one.name for one in found.convolutions] == list(case.recipe.formats)
    for one in (*found.units, *found.convolutions):
        expected = case.loss_of(one.names)
        assert one.loss.noise == pytest.approx(expected.noise, rel=1e-6), one.name
        assert one.loss.loss == pytest.approx(expected.loss, abs=1e-6), one.name
        assert one.loss.fidelity == expected.fidelity, one.name
    macs = {layer.name: layer.macs for layer in case.layers}
    assert all(one.macs == sum(macs[name] for name in one.names) for one in found.units)
    assert len({one.loss.noise for one in found.units}) == len(found.units)


def test_sensitivities_are_measured_on_as_many_pixels_as_can_be_afforded(rrdb_spec):
    """A deep net measured on whole pictures takes hours, a shallow one on two crops is measured badly."""
    case = _Case(rrdb_spec(blocks=1), side=96)
    simulation = case.simulation()
    few = sensitivities(simulation, case.layers, case.spec, case.held, flops=1.0)
    assert (few.crops, few.pixels) == (2, 2048)
    many = sensitivities(simulation, case.layers, case.spec, case.held, flops=1e12)
    assert many.crops == 3
    assert 6000 < many.pixels <= 8192
    # Fewer pixels, about the same noise: the crops are of the same pictures.
    for one, other in zip(few.units, many.units, strict=True):
        assert 0.5 < one.loss.noise / other.loss.noise < 2


@pytest.mark.slow
def test_the_answer_holds_the_budget_when_measured_afresh(case):
    """A result that was measured with other convolutions on than it names would pass the gate and lose more."""
    everything = case.loss_of(case.recipe.formats).loss
    shares = []
    for part in (1.01, 0.7, 0.5, 0.35):
        budget = everything * part
        result = case.search(budget=budget)
        loss = case.loss_of(result.chosen.names)
        assert loss == result.chosen.loss
        assert loss.loss <= budget
        assert result.chosen in result.points
        inside = sum(layer.macs for layer in case.layers if layer.name in result.chosen.names)
        assert result.chosen.share == pytest.approx(inside / sum(layer.macs for layer in case.layers))
        shares.append(result.chosen.share)
    # A tighter budget quantises no more than a looser one; the loosest everything.
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert shares[0] == max(point.share for point in result.points)


def test_what_still_fits_is_quantised_again(case):
    """Bisection alone leaves a cheap layer in fp16 because a costly one came behind it in the order."""
    everything = case.loss_of(case.recipe.formats).loss
    result = case.search(budget=everything * 0.5)
    left = [unit for unit in result.sensitivities.units if not set(unit.names) & set(result.chosen.names)]
    assert left
    for unit in left:
        assert case.loss_of({*result.chosen.names, *unit.names}).loss > everything * 0.5, unit.name


def test_the_floor_to_the_fp32_picture_holds_beside_a_budget(rrdb_spec):
    """Against the truth errors cancel, and a picture far from that of the fp32 net would pass."""
    case = _Case(rrdb_spec(blocks=1))
    whole = case.loss_of(case.recipe.formats)
    result = case.search(budget=10.0, floor=whole.fidelity + 1)
    assert case.loss_of(result.chosen.names).fidelity >= whole.fidelity + 1


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_spoiled_layer_is_the_first_to_return(rrdb_spec, spoiled):
    """The order is what the search stands on: the one layer that does the harm has to lead it."""
    case = _Case(rrdb_spec(blocks=1), spoil=spoiled)
    everything = case.loss_of(case.recipe.formats).loss
    result = case.search(budget=everything / 2)
    unit = next(layer.unit for layer in case.layers if layer.name == spoiled)
    assert result.order[0] == unit
    assert spoiled not in result.chosen.names
    worst = max(result.sensitivities.convolutions, key=lambda one: one.harm)
    assert worst.name == spoiled


def test_a_block_that_alone_is_over_the_budget_keeps_what_fits_of_it(rrdb_spec):
    """One bad convolution of five would cost the other four their int8."""
    case = _Case(rrdb_spec(blocks=1), spoil="body.0.rdb2.conv5")
    alone = case.loss_of([f"body.0.rdb2.conv{i}" for i in range(1, 6)]).loss
    result = case.search(budget=alone / 2, evaluations=40)
    kept = {name for name in result.chosen.names if name.startswith("body.0.rdb2.")}
    assert kept == {f"body.0.rdb2.conv{i}" for i in (1, 2, 3, 4)}


def test_nothing_within_the_budget_is_an_error_that_names_the_smallest_loss(case):
    """A graph that quantises nothing, sold as int8, is the failure this search is for."""
    with pytest.raises(ExportError) as caught:
        case.search(budget=-50.0)
    message = str(caught.value)
    assert "\n" not in message
    assert "budget of -50 dB" in message
    named = float(message.split("smallest loss seen is ")[1].split(" dB")[0])
    assert named < case.loss_of(case.recipe.formats).loss
    empty = Simulation(case.module, case.layers, case.recipe.only([]))
    with pytest.raises(ExportError, match="quantises no convolution"):
        search(empty, case.layers, case.spec, case.held)
    empty.detach()


@pytest.fixture(scope="module")
def whole(rrdb):
    """A search that nothing interrupted, its budget and the numbers of its measurements."""
    budget, counts = rrdb.loss_of(rrdb.recipe.formats).loss / 2, []
    return rrdb.search(budget=budget, progress=counts.append), budget, counts


@pytest.mark.parametrize("stop", [3, 21, 25])
def test_an_interrupted_search_goes_on_where_it_was(rrdb, whole, tmp_path, stop):
    """Ten minutes of measurements lost to one Ctrl-C, or another answer after it."""
    state, (whole, budget, counts) = tmp_path / "search.json", whole
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > 25

    def interrupt(made):
        if made == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rrdb.search(budget=budget, state=state, progress=interrupt)
    assert len(json.loads(state.read_text())["measured"]) == stop
    later, lines = [], []
    assert rrdb.search(budget=budget, state=state, progress=later.append, say=lines.append) == whole
    assert len(later) == len(counts) - stop
    assert f"goes on after {stop} measurements" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]
    # Measurements do not depend on the budget, so another one takes them up as well.
    again = []
    rrdb.search(budget=budget * 4, state=state, progress=again.append)
    assert len(again) < len(counts) - len(whole.sensitivities.convolutions)


def test_a_search_that_cannot_keep_its_state_ends_all_the_same(tmp_path):
    """Where the cache cannot be written, minutes of measurements would be lost for the chance to go on with them."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    case, lines = _Case(COMPACT), []
    kept = case.search(budget=10.0, state=tmp_path / "cache" / "search.json", say=lines.append)
    assert kept == case.search(budget=10.0)
    assert sum("cannot be written" in line for line in lines) == 1


def test_a_state_of_other_weights_scales_or_pictures_is_not_believed(tmp_path):
    """Yesterday's sensitivities of another checkpoint would choose today's layers."""
    state, case = tmp_path / "search.json", _Case(COMPACT)
    first, lines = case.search(budget=10.0, state=state), []
    kept = state.read_text()

    def made():
        lines.clear()
        counts = []
        case.search(budget=10.0, state=state, say=lines.append, progress=counts.append)
        state.write_text(kept)
        return len(counts)

    assert made() == 0
    everything = len(json.loads(kept)["measured"])
    case.module.body[2].bias[0] += 0.01
    assert made() == everything
    assert "other weights, scales or pictures" in lines[0]
    case.module.body[2].bias[0] -= 0.01
    recipe = case.recipe
    case.recipe = Recipe(
        formats=recipe.formats,
        activations={**recipe.activations, "body.2": 2 * recipe.activations["body.2"]},
        weights=recipe.weights,
    )
    assert made() == everything
    case.recipe = recipe
    held = case.held
    case.held = HeldLoss(case.pairs[:2], case.outputs[:2])
    assert made() == everything
    case.held = held
    for broken in ("", "{", "[]", '{"schema": 1}', kept.replace('"noise"', '"nose"'), kept[:-20]):
        state.write_text(broken)
        lines.clear()
        assert case.search(budget=10.0, state=state, say=lines.append) == first
        assert "starts anew" in lines[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LaterRecipe(Recipe):
    later: dict


def test_all_that_a_recipe_holds_decides_whose_a_state_is():
    """A field that a later version adds changes what is computed, and old measurements would pass for its own."""
    case = _Case(COMPACT)
    fields = {field.name: getattr(case.recipe, field.name) for field in dataclasses.fields(Recipe)}
    digests = set()
    for later in ({}, {"body.2": (1,)}, {"body.2": (2,)}, {"body.4": (1,)}):
        case.recipe = _LaterRecipe(**fields, later=later)
        simulation = case.simulation()
        digests.add(digest_of(simulation, case.held, {}))
        assert digest_of(simulation, case.held, {}) in digests
        simulation.detach()
    assert len(digests) == 4


@pytest.mark.slow
def test_a_deep_net_is_searched_in_a_bounded_number_of_runs(rrdb_spec, tmp_path):
    """One run of a deep net takes seconds: a walk over its units one by one, many minutes."""
    case = _Case(rrdb_spec(blocks=6, features=4, growth=2), side=8)
    budget = case.loss_of(case.recipe.formats).loss * 0.4
    result = case.search(budget=budget, evaluations=14, points=4, state=tmp_path / "search.json")
    assert len(result.sensitivities.units) == 22
    assert len(result.points) <= 14
    assert case.loss_of(result.chosen.names).loss <= budget
    shares = [point.share for point in result.points]
    assert 0 < result.chosen.share < shares[-1]
    # Bisecting 22 units takes five runs after the first; with nothing to spend, nothing follows.
    short = case.search(budget=budget, evaluations=1, points=0, state=tmp_path / "search.json")
    assert len(short.points) <= 6
    assert case.loss_of(short.chosen.names).loss <= budget
    assert short.chosen.share <= result.chosen.share
    # The frontier is shown on both sides of the answer.
    assert max(b - a for a, b in zip([0, *shares], shares, strict=False)) < 0.35


def test_the_ledger_keeps_an_infinity(tmp_path):
    """A convolution whose rounding does not show is equal to fp32, and JSON has no infinity."""
    case = _Case(COMPACT)
    loss = case.held(case.module)
    assert (loss.loss, loss.fidelity, loss.worst, loss.shift, loss.noise) == (
        0.0,
        math.inf,
        math.inf,
        0.0,
        0.0,
    )
    Ledger(tmp_path / "l.json", "d").measured("whole", ["b", "a"], lambda: loss)
    json.loads((tmp_path / "l.json").read_text(), parse_constant=pytest.fail)
    assert Ledger(tmp_path / "l.json", "d").measured("whole", ["a", "b"], pytest.fail) == loss


def test_the_loss_is_that_of_the_papers(rrdb):
    """PSNR-Y without its border, on 8-bit pictures, and above 0 where it is worse."""

    def worse(picture):
        return rrdb.module(picture) + 0.02 * torch.sin(torch.arange(64.0).repeat(2)[: 4 * picture.shape[3]])

    loss, expected, squares, noise = rrdb.held(worse), [], [], []
    tiles, errors = [], []
    for (picture, truth), out in zip(rrdb.pairs, rrdb.outputs, strict=True):
        made = worse(tensor_of(picture))
        noise.append(float((made - out).square().mean()))
        levels = [np.rint(one.clamp(0, 1).numpy()[0].transpose(1, 2, 0) * 255) for one in (made, out)]
        squares.append(np.mean((levels[0] - levels[1]) ** 2))
        errors.append((levels[0] - levels[1]).reshape(-1, 3))
        tiles += [np.mean((levels[0] - levels[1])[:, left : left + 64] ** 2) for left in (0, 64)]
        y = [luma(one)[4:-4, 4:-4] for one in (truth[0], *levels)]
        expected.append([10 * np.log10(255**2 / np.mean((y[0] - one) ** 2)) for one in y[1:]])
    means = np.mean(expected, axis=0)
    assert loss.psnr_y == pytest.approx(means[0], abs=1e-3)
    assert rrdb.held.psnr_y == pytest.approx(means[1], abs=1e-3)
    assert loss.loss == pytest.approx(means[1] - means[0], abs=1e-3)
    assert loss.loss > 0.1
    assert loss.fidelity == pytest.approx(10 * np.log10(255**2 / np.mean(squares)), abs=1e-3)
    assert loss.noise == pytest.approx(np.mean(noise), rel=1e-4)
    # 64x80 pixels have two tiles.
    assert loss.worst == pytest.approx(10 * np.log10(255**2 / max(tiles)), abs=1e-3)
    assert loss.worst < loss.fidelity
    assert loss.shift == pytest.approx(np.abs(np.concatenate(errors).mean(0)).max(), abs=1e-3)
    assert loss.shift > 0.01


def test_grey_pictures_are_judged_by_their_only_channel():
    """A net of one channel has no BT.601 luma, and its studio range would shift every figure."""
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    truth = np.clip(picture.astype(int) + 2, 0, 255).astype(np.uint8)
    held = HeldLoss.of_net([(picture, truth)], lambda x: x)
    error = np.mean((truth[0, 1:-1, 1:-1].astype(float) - picture[0, 1:-1, 1:-1]) ** 2)
    assert held.psnr_y == pytest.approx(10 * np.log10(255**2 / error))


def test_a_flat_picture_does_not_make_the_loss_infinite():
    """The PSNR of a picture that is reproduced exactly is infinite, and infinity less infinity is no budget."""
    flat = np.full((1, 8, 8, 3), 7, np.uint8)
    other = np.full((1, 8, 8, 3), 9, np.uint8)
    held = HeldLoss.of_net([(flat, flat), (flat, other)], lambda x: x)
    assert math.isfinite(held.psnr_y)
    assert held(lambda x: x).loss == 0
    assert held(lambda x: x + 3 / 255).loss > 0


def test_held_pictures_that_cannot_judge_are_refused():
    """No picture, half a truth, a truth of another size, a NaN: each would end in a figure that means nothing."""
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ExportError, match="no picture is held back"):
        HeldLoss([], [])
    with pytest.raises(ExportError, match="1 of 2 held pictures"):
        HeldLoss.of_net([(picture, picture), (picture, None)], lambda x: x)
    with pytest.raises(ExportError, match=r"becomes \(8, 8\), and its truth is \(8, 9\)"):
        HeldLoss.of_net([(picture, np.zeros((1, 8, 9, 3), np.uint8))], lambda x: x)
    held = HeldLoss.of_net([(picture, picture)], lambda x: x)
    for bad in (math.nan, math.inf):
        with pytest.raises(ExportError, match="NaN or an infinity"):
            held(lambda x, bad=bad: x + bad)


def _point(share, loss, fidelity, convolutions=1):
    psnr = None if loss is None else 30 - loss
    names = tuple(f"c{i}" for i in range(convolutions))
    return Point(
        names=names,
        share=share,
        loss=Loss(psnr_y=psnr, loss=loss, fidelity=fidelity, worst=fidelity, shift=0.0, noise=1e-5 * share),
    )


POINTS = (
    _point(0.25, -0.004, 56.0, 5),
    _point(0.5, 0.02, 50.0, 10),
    _point(0.5, 0.03, 49.0, 11),
    _point(0.987, 0.194, 41.25, 34),
)


def test_the_frontier_leaves_out_only_what_another_point_beats():
    """A point that quantises less and loses more is no choice, and one that is best in anything is."""
    assert frontier(POINTS[::-1]) == (POINTS[0], POINTS[1], POINTS[3])
    # Better for one measure and worse for the other: both stand.
    torn = (_point(0.5, 0.02, 50.0), _point(0.5, 0.01, 49.0))
    assert set(frontier(torn)) == set(torn)
    assert frontier((POINTS[0], POINTS[0])) == (POINTS[0],)
    blind = (_point(0.3, None, 50.0), _point(0.4, None, 51.0), _point(0.5, None, 45.0))
    assert frontier(blind) == blind[1:]


def test_the_table_of_points_is_aligned_and_says_what_was_measured():
    """A figure in the wrong column, or an invented one where nothing was measured."""
    lines = table(POINTS, chosen=POINTS[1]).splitlines()
    assert len({len(line.removesuffix("  *")) for line in lines}) == 1
    assert [line.split() for line in lines[1:]] == [
        ["25.0%", "5", "-0.004", "56.0"],
        ["50.0%", "10", "+0.020", "50.0", "*"],
        ["50.0%", "11", "+0.030", "49.0"],
        ["98.7%", "34", "+0.194", "41.2"],
    ]
    assert table([_point(0.1, None, math.inf)]).splitlines()[1].split() == ["10.0%", "1", "-", "equal"]
