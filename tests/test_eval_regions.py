"""Mask metrics against torchmetrics and by hand, and for trivial masks: nothing, everything, the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_jaccard_index, binary_recall

from eval.records import EvalError
from eval.regions import cells, mask_area_ratio, mask_iou_source, mask_iou_union, mask_recall, pixels


def random_mask(seed: int, *shape: int, share: float = 0.5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


OLD, NEW = random_mask(0, 3, 16, 24, share=0.2), random_mask(1, 3, 16, 24, share=0.2)
NOTHING, EVERYTHING = torch.zeros(3, 16, 24, dtype=torch.bool), torch.ones(3, 16, 24, dtype=torch.bool)


def test_recall_is_torchmetrics_recall() -> None:
    mask = random_mask(2, 3, 16, 24)
    assert mask_recall(mask, OLD) == pytest.approx(binary_recall(mask.int(), OLD.int()).item())


def test_iou_is_torchmetrics_jaccard_over_cells() -> None:
    binary = random_mask(3, 3, 4, 6)
    truth = torch.nn.functional.avg_pool2d((OLD | NEW).double(), 4) >= 0.3
    expected = binary_jaccard_index(binary.int(), truth.int()).item()
    assert mask_iou_union(binary, OLD, NEW) == pytest.approx(expected)


def test_iou_with_the_source_object_is_torchmetrics_jaccard() -> None:
    mask = random_mask(4, 3, 16, 24)
    assert mask_iou_source(mask, OLD) == pytest.approx(binary_jaccard_index(mask.int(), OLD.int()).item())
    assert mask_iou_source(mask, mask) == 1 and mask_iou_source(NOTHING, NOTHING) is None


def test_trivial_masks() -> None:
    union = OLD | NEW
    assert (mask_area_ratio(NOTHING, OLD, NEW), mask_recall(NOTHING, OLD)) == (0, 0)
    assert (mask_area_ratio(union, OLD, NEW), mask_recall(union, OLD)) == (1, 1)
    full = mask_area_ratio(EVERYTHING, OLD, NEW)
    assert mask_recall(EVERYTHING, OLD) == 1 and full is not None and full > 2.5
    assert mask_iou_union(cells(union, 4, 6), OLD, NEW) == 1
    assert mask_iou_union(torch.zeros(3, 4, 6, dtype=torch.bool), OLD, NEW) == 0


def test_without_any_object_there_is_no_figure() -> None:
    none = torch.zeros(3, 4, 6, dtype=torch.bool)
    assert mask_area_ratio(OLD, NOTHING, NOTHING) is None
    assert mask_recall(OLD, NOTHING) is None
    assert mask_iou_union(none, NOTHING, NOTHING) is None


def test_a_cell_needs_thirty_percent_and_no_more() -> None:
    region = torch.zeros(1, 10, 20, dtype=torch.bool)
    region[0, :3, :10] = True  # exactly 30 of 100 pixels
    region[0, 0, 10:] = region[0, 1, 10:] = region[0, 2, 10:19] = True  # 29 of 100
    assert cells(region, 1, 2).tolist() == [[[True, False]]]


def test_cells_and_pixels_are_inverse_on_whole_cells() -> None:
    mask = random_mask(5, 3, 4, 6)
    assert torch.equal(cells(pixels(mask, 16, 24), 4, 6), mask)
    assert pixels(mask, 16, 24)[1, 7, 13] == mask[1, 1, 3]


def test_refuses_grids_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(EvalError, match="24x16 picture can't be cut into 5x4"):
        cells(OLD, 4, 5)
    with pytest.raises(EvalError, match="24x16 picture can't be cut into 7x4"):
        pixels(torch.zeros(3, 4, 7, dtype=torch.bool), 16, 24)
    with pytest.raises(EvalError, match="source_mask"):
        mask_recall(OLD[:1], OLD)
    with pytest.raises(EvalError, match="binary"):
        mask_iou_union(torch.zeros(2, 4, 6, dtype=torch.bool), OLD, NEW)
