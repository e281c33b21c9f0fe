"""On the Roadside backbone: what a person would see of the main job, and what its clip's second edit costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import tave
from tave.config import CONF, PACKAGE, typed
from tave.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bus_to_suv")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = typed(compose("train", ["+video=bus_to_suv", f"cache={folder / 'cache'}"]))
    return train(options, folder / "run", show=False)


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_the_background_is_the_sources(metrics: dict) -> None:
    assert metrics["edits"]["suv"]["background_psnr_outside_mask"] >= 40


def test_the_mask_covers_the_old_object_and_not_the_picture(metrics: dict) -> None:
    assert metrics["edits"]["suv"]["mask_recall"] >= 0.95
    assert metrics["edits"]["suv"]["mask_area_ratio"] <= 1.6


def test_the_mask_is_drawn_around_the_bus_and_the_suv(run: Path, metrics: dict) -> None:
    told = json.loads((run / "edits/suv/edit.json").read_text())
    assert told["pose"]["height"] < 1  # an SUV is lower than a bus
    with np.load(run / "edits/suv/soft_mask.npz") as stored, np.load(run / "edits/suv/truth/truth.npz") as truth:
        found, bus = stored["outline"] > 0, truth["source_mask"]
    assert (found & bus).sum() >= 0.9 * (found | bus).sum()
    assert metrics["edits"]["suv"]["mask_iou_union"] >= 0.75


def test_the_clip_comes_back_from_its_inversion(metrics: dict) -> None:
    assert metrics["reconstruction_psnr"] >= metrics["autoencoder_psnr"] - 3


def test_it_is_red(metrics: dict) -> None:
    assert metrics["edits"]["suv"]["judge_color_accuracy"] >= 0.95


def test_it_is_an_suv(metrics: dict) -> None:
    assert metrics["edits"]["suv"]["judge_vehicle_accuracy"] >= 0.85


def test_nothing_of_the_bus_is_left(metrics: dict) -> None:
    assert metrics["edits"]["suv"]["residue"] <= 0.05


def test_a_second_edit_neither_tunes_nor_inverts(run: Path) -> None:
    image = PACKAGE / "roadside/clips/car_to_van/target.png"
    made = tave.edit_clip(run, image, "a blue van driving right on a mountain road", show=False)
    assert (made / "edited.mp4").is_file()
    assert "background_psnr_outside_mask" in json.loads((run / "metrics.json").read_text())["edits"][made.name]
