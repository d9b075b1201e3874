"""Crops by number."""

import pickle

import numpy as np
import pytest

from esrgan_deploy.training.data import Crops, batches, gather


@pytest.fixture
def pairs(photographs, cache):
    return gather([photographs], (), cache=cache, scale=4, least=8, say=print)


def _crops(pairs, **options):
    wanted = {"scale": 4, "crop": 8, "seed": 1, "augment": True} | options
    return Crops(pairs, **wanted)


def test_a_crop_depends_on_the_seed_and_its_number_only(pairs):
    """Otherwise a resumed training, or two processes, would see other data."""
    one, other = _crops(pairs), pickle.loads(pickle.dumps(_crops(pairs)))
    for number in (0, 7, 123456):
        other[3]
        for a, b in zip(one[number][:2], other[number][:2], strict=True):
            assert (a == b).all()
    assert not (one[0][0] == one[1][0]).all()
    assert not (one[0][0] == _crops(pairs, seed=2)[0][0]).all()


def test_lr_and_hr_lie_on_each_other_flipped_and_turned(pairs):
    """A turn of one of the two only would teach nothing but a blur."""
    crops = _crops(pairs)
    for number in range(64):
        lr, hr, _ = crops[number]
        assert lr.shape == (3, 8, 8)
        assert hr.shape == (3, 32, 32)
        shrunk = hr.float().reshape(3, 8, 4, 8, 4).mean((2, 4))
        right = (shrunk - lr.float()).abs().mean()
        assert all(
            right <= (wrong - lr.float()).abs().mean()
            for wrong in (shrunk.flip(1), shrunk.flip(2), shrunk.rot90(1, (1, 2)), shrunk.rot90(2, (1, 2)))
        )


def test_crops_come_in_all_eight_positions(pairs):
    """A picture is as good mirrored and turned, and eight times as much to learn from."""
    plain, turned = _crops(pairs, augment=False), _crops(pairs)
    seen = set()
    for number in range(80):
        base, now = plain[number][0].numpy(), turned[number][0].numpy()
        for position in range(8):
            moved = np.rot90(base, position % 4, (1, 2))
            moved = moved[:, :, ::-1] if position >= 4 else moved
            if (moved == now).all():
                seen.add(position)
    assert seen == set(range(8))


def test_every_place_is_as_likely_whatever_the_size_of_its_picture(pairs):
    """By picture, a thumbnail would be learnt by heart."""
    crops = _crops(pairs)
    counts = {pair.source: 0 for pair in pairs}
    for number in range(3000):
        counts[crops.source(number)] += 1
    area = sum(pair.size[0] * pair.size[1] for pair in pairs)
    for pair in pairs:
        share = pair.size[0] * pair.size[1] / area
        assert abs(counts[pair.source] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


def test_the_most_detailed_of_some_places_is_taken(pairs):
    """Sky teaches little; the file that an error message names is the crop's all the same."""

    def detail(crops):
        steps = [crops[number][0].float().diff(dim=1).abs().mean() for number in range(100)]
        return float(sum(steps) / 100)

    assert detail(_crops(pairs, detail=4)) > 1.2 * detail(_crops(pairs))


def test_processes_and_parts_share_out_each_step():
    """The union over processes and parts is what one process takes at once, step by step."""
    alone = list(batches(start=2, steps=5, batch=8, parts=1, process=0, processes=1))
    assert alone[0] == list(range(16, 24))
    shared = [
        list(batches(start=2, steps=5, batch=8, parts=2, process=process, processes=2)) for process in (0, 1)
    ]
    for step in range(3):
        seen = [n for process in shared for part in process[2 * step : 2 * step + 2] for n in part]
        assert sorted(seen) == alone[step]
