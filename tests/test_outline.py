"""The outline of the source object: from a region that is a cell too wide, or half missed, to the pixels of its colours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tave.masking import EditMask, MaskOptions, redrawn
from tave.outline import outline

F, CELLS, CELL = 6, 24, 4
SIDE = CELLS * CELL


def drive(cell: int = CELL) -> tuple[Tensor, Tensor]:
    """A red block with a blue stripe drives before sky and ground with some texture: frames, and its pixels `f 1 H W`."""
    side = CELLS * cell
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(-0.5, 0.5, side)[:, None].expand(side, side)
    back = torch.stack([rows * 0.4, rows + 0.2, 0.6 - rows]) + 0.05 * torch.randn(3, side, side, generator=generator)
    frames, truth = back.repeat(F, 1, 1, 1), torch.zeros(F, 1, side, side)
    for index in range(F):
        top, left = 10 * cell + 1, (3 + index) * cell + 2
        block = (slice(None), slice(top, top + 7 * cell + 1), slice(left, left + 11 * cell + 1))
        frames[index][block] = torch.tensor([0.8, -0.8, -0.7]).view(3, 1, 1)
        frames[index, :, top + 2 * cell : top + 4 * cell, left : left + 11 * cell + 1] = torch.tensor([-0.8, -0.5, 0.9]).view(
            3, 1, 1
        )
        truth[index][block] = 1
    return frames.clamp(-1, 1), truth


def region_of(truth: Tensor, grow: int = 0) -> Tensor:
    cells = torch.nn.functional.max_pool2d(truth, truth.shape[-1] // CELLS)
    return torch.nn.functional.max_pool2d(cells, 2 * grow + 1, 1, grow)[:, 0]


def iou(a: Tensor, b: Tensor) -> float:
    one, other = a > 0.5, b > 0.5
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("grow", [0, 1])
def test_a_region_that_is_too_wide_shrinks_to_the_object(grow: int):
    frames, truth = drive()
    region = region_of(truth, grow)
    found = outline(frames, region)
    assert found is not None and found.shape == truth.shape
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert iou(found, truth) > 0.95 > 0.85 > iou(region[:, None].repeat_interleave(CELL, 2).repeat_interleave(CELL, 3), truth)


def test_what_the_region_missed_comes_back():
    frames, truth = drive()
    region = region_of(truth)
    region[:, 12:14, 6:12] = 0  # a hole
    region[2] = torch.nn.functional.pad(region[2], (-1, 1))  # one frame's region lags by a cell
    found = outline(frames, region)
    assert found is not None and iou(found, truth) > 0.95


def test_large_clips_are_looked_at_in_fewer_pixels():
    frames, truth = drive(8)
    found = outline(frames, region_of(truth, 1))
    assert found is not None and found.shape == truth.shape and iou(found, truth) > 0.9


def test_what_colours_cannot_tell_has_no_outline():
    frames, truth = drive()
    assert outline(frames, torch.zeros(F, CELLS, CELLS)) is None and outline(frames, torch.ones(F, CELLS, CELLS)) is None
    most, ground = torch.zeros(F, CELLS, CELLS), torch.zeros(F, CELLS, CELLS)
    most[:, 2:22, 1:23] = 1  # most of the frame, in which the object is the odd thing
    ground[:, 18:22, 4:20] = 1  # a piece of ground like that around it
    assert outline(frames, most) is None and outline(frames, ground) is None
    noise = 0.01 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    assert outline(noise, region_of(truth, 1)) is None


def test_a_frame_whose_outline_is_lost_keeps_its_region():
    frames, truth = drive()
    frames[3] = frames[3, :, :1, :1]  # a frame of one colour
    region = region_of(truth)
    found = outline(frames, region)
    assert found is not None and iou(found[[0, 1, 2, 4, 5]], truth[[0, 1, 2, 4, 5]]) > 0.95
    assert torch.equal(found[3, 0], region[3].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1))


def test_it_is_the_same_each_time():
    frames, truth = drive()
    one, again = (outline(frames, region_of(truth, 1)) for _ in range(2))
    assert one is not None and again is not None and torch.equal(one, again)


def test_objects_too_small_for_a_cell_leave_the_region_that_was_found():
    old = torch.ones(1, F, 1, CELLS, CELLS)
    found = EditMask(old, old, old, torch.zeros(0, F, CELLS, CELLS))
    speck = torch.zeros(F, 1, SIDE, SIDE)
    speck[:, :, 8, 8] = 1
    made = redrawn(found, speck, speck, MaskOptions())
    assert torch.equal(made.mask, old) and torch.equal(made.binary, old) and made.outline is speck


def test_the_region_is_drawn_anew_around_both_objects():
    _, truth = drive()
    target = torch.zeros_like(truth)
    target[:, :, 80:88, 40:60] = 0.9
    target[:, :, 4:5, 4:8] = 1  # a quarter of a cell: too little
    old = torch.zeros(1, F, 1, CELLS, CELLS)
    old[:, :, :, :2] = 1
    found = EditMask(old, old, old, torch.zeros(0, F, CELLS, CELLS))
    made = redrawn(found, truth, target, MaskOptions(dilate=1))
    binary = made.binary[0, :, 0]
    assert (binary[:, 20:22, 10:15] == 1).all() and binary[:, 1, 1].sum() == 0 and binary[:, :2].sum() == 0
    share = torch.nn.functional.avg_pool2d(torch.maximum(truth, (target > 0.5).float()), CELL)[:, 0]
    assert torch.equal(binary, (share >= 0.3).float())
    assert torch.equal(made.mask[0, :, 0], torch.nn.functional.max_pool2d(binary[:, None], 3, 1, 1)[:, 0])
    assert made.outline is not None and torch.equal(made.outline, truth) and made.soft is found.soft
