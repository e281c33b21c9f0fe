"""The judge protocol with an eye that can be predicted: an embedder that sees the mean colour of a crop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval.alignment import object_crops
from eval.judge import Judge, judge_accuracies, load_judge
from eval.records import EvalError

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
CLASSES = {
    "vehicle": {"car": ["a red car", "a green car"], "bus": ["a blue bus"]},
    "color": {"red": ["a red car"], "green": ["a green car"], "blue": ["a blue bus"]},
    "pattern": {"plain": ["a red car", "a blue bus"], "striped": ["a green car"]},
}
TARGET = {"vehicle": "car", "color": "red", "pattern": "plain", "accent": "white", "place": "city"}


class ColourEye:
    """Sees the mean colour of a picture, and of a caption the colour that it names."""

    id, size, fit = "colour-eye@0", 8, "stretch"

    def images(self, pictures: Tensor) -> Tensor:
        assert pictures.shape[1:] == (3, self.size, self.size)
        return normalize(pictures.mean(dim=(2, 3)), dim=1)

    def texts(self, captions: Sequence[str]) -> Tensor:
        return normalize(torch.tensor([COLOURS[caption.split()[1]] for caption in captions]), dim=1)


def painted(*names: str) -> Tensor:
    """One 16x20 frame a colour."""
    return torch.tensor([COLOURS[name] for name in names])[:, :, None, None].expand(-1, -1, 16, 20)


def everywhere(frames: int) -> Tensor:
    return torch.ones(frames, 16, 20, dtype=torch.bool)


JUDGE = Judge(ColourEye(), CLASSES)


def test_accuracy_stands_between_floor_and_ceiling() -> None:
    colours = {"": ("red", "red", "green", "blue"), "_ceiling": ("red",) * 4, "_floor": ("blue",) * 4}
    clips = {suffix: painted(*names) for suffix, names in colours.items()}
    scores = judge_accuracies(JUDGE, clips, everywhere(4), [1.0] * 4, TARGET)
    assert scores.pop("judge_frames") == 4
    expected = {"vehicle": (0.75, 1, 0), "color": (0.5, 1, 0), "pattern": (0.75, 1, 1)}
    assert scores == {
        f"judge_{kind}_accuracy{suffix}": value
        for kind, values in expected.items()
        for suffix, value in zip(clips, values, strict=True)
    }


def test_frames_with_less_than_half_of_the_target_do_not_count() -> None:
    clips = {"": painted("blue", "red", "red", "blue")}
    region = everywhere(4)
    region[3] = False  # nothing of either object is visible
    scores = judge_accuracies(JUDGE, clips, region, [0.49, 0.5, 1.0, 1.0], TARGET)
    assert scores["judge_frames"] == 2 and scores["judge_color_accuracy"] == 1
    assert judge_accuracies(JUDGE, clips, region, [0.1] * 4, TARGET)["judge_vehicle_accuracy"] is None


def test_the_crop_is_the_box_plus_a_quarter() -> None:
    frames = torch.linspace(-1, 1, 3 * 40 * 60).reshape(1, 3, 40, 60)
    region = torch.zeros(1, 40, 60, dtype=torch.bool)
    region[0, 18, 20] = region[0, 25, 35] = True  # box of 16x8 pixels around (28, 22): a square of 20
    assert torch.equal(object_crops(frames, region, 20), frames[:, :, 12:32, 18:38])


def test_a_crop_that_leaves_the_picture_repeats_its_edge() -> None:
    frames = torch.rand(1, 3, 16, 40) * 2 - 1
    region = torch.zeros(1, 16, 40, dtype=torch.bool)
    region[0, 12:, :32] = True  # the square of 40 leaves the picture at the top, the bottom and the left
    padded = torch.nn.functional.pad(frames, (4, 0, 6, 18), mode="replicate")
    assert torch.equal(object_crops(frames, region, 40), padded[:, :, :, :40])


def test_refuses_what_the_judge_does_not_know() -> None:
    clips = {"": painted("red")}
    with pytest.raises(EvalError, match="target's color 'mauve': it knows red, green, blue"):
        judge_accuracies(JUDGE, clips, everywhere(1), [1.0], {**TARGET, "color": "mauve"})
    with pytest.raises(EvalError, match="every pattern"):
        Judge(ColourEye(), {"vehicle": CLASSES["vehicle"], "color": CLASSES["color"]})


def test_refuses_a_judge_folder_without_sound_classes(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no classes\.json"):
        load_judge(tmp_path)
    for text, reason in (("{", "isn't JSON"), (json.dumps(["car"]), "JSON object")):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(EvalError, match=reason):
            load_judge(tmp_path)
