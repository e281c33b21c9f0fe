"""Annotated masks: palette pictures as DAVIS keeps them, brought to the clip's frames and cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_jaccard_index

from eval.annotations import read_annotations, read_mask
from eval.metric import MetricError
from eval.regions import mask_iou_source
from tave.video import ReadOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of 40x24 with object 2 in a dark colour of the palette, moving two pixels a frame."""
    for index in range(6):
        ids = np.zeros((24, 40), dtype=np.uint8)
        ids[8:16, 4 + 2 * index : 14 + 2 * index] = 2
        picture = Image.fromarray(ids, "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 3, 0])
        picture.save(tmp_path / f"{index:05d}.png")
    return tmp_path


def test_every_object_counts_whatever_its_colour(folder: Path) -> None:
    masks = read_annotations(folder, torch.zeros(6, 3, 24, 40))
    assert masks.dtype == torch.bool and masks.sum(dim=(1, 2)).tolist() == [80] * 6
    assert masks[3, 8:16, 10:20].all()


def test_masks_get_the_cut_of_the_clip(folder: Path) -> None:
    options = ReadOptions(frames=2, start=1, stride=2, width=24, height=24, fit="crop", multiple=8)
    masks = read_annotations(folder, torch.zeros(2, 3, 24, 24), options)
    assert torch.equal(masks[1], read_annotations(folder, torch.zeros(6, 3, 24, 40))[3, :, 8:32])
    trimmed = read_annotations(folder, torch.zeros(2, 3, 24, 32), ReadOptions(frames=2, multiple=16))
    assert trimmed[0, 8:16, :10].all() and not trimmed[0, :, 10:].any()


def test_masks_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"6 masks of 40x24 for a clip of 5 frames of 40x24"):
        read_annotations(folder, torch.zeros(5, 3, 24, 40))
    with pytest.raises(MetricError, match="no such folder"):
        read_annotations(tmp_path / "nowhere", torch.zeros(5, 3, 24, 40))
    with pytest.raises(MetricError, match="6 masks of 40x24"):
        read_mask(folder, torch.zeros(6, 3, 24, 24))


def test_iou_with_the_source_object_is_torchmetrics_jaccard() -> None:
    one, other = (torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(s)) < 0.5 for s in (0, 1))
    assert mask_iou_source(one, other) == pytest.approx(binary_jaccard_index(one.int(), other.int()).item())
    assert mask_iou_source(one, one) == 1 and mask_iou_source(one & ~one, one & ~one) is None
