"""Masks and maps as frames, and clips side by side as one clip or as one sheet of frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tave.config import choice, within
from tave.video.frames import VideoError


def mask_frames(masks: Tensor) -> Tensor:
    """Masks `f 1 H W` in [0, 1] as grey frames `f 3 H W` in [-1, 1]."""
    return masks.float().clamp(0, 1).mul(2).sub(1).expand(-1, 3, -1, -1)


def shaded(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames `... 3 H W` with everything outside ``mask`` `... 1 H W` dimmed."""
    return torch.where(mask > 0.5, frames, (frames - 1) * 0.75 / 2 - 0.25)


def heat(maps: Tensor) -> Tensor:
    """Maps `... h w` in [0, 1] as a heat map, `... 3 h w` in [-1, 1]: black, red, yellow, white."""
    return torch.stack([(maps * 3 - channel).clamp(0, 1) for channel in range(3)], dim=-3) * 2 - 1


def spread(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count`` frames, evenly spread, with the first and the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def side_by_side(clips: Sequence[Tensor], direction: str = "horizontal") -> Tensor:
    """Join clips `f 3 H W` of one size and length in a row (horizontal) or a column (vertical)."""
    choice("direction", direction, ("horizontal", "vertical"))
    _refuse_mixed("side by side", [tuple(clip.shape) for clip in clips])
    return torch.cat([clip.float().cpu() for clip in clips], dim=3 if direction == "horizontal" else 2)


def contact_sheet(rows: Sequence[Tensor], columns: int = 8, gap: int = 2) -> Tensor:
    """One picture `3 H W` in [-1, 1] with a clip `f 3 H W` in each row and up to ``columns`` of its frames across.

    All frames have one size. The ``gap`` between cells (pixels) and the rest of a short row are white.
    """
    within("columns", columns, 1, 1000)
    _refuse_mixed("contact sheet", [tuple(row.shape[1:]) for row in rows])
    columns = min(columns, max(len(row) for row in rows))
    height, width = rows[0].shape[-2:]
    sheet = torch.ones(3, len(rows) * (height + gap) - gap, columns * (width + gap) - gap)
    for down, row in enumerate(rows):
        for across, index in enumerate(spread(len(row), columns)):
            top, left = down * (height + gap), across * (width + gap)
            sheet[:, top : top + height, left : left + width] = row[index].float().cpu()
    return sheet


def _refuse_mixed(what: str, shapes: list[tuple[int, ...]]) -> None:
    if not shapes or len(set(shapes)) > 1:
        raise VideoError(f"{what}: clips must agree in shape but are {shapes}; bring them to one size and length first")
