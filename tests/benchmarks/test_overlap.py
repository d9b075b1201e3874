"""The benchmark of the queue measures what it says."""

import json

from esrgan_deploy.benchmarks.overlap import main, stages_per_frame


def test_one_slot_takes_three_stages_and_three_take_far_fewer(tmp_path):
    """If one slot took less than three stages, the session would not sleep and the figure would mean nothing."""
    one = stages_per_frame(slots=1, stage=0.05, frames=6)
    three = stages_per_frame(slots=3, stage=0.05, frames=30)
    assert one >= 3.0
    # Filling the pipeline counts 0.07 of it; half of what one slot takes is far from noise.
    assert three < one / 2


def test_the_command_writes_its_figures(tmp_path):
    """What the table shows has to be there to be compared."""
    status = main(
        [
            "--stage",
            "0.005",
            "--frames",
            "8",
            "--rounds",
            "1",
            "--slots",
            "1",
            "2",
            "--json",
            str(tmp_path / "o.json"),
        ]
    )
    assert status == 0
    data = json.loads((tmp_path / "o.json").read_text())
    assert data["stages_per_frame"]["1"][0] > data["stages_per_frame"]["2"][0]
