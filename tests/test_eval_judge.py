"""Alignment and the judge against loops and the library, with an eye that sees the mean colour of a crop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torchmetrics.functional import pairwise_cosine_similarity

from eval import EvalError
from eval.judge import (
    Judge,
    adjacent_consistency,
    frame_accuracy,
    image_alignment,
    judge_accuracies,
    load_judge,
    masked_crops,
    object_crops,
    pairwise_consistency,
    reference_pictures,
    text_alignment,
)  # fmt: skip

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
    colours = {"": ("red", "red", "green", "blue"), "ceiling": ("red",) * 4, "floor": ("blue",) * 4}
    clips = {suffix: painted(*names) for suffix, names in colours.items()}
    frames, scores = judge_accuracies(JUDGE, clips, everywhere(4), [1.0] * 4, TARGET)
    expected = {"vehicle": (0.75, 1, 0), "color": (0.5, 1, 0), "pattern": (0.75, 1, 1)}
    found = {kind: tuple(scores[kind, name] for name in clips) for kind in expected}
    assert frames == 4 and found == expected


def test_frames_with_less_than_half_of_the_target_do_not_count() -> None:
    clips = {"": painted("blue", "red", "red", "blue")}
    region = everywhere(4)
    region[3] = False  # nothing of either object is visible
    frames, scores = judge_accuracies(JUDGE, clips, region, [0.49, 0.5, 1.0, 1.0], TARGET)
    assert frames == 2 and scores["color", ""] == 1
    assert judge_accuracies(JUDGE, clips, region, [0.1] * 4, TARGET)[1]["vehicle", ""] is None


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


def test_refuses_what_the_judge_cannot_name(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="target's color 'mauve'"):
        judge_accuracies(JUDGE, {"": painted("red")}, everywhere(1), [1.0], {**TARGET, "color": "mauve"})
    with pytest.raises(EvalError, match="every pattern"):
        Judge(ColourEye(), {"vehicle": CLASSES["vehicle"], "color": CLASSES["color"]})
    with pytest.raises(EvalError, match="no classes"):
        load_judge(tmp_path)


def unit(seed: int, *shape: int) -> Tensor:
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


FRAMES, CAPTION, OTHER, REFERENCES = unit(0, 5, 16), unit(1, 16), unit(2, 16), unit(3, 2, 16)


def test_alignment_is_the_mean_cosine() -> None:
    expected = sum(float(cosine_similarity(frame, CAPTION, dim=0)) for frame in FRAMES) / 5
    assert text_alignment(FRAMES, CAPTION) == pytest.approx(expected, abs=1e-6)
    expected = pairwise_cosine_similarity(FRAMES, REFERENCES).mean().item()
    assert image_alignment(FRAMES, REFERENCES) == pytest.approx(expected, abs=1e-6)
    assert text_alignment(FRAMES[:0], CAPTION) is None and image_alignment(FRAMES[:0], REFERENCES) is None


def test_frame_accuracy_counts_the_frames_that_are_nearer() -> None:
    assert frame_accuracy(torch.stack([CAPTION, OTHER, CAPTION, CAPTION]), CAPTION, OTHER) == 0.75
    assert frame_accuracy(FRAMES, CAPTION, CAPTION.clone()) is None


def test_consistency_in_both_forms_by_loops() -> None:
    cosine = [[float(cosine_similarity(a, b, dim=0)) for b in FRAMES] for a in FRAMES]
    neighbours = [cosine[i][i + 1] for i in range(4)]
    pairs = [cosine[i][j] for i in range(5) for j in range(5) if i != j]
    assert adjacent_consistency(FRAMES) == pytest.approx(sum(neighbours) / 4, abs=1e-6)
    assert pairwise_consistency(FRAMES) == pytest.approx(sum(pairs) / 20, abs=1e-6)
    frozen = FRAMES[:1].expand(5, -1)
    assert adjacent_consistency(frozen) == pytest.approx(1) and pairwise_consistency(frozen) == pytest.approx(1)
    assert adjacent_consistency(FRAMES[:1]) is None and pairwise_consistency(FRAMES[:1]) is None


def test_a_masked_crop_shows_the_object_alone() -> None:
    frames, region = torch.rand(3, 3, 20, 30) * 2 - 1, torch.zeros(3, 20, 30, dtype=torch.bool)
    region[:2, 8:12, 10:18] = True  # a box of 8x4: squares of 10 pixels around (14, 10); nothing in the last frame
    crops = masked_crops(frames, region, 10)
    expected = torch.zeros(2, 3, 10, 10)
    expected[:, :, 3:7, 1:9] = frames[:2, :, 8:12, 10:18]
    assert torch.allclose(crops, expected, atol=1e-6)
    elsewhere = torch.where(region[:, None], frames, torch.rand_like(frames))
    assert torch.equal(masked_crops(elsewhere, region, 10), crops)


def test_the_target_images_own_background_is_not_compared() -> None:
    rgb, alpha = torch.rand(3, 20, 30) * 2 - 1, torch.zeros(1, 20, 30)
    alpha[:, 8:12, 10:18] = 1
    whole, cut = reference_pictures(rgb, alpha, 10)
    other = torch.where(alpha > 0, rgb, -rgb)
    assert all(torch.equal(a, b) for a, b in zip(reference_pictures(other, alpha, 10), (whole, cut), strict=True))
    assert torch.equal(cut, masked_crops(rgb[None], alpha > 0.5, 10))
    plain, same = reference_pictures(rgb, None, 10)
    assert torch.equal(plain, same) and plain.shape == (1, 3, 10, 10)
    assert torch.equal(*reference_pictures(rgb, torch.zeros(1, 20, 30), 10))
