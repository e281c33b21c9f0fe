"""Alignment and consistency against loops and the library, and on the clips that need no skill."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torchmetrics.functional import pairwise_cosine_similarity

from eval.alignment import (
    adjacent_consistency,
    frame_accuracy,
    image_alignment,
    masked_crops,
    pairwise_consistency,
    reference_pictures,
    text_alignment,
)


def unit(seed: int, *shape: int) -> Tensor:
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


FRAMES, CAPTION, OTHER, REFERENCES = unit(0, 5, 16), unit(1, 16), unit(2, 16), unit(3, 2, 16)


def test_text_alignment_is_the_mean_cosine() -> None:
    expected = sum(float(cosine_similarity(frame, CAPTION, dim=0)) for frame in FRAMES) / 5
    assert text_alignment(FRAMES, CAPTION) == pytest.approx(expected, abs=1e-6)
    assert text_alignment(CAPTION[None], CAPTION) == pytest.approx(1)
    assert text_alignment(FRAMES[:0], CAPTION) is None


def test_image_alignment_is_the_mean_over_frames_and_references() -> None:
    expected = pairwise_cosine_similarity(FRAMES, REFERENCES).mean().item()
    assert image_alignment(FRAMES, REFERENCES) == pytest.approx(expected, abs=1e-6)
    pasted = REFERENCES[:1].expand(5, -1)
    assert image_alignment(pasted, REFERENCES[:1]) == pytest.approx(1)
    assert image_alignment(FRAMES[:0], REFERENCES) is None


def test_frame_accuracy_counts_the_frames_that_are_nearer() -> None:
    nearer = [
        float(cosine_similarity(frame, CAPTION, dim=0)) > float(cosine_similarity(frame, OTHER, dim=0))
        for frame in FRAMES
    ]
    assert frame_accuracy(FRAMES, CAPTION, OTHER) == pytest.approx(sum(nearer) / 5)
    assert frame_accuracy(CAPTION[None], CAPTION, OTHER) == 1
    assert frame_accuracy(OTHER[None], CAPTION, OTHER) == 0
    assert frame_accuracy(FRAMES, CAPTION, CAPTION.clone()) is None


def test_consistency_in_both_forms_by_loops() -> None:
    cosine = [[float(cosine_similarity(a, b, dim=0)) for b in FRAMES] for a in FRAMES]
    neighbours = [cosine[i][i + 1] for i in range(4)]
    pairs = [cosine[i][j] for i in range(5) for j in range(5) if i != j]
    assert adjacent_consistency(FRAMES) == pytest.approx(sum(neighbours) / 4, abs=1e-6)
    assert pairwise_consistency(FRAMES) == pytest.approx(sum(pairs) / 20, abs=1e-6)


def test_a_frozen_clip_is_consistent_and_a_single_frame_is_nothing() -> None:
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
