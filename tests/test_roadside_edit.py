"""The main job on the drawn world's backbone, as a person would look at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tave.api import edit_clip
from tave.cli import compose_options
from tave.config import PACKAGE
from tave.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BARS = {
    "background_psnr_outside_mask": 40,  # dB: the background is the source's
    "mask_recall": 0.9,
    "object_presence": 0.9,
    "judge_color_accuracy": 0.95,  # it is red
    "judge_vehicle_accuracy": 0.85,  # and an SUV
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bus_to_suv")
    options = compose_options("train", ["video=bus_to_suv", f"cache={folder / 'cache'}"])
    return train(options, folder / "run", show=False)


@pytest.mark.parametrize("name", list(BARS))
def test_the_edit_shows_a_red_suv_on_the_sources_background(run: Path, name: str) -> None:
    assert json.loads((run / "metrics.json").read_text())["edits"]["suv"][name] >= BARS[name]


def test_a_second_edit_neither_tunes_nor_inverts(run: Path) -> None:
    stamps = {name: (run / name).stat().st_mtime_ns for name in ("tuned.safetensors", "trajectory.safetensors")}
    image = PACKAGE / "roadside/clips/car_to_van/target.png"
    made = edit_clip(run, image, "a blue van driving right on a mountain road", show=False)
    assert stamps == {name: (run / name).stat().st_mtime_ns for name in stamps}
    assert "background_psnr_outside_mask" in made.figures
