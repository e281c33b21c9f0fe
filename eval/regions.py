"""The edit mask against the true regions. Counts are pooled over the frames of the clip."""

from __future__ import annotations

import torch
from torch import Tensor

from .background import require_same_shape
from .records import EvalError

CELL_PERCENT = 30  # least share of a latent cell's pixels for the cell to belong to an object; compared in integers


def mask_area_ratio(mask: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Area of the final mask over that of source-or-target object: 1 is best, more repaints background."""
    require_same_shape(mask=mask, source_mask=source_mask, target_mask=target_mask)
    return _share(mask, source_mask | target_mask)


def mask_recall(mask: Tensor, source_mask: Tensor) -> float | None:
    """Share of the source object's pixels inside the final mask, in [0, 1]: what is missed stays visible."""
    require_same_shape(mask=mask, source_mask=source_mask)
    return _share(mask & source_mask, source_mask)


def mask_iou_union(binary: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Intersection over union of a mask ``f h w`` on the latent grid with source-or-target object, in [0, 1]."""
    require_same_shape(source_mask=source_mask, target_mask=target_mask)
    truth = cells(source_mask | target_mask, binary.shape[-2], binary.shape[-1])
    require_same_shape(binary=binary, cells=truth)
    return _share(binary & truth, binary | truth)


def mask_iou_source(mask: Tensor, source_mask: Tensor) -> float | None:
    """Intersection over union of the final mask with the source object alone, in [0, 1].

    No direction is better: a mask for a target of another shape should not equal the source's.
    """
    require_same_shape(mask=mask, source_mask=source_mask)
    return _share(mask & source_mask, mask | source_mask)


def cells(region: Tensor, height: int, width: int) -> Tensor:
    """``f H W`` -> ``f height width``: cells with at least :data:`CELL_PERCENT` of their pixels in ``region``."""
    rows, columns = _cell_size(region.shape[-2], region.shape[-1], height, width)
    count = region.reshape(-1, height, rows, width, columns).sum(dim=(2, 4))
    return 100 * count >= CELL_PERCENT * rows * columns


def pixels(mask: Tensor, height: int, width: int) -> Tensor:
    """``f h w`` on the latent grid -> ``f height width``, each cell repeated over its pixels."""
    rows, columns = _cell_size(height, width, mask.shape[-2], mask.shape[-1])
    return mask.repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)


def _cell_size(picture_height: int, picture_width: int, height: int, width: int) -> tuple[int, int]:
    if picture_height % height or picture_width % width:
        raise EvalError(
            f"a {picture_width}x{picture_height} picture can't be cut into {width}x{height} latent cells:"
            " are mask and clip from the same run?"
        )
    return picture_height // height, picture_width // width


def _share(part: Tensor, whole: Tensor) -> float | None:
    total = int(torch.count_nonzero(whole))
    return int(torch.count_nonzero(part)) / total if total else None
