"""Annotated masks: palette pictures as DAVIS keeps them, brought to the clip's frames and cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval import EvalError
from eval.cases import read_annotations, read_mask
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


def test_every_object_counts_and_masks_get_the_cut_of_the_clip(folder: Path) -> None:
    masks = read_annotations(folder, torch.zeros(6, 3, 24, 40))
    assert masks.dtype == torch.bool and masks.sum(dim=(1, 2)).tolist() == [80] * 6 and masks[3, 8:16, 10:20].all()
    options = ReadOptions(frames=2, start=1, stride=2, width=24, height=24, fit="crop", multiple=8)
    assert torch.equal(read_annotations(folder, torch.zeros(2, 3, 24, 24), options)[1], masks[3, :, 8:32])
    trimmed = read_annotations(folder, torch.zeros(2, 3, 24, 32), ReadOptions(frames=2, multiple=16))
    assert trimmed[0, 8:16, :10].all() and not trimmed[0, :, 10:].any()


def numbered(folder: Path, ids: np.ndarray, palette: list[int] | None) -> Path:
    """``f H W`` object numbers as pictures, in the palette's colours or as grey levels."""
    folder.mkdir()
    for index, picture in enumerate(ids):
        image = Image.fromarray(picture, "P" if palette else "L")
        if palette:
            image.putpalette(palette)
        image.save(folder / f"{index:05d}.png")
    return folder


@pytest.mark.parametrize("palette", [None, [0, 0, 0, 128, 0, 0, 192, 192, 128]], ids=["numbers", "davis"])
def test_a_mask_of_object_numbers_is_not_empty(tmp_path: Path, palette: list[int] | None) -> None:
    ids = np.zeros((2, 16, 24), dtype=np.uint8)
    ids[:, 4:8, 4:8], ids[:, 10:12, 4:8] = 1, 2
    masks = read_mask(numbered(tmp_path / "masks", ids, palette), torch.zeros(2, 3, 16, 24))
    assert torch.equal(masks, torch.from_numpy(ids > 0))


def test_a_grey_mask_ends_where_it_is_half_white(tmp_path: Path) -> None:
    soft = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8), (1, 16, 24))
    masks = read_mask(numbered(tmp_path / "masks", soft.copy(), None), torch.zeros(1, 3, 16, 24))
    assert masks[0].any(dim=0).tolist() == [column >= 13 for column in range(24)]


@pytest.mark.parametrize("read", [read_mask, read_annotations])
def test_masks_that_are_empty_or_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, read: Callable[..., torch.Tensor]
) -> None:
    empty = numbered(tmp_path / "masks", np.zeros((2, 16, 24), dtype=np.uint8), None)
    with pytest.raises(EvalError, match="all 2 masks are empty"):
        read(empty, torch.zeros(2, 3, 16, 24))
    with pytest.raises(EvalError, match="6 masks for a clip of 5 frames of 40x24; give one"):
        read(folder, torch.zeros(5, 3, 24, 40))
