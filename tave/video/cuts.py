"""Cuts in a clip: frames that show another shot than the one before."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

_GRID = (18, 32)  # a frame as so many cells
# Measured on footage and drawn clips, joined pairwise. Shares of the value range.
_LEAST = 0.05  # mean change of the cells: cuts have 0.07 to 0.3
_JUMP = 2.5  # times the larger of the changes before and after it: motion has up to 1.3, where it is above _LEAST
_HALF = 0.004  # median change of the cells: an object or a caption that appears leaves most cells as they are


def find_cuts(frames: Tensor) -> list[int]:
    """Indices of the first frames of new shots in a clip ``f 3 H W`` in [-1, 1]; hard cuts alone, no fades."""
    if len(frames) < 3:
        return []
    small = torch.cat([adaptive_avg_pool2d(frame[None].float(), _GRID) for frame in frames])
    cells = (small[1:] - small[:-1]).abs().mean(dim=1).flatten(1) / 2
    change, around = cells.mean(dim=1), pad(cells.mean(dim=1), (1, 1))
    beside = torch.maximum(around[:-2], around[2:])
    found = (change > _LEAST) & (change > _JUMP * beside) & (cells.median(dim=1).values > _HALF)
    return [int(index) + 1 for index in found.nonzero()]
