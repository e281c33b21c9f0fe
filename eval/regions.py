"""The found mask against regions that are known exactly. Counts are pooled over the frames of the clip."""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import ClipMetric, MetricError
from .preservation import require_same_shape

CELL_PERCENT = 30
"""A latent cell belongs to an object that covers at least this share of its pixels, in percent (compared in integers)."""


def mask_area_ratio(mask: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Final mask's area over the true union's; >= 0, best near 1: more repaints background, less can't hold both objects.

    Args:
        mask: ``f H W`` bool, the final (dilated) edit mask at pixel size.
        source_mask: ``f H W`` bool, the source object's visible pixels.
        target_mask: ``f H W`` bool, the ideal target's visible pixels.
    """
    require_same_shape(mask=mask, source_mask=source_mask, target_mask=target_mask)
    return _share(mask, source_mask | target_mask)


def mask_recall(mask: Tensor, source_mask: Tensor) -> float | None:
    """Share of the source object's pixels inside the mask, in [0, 1], higher is better: what is missed stays visible.

    Args:
        mask: ``f H W`` bool, the final edit mask at pixel size.
        source_mask: ``f H W`` bool.
    """
    require_same_shape(mask=mask, source_mask=source_mask)
    return _share(mask & source_mask, source_mask)


def mask_iou_union(binary: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Intersection over union of the mask with source-or-target object at the latent grid, in [0, 1], higher is better.

    Args:
        binary: ``f h w`` bool, the binary mask before dilation.
        source_mask: ``f H W`` bool.
        target_mask: ``f H W`` bool.
    """
    require_same_shape(source_mask=source_mask, target_mask=target_mask)
    truth = cells(source_mask | target_mask, binary.shape[-2], binary.shape[-1])
    require_same_shape(binary=binary, cells=truth)
    return _share(binary & truth, binary | truth)


def mask_iou_source(mask: Tensor, source_mask: Tensor) -> float | None:
    """Intersection over union of the mask with the source object alone, in [0, 1]; no direction is better.

    A mask that knows the target's shape should not equal the source's: read it beside :func:`mask_recall`.

    Args:
        mask: ``f H W`` bool, the final edit mask at pixel size.
        source_mask: ``f H W`` bool.
    """
    require_same_shape(mask=mask, source_mask=source_mask)
    return _share(mask & source_mask, mask | source_mask)


def cells(region: Tensor, height: int, width: int) -> Tensor:
    """``f H W`` bool -> ``f height width`` bool: cells with at least :data:`CELL_PERCENT` of their pixels in ``region``.

    Raises:
        MetricError: the picture isn't a whole number of cells high and wide.
    """
    rows, columns = _cell_size(region.shape[-2], region.shape[-1], height, width)
    count = region.reshape(-1, height, rows, width, columns).sum(dim=(2, 4))
    return 100 * count >= CELL_PERCENT * rows * columns


def pixels(mask: Tensor, height: int, width: int) -> Tensor:
    """``f h w`` at the latent grid -> ``f height width``, each cell repeated over its pixels.

    Raises:
        MetricError: the picture isn't a whole number of cells high and wide.
    """
    rows, columns = _cell_size(height, width, mask.shape[-2], mask.shape[-1])
    return mask.repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)


def _cell_size(picture_height: int, picture_width: int, height: int, width: int) -> tuple[int, int]:
    if picture_height % height or picture_width % width:
        raise MetricError(
            f"a {picture_width}x{picture_height} picture can't be cut into {width}x{height} latent cells:"
            " are mask and clip from the same run?"
        )
    return picture_height // height, picture_width // width


def _share(part: Tensor, whole: Tensor) -> float | None:
    total = int(torch.count_nonzero(whole))
    return int(torch.count_nonzero(part)) / total if total else None


class MaskAreaRatio(ClipMetric):
    figure = staticmethod(mask_area_ratio)
    name, unit, over = "mask_area_ratio", "ratio", "pixels of all frames pooled"


class MaskRecall(ClipMetric):
    figure = staticmethod(mask_recall)
    name, unit, over, higher_is_better = "mask_recall", "share", "pixels of all frames pooled", True


class MaskIouUnion(ClipMetric):
    figure = staticmethod(mask_iou_union)
    name, unit, over, higher_is_better = "mask_iou_union", "share", "latent cells of all frames pooled", True


class MaskIouFinal(MaskIouUnion):
    """The same of the mask that the edit ends with: dilated, then settled to what was changed."""

    name = "mask_iou_final"


class MaskIouSource(ClipMetric):
    figure = staticmethod(mask_iou_source)
    name, unit, over = "mask_iou_source", "share", "pixels of all frames pooled"
