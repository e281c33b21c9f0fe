"""PSNR, SSIM and mask metrics against torchmetrics and by hand, and for trivial edits and masks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_jaccard_index, binary_recall
from torchmetrics.functional.image import structural_similarity_index_measure

from eval import EvalError
from eval.regions import (
    PSNR_CAP,
    background_ssim,
    cells,
    grow,
    mask_area_ratio,
    mask_iou_source,
    mask_iou_union,
    mask_recall,
    outside,
    pixels,
    psnr,
    ssim_image,
)  # fmt: skip


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def box(rows: slice, columns: slice) -> Tensor:
    region = torch.zeros(2, 24, 32, dtype=torch.bool)
    region[:, rows, columns] = True
    return region


FRAMES, OTHER = noise(0, 2, 3, 24, 32), noise(1, 2, 3, 24, 32)


@pytest.mark.parametrize("count", [2, 40])  # more than are computed at once
def test_psnr_over_a_region_by_hand(count: int) -> None:
    frames, other = noise(0, count, 3, 24, 32), noise(1, count, 3, 24, 32)
    region = noise(2, count, 24, 32) > 0
    inside = region[:, None].expand(-1, 3, -1, -1)
    mean = (frames[inside].double() - other[inside].double()).square().mean().item()
    assert psnr(frames, other, region) == pytest.approx(10 * math.log10(4 / mean), abs=1e-5)


def test_equal_clips_reach_the_cap_and_nothing_passes_it() -> None:
    everywhere = box(slice(None), slice(None))
    assert psnr(FRAMES, FRAMES, everywhere) == psnr(FRAMES.double(), FRAMES.double() + 1e-9, everywhere) == PSNR_CAP
    assert psnr(FRAMES, OTHER, box(slice(0), slice(0))) is None


def test_background_is_what_lies_beyond_the_guard_band() -> None:
    old = box(slice(8, 14), slice(8, 16))
    near, far = (torch.where(grow(old, reach)[:, None], OTHER, FRAMES) for reach in (3, 4))
    assert psnr(near, FRAMES, outside(old)) == PSNR_CAP
    assert (psnr(far, FRAMES, outside(old)) or 0) < 40


@pytest.mark.parametrize(
    "measure",
    [
        lambda: psnr(FRAMES, OTHER[:1], box(slice(8), slice(8))),
        lambda: psnr(FRAMES, OTHER, torch.ones(2, 24, 32)),
        lambda: background_ssim(FRAMES, OTHER, box(slice(8), slice(8))[:1]),
        lambda: cells(OLD, 4, 5),
        lambda: mask_recall(OLD[:1], OLD),
        lambda: mask_iou_union(torch.zeros(2, 4, 6, dtype=torch.bool), OLD, NEW),
    ],
)
def test_refuses_shapes_and_types_that_do_not_fit(measure: Callable[[], float | None]) -> None:
    with pytest.raises(EvalError):
        measure()


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


def random_mask(seed: int, *shape: int, share: float = 0.5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


OLD, NEW = random_mask(0, 3, 16, 24, share=0.2), random_mask(1, 3, 16, 24, share=0.2)
NOTHING, EVERYTHING = torch.zeros(3, 16, 24, dtype=torch.bool), torch.ones(3, 16, 24, dtype=torch.bool)


def test_recall_and_iou_are_those_of_torchmetrics() -> None:
    mask, binary = random_mask(2, 3, 16, 24), random_mask(3, 3, 4, 6)
    truth = torch.nn.functional.avg_pool2d((OLD | NEW).double(), 4) >= 0.3
    assert mask_recall(mask, OLD) == pytest.approx(binary_recall(mask.int(), OLD.int()).item())
    assert mask_iou_union(binary, OLD, NEW) == pytest.approx(binary_jaccard_index(binary.int(), truth.int()).item())
    assert mask_iou_source(mask, OLD) == pytest.approx(binary_jaccard_index(mask.int(), OLD.int()).item())


def test_trivial_masks() -> None:
    union = OLD | NEW
    assert (mask_area_ratio(NOTHING, OLD, NEW), mask_recall(NOTHING, OLD)) == (0, 0)
    assert (mask_area_ratio(union, OLD, NEW), mask_recall(union, OLD)) == (1, 1)
    full = mask_area_ratio(EVERYTHING, OLD, NEW)
    assert mask_recall(EVERYTHING, OLD) == 1 and full is not None and full > 2.5
    assert mask_iou_union(cells(union, 4, 6), OLD, NEW) == 1
    none = torch.zeros(3, 4, 6, dtype=torch.bool)
    assert mask_iou_union(none, OLD, NEW) == 0 and mask_iou_union(none, NOTHING, NOTHING) is None
    assert mask_area_ratio(OLD, NOTHING, NOTHING) is None and mask_recall(OLD, NOTHING) is None


def test_a_cell_needs_thirty_percent_and_no_more() -> None:
    region = torch.zeros(1, 10, 20, dtype=torch.bool)
    region[0, :3, :10] = True  # exactly 30 of 100 pixels
    region[0, 0, 10:] = region[0, 1, 10:] = region[0, 2, 10:19] = True  # 29 of 100
    assert cells(region, 1, 2).tolist() == [[[True, False]]]


def test_cells_and_pixels_are_inverse_on_whole_cells() -> None:
    mask = random_mask(5, 3, 4, 6)
    assert torch.equal(cells(pixels(mask, 16, 24), 4, 6), mask)
    assert pixels(mask, 16, 24)[1, 7, 13] == mask[1, 1, 3]
