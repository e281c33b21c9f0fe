"""PSNR against torchmetrics and by hand; an untouched background is perfect, and a large mask earns nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from eval.background import (
    PSNR_CAP,
    background_ssim,
    grow,
    outside,
    psnr,
    ssim_image,
)
from eval.records import EvalError


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def box(rows: slice, columns: slice) -> Tensor:
    region = torch.zeros(2, 24, 32, dtype=torch.bool)
    region[:, rows, columns] = True
    return region


FRAMES, OTHER = noise(0, 2, 3, 24, 32), noise(1, 2, 3, 24, 32)


def test_psnr_is_torchmetrics_psnr() -> None:
    expected = peak_signal_noise_ratio(FRAMES, OTHER, data_range=2.0).item()
    assert psnr(FRAMES, OTHER) == pytest.approx(expected, abs=1e-4)


def test_psnr_over_a_region_by_hand() -> None:
    region = noise(2, 2, 24, 32) > 0
    inside = region[:, None].expand(-1, 3, -1, -1)
    mean = (FRAMES[inside].double() - OTHER[inside].double()).square().mean().item()
    assert psnr(FRAMES, OTHER, region) == pytest.approx(10 * math.log10(4 / mean), abs=1e-5)


def test_equal_clips_reach_the_cap_and_nothing_passes_it() -> None:
    assert psnr(FRAMES, FRAMES) == PSNR_CAP
    assert psnr(FRAMES, OTHER, box(slice(0), slice(0))) is None
    assert psnr(FRAMES.double(), FRAMES.double() + 1e-9) == PSNR_CAP


def test_background_is_what_lies_beyond_the_guard_band() -> None:
    old = box(slice(8, 14), slice(8, 16))
    near, far = (torch.where(grow(old, reach)[:, None], OTHER, FRAMES) for reach in (3, 4))
    assert psnr(near, FRAMES, outside(old)) == PSNR_CAP
    assert (psnr(far, FRAMES, outside(old)) or 0) < 40


def test_repainting_more_background_never_helps() -> None:
    old = box(slice(10, 14), slice(10, 14))
    scores = []
    for reach in (4, 6, 8, 10):
        mask = grow(old, reach)
        scores.append(psnr(torch.where(mask[:, None], OTHER, FRAMES), FRAMES, outside(old)))
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4


def test_refuses_clips_that_do_not_match() -> None:
    with pytest.raises(EvalError, match=r"frames \(2, 3, 24, 32\), reference \(1, 3, 24, 32\)"):
        psnr(FRAMES, OTHER[:1])
    with pytest.raises(EvalError, match="bool"):
        psnr(FRAMES, OTHER, torch.ones(2, 24, 32))
    with pytest.raises(EvalError, match="region"):
        psnr(FRAMES, OTHER, torch.ones(2, 24, 16, dtype=torch.bool))


def test_ssim_over_everything_is_torchmetrics_ssim() -> None:
    everywhere = torch.ones(2, 24, 32, dtype=torch.bool)
    one, other = ((clip.double() + 1) / 2 for clip in (FRAMES, OTHER))
    _, expected = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    assert expected.std() > 0.1
    assert torch.allclose(torch.stack(list(map(ssim_image, one, other))), expected, rtol=0, atol=1e-12)
    assert background_ssim(FRAMES, OTHER, everywhere) == pytest.approx(expected.mean().item(), abs=1e-12)
    assert background_ssim(FRAMES, FRAMES, everywhere) == pytest.approx(1)


def test_ssim_neither_sees_the_edit_nor_a_blanked_area() -> None:
    region = ~box(slice(8, 14), slice(8, 14))
    assert background_ssim(torch.where(region[:, None], FRAMES, OTHER), FRAMES, region) == pytest.approx(1)
    assert background_ssim(FRAMES, OTHER, box(slice(0, 6), slice(8, 12))) is None
    with pytest.raises(EvalError, match="region"):
        background_ssim(FRAMES, OTHER, region[:1])
