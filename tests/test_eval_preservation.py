"""PSNR against torchmetrics and by hand; an untouched background is perfect, and a large mask earns nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from eval.metric import MetricError
from eval.preservation import (
    PSNR_CAP,
    BackgroundPsnr,
    BackgroundSsim,
    background_psnr,
    background_psnr_outside_mask,
    background_ssim,
    grow,
    psnr,
    ssim_image,
)


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


def test_psnr_in_signed_range_is_that_of_bytes() -> None:
    one_level_off = (FRAMES * 127.5).round() / 127.5 + 1 / 127.5
    expected = 10 * math.log10(255**2)
    assert psnr((FRAMES * 127.5).round() / 127.5, one_level_off) == pytest.approx(expected, abs=1e-3)


def test_equal_clips_reach_the_cap_and_nothing_passes_it() -> None:
    assert psnr(FRAMES, FRAMES) == PSNR_CAP
    assert psnr(FRAMES.double(), FRAMES.double() + 1e-9) == PSNR_CAP


def test_an_empty_region_has_no_figure() -> None:
    assert psnr(FRAMES, OTHER, torch.zeros(2, 24, 32, dtype=torch.bool)) is None


def test_only_pixels_with_alpha_exactly_zero_are_outside_the_mask() -> None:
    alpha = torch.zeros(2, 24, 32, dtype=torch.uint8)
    alpha[:, 4:12, 4:12], alpha[:, 4:12, 12] = 255, 1
    edited = torch.where(alpha[:, None] > 0, OTHER, FRAMES)
    assert background_psnr_outside_mask(edited, FRAMES, alpha) == PSNR_CAP
    edited[0, 0, 0, 0] += 0.5
    expected = 10 * math.log10(4 / (0.25 / (3 * int((alpha == 0).sum()))))
    assert background_psnr_outside_mask(edited, FRAMES, alpha) == pytest.approx(expected, abs=1e-4)


def test_background_counts_what_lies_beyond_the_guard_band() -> None:
    old, new = box(slice(8, 12), slice(8, 16)), box(slice(8, 14), slice(10, 14))
    near, far = grow(old | new, 3), grow(old | new, 4)
    assert background_psnr(torch.where(near[:, None], OTHER, FRAMES), FRAMES, old, new) == PSNR_CAP
    repainted = background_psnr(torch.where(far[:, None], OTHER, FRAMES), FRAMES, old, new)
    assert repainted is not None and repainted < 40


def test_repainting_more_background_never_helps() -> None:
    old = box(slice(10, 14), slice(10, 14))
    scores = []
    for reach in (4, 6, 8, 10):
        mask = grow(old, reach)
        scores.append(background_psnr(torch.where(mask[:, None], OTHER, FRAMES), FRAMES, old, old))
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4


def test_grow_reaches_diagonally_and_stops_at_the_border() -> None:
    point = box(slice(1, 2), slice(1, 2))
    assert torch.equal(grow(point, 3), box(slice(0, 5), slice(0, 5)))
    assert torch.equal(grow(point, 0), point)


def test_refuses_clips_that_do_not_match() -> None:
    with pytest.raises(MetricError, match=r"frames \(2, 3, 24, 32\), reference \(1, 3, 24, 32\)"):
        psnr(FRAMES, OTHER[:1])
    with pytest.raises(MetricError, match="bool"):
        psnr(FRAMES, OTHER, torch.ones(2, 24, 32))
    with pytest.raises(MetricError, match="region"):
        psnr(FRAMES, OTHER, torch.ones(2, 24, 16, dtype=torch.bool))


def test_ssim_over_everything_is_torchmetrics_ssim() -> None:
    everywhere = torch.ones(2, 24, 32, dtype=torch.bool)
    one, other = ((clip.double() + 1) / 2 for clip in (FRAMES, OTHER))
    _, expected = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    assert expected.std() > 0.1
    assert torch.allclose(torch.stack(list(map(ssim_image, one, other))), expected, rtol=0, atol=1e-12)
    assert background_ssim(FRAMES, OTHER, everywhere) == pytest.approx(expected.mean().item(), abs=1e-12)
    assert background_ssim(FRAMES, FRAMES, everywhere) == pytest.approx(1)


def test_ssim_of_one_pixel_written_out() -> None:
    region = box(slice(2, 13), slice(5, 16))  # holds one whole window, around (7, 10), in each frame
    steps = torch.arange(-5, 6).double()
    bell = torch.exp(-steps.square() / (2 * 1.5**2))
    weights = bell[:, None] * bell / (bell[:, None] * bell).sum()
    values = []
    for frame in range(2):
        for channel in range(3):
            x, y = ((clip[frame, channel, 2:13, 5:16].double() + 1) / 2 for clip in (FRAMES, OTHER))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * x * x).sum() - mx**2, (weights * y * y).sum() - my**2
            covariance = (weights * x * y).sum() - mx * my
            top = (2 * mx * my + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    assert background_ssim(FRAMES, OTHER, region) == pytest.approx(sum(map(float, values)) / 6, abs=1e-5)


def test_ssim_neither_sees_the_edit_nor_a_blanked_area() -> None:
    region = ~box(slice(8, 14), slice(8, 14))
    assert background_ssim(torch.where(region[:, None], FRAMES, OTHER), FRAMES, region) == pytest.approx(1)
    assert background_ssim(FRAMES, OTHER, box(slice(0, 6), slice(8, 12))) is None
    with pytest.raises(MetricError, match="region"):
        background_ssim(FRAMES, OTHER, region[:1])


def test_metrics_average_the_figures_of_clips() -> None:
    old = box(slice(10, 12), slice(10, 12))
    metric = BackgroundPsnr()
    for edited in (FRAMES, OTHER):
        metric.update(edited, FRAMES, old, old)
    assert metric.compute().item() == pytest.approx((PSNR_CAP + (background_psnr(OTHER, FRAMES, old, old) or 0)) / 2)
    assert BackgroundPsnr.higher_is_better and BackgroundSsim.higher_is_better
