"""Does what moves keep its looks, and is it sharp? Warp error, and the gradient energy that keeps a blur from winning it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .metric import ClipMetric
from .motion import Motion, warp
from .preservation import require_region, require_same_shape


def warp_error(frames: Tensor, motion: Motion, region: Tensor) -> float | None:
    """Root mean square difference between each frame and the one before, brought along the motion; lower is better.

    The square of it, over 255^2, is the warping error of Lai et al. 2018, here over ``region`` alone: a pixel counts where it
    was seen one frame earlier and lies in the region in both frames.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        motion: of what the region shows.
        region: ``f H W`` bool.

    Returns:
        In 8-bit levels (0 to 255), pooled over all pairs of neighbours; None where no pixel counts.

    Raises:
        MetricError: shapes differ.
    """
    require_region(region, frames)
    require_same_shape(later_frames=region[1:], motion=motion.seen)
    # All the pixels that a sample is mixed from must lie in the region.
    stayed = warp(region[:, None].float(), motion)[:, 0] > 0.99
    counted = region[1:] & stayed & motion.seen
    if not counted.any():
        return None
    error = (frames[1:] - warp(frames, motion)).square().mean(dim=1)[counted]
    return 127.5 * math.sqrt(float(error.mean(dtype=torch.float64)))


def gradient_energy(frames: Tensor, region: Tensor) -> float | None:
    """Mean squared difference of pixels side by side or above each other, both in ``region``: how sharp the object is.

    No direction is better by itself: a blur lowers it, noise raises it. Read it beside the source's or the ideal clip's.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        region: ``f H W`` bool.

    Returns:
        In squared 8-bit levels, mean over channels and pairs of pixels of all frames; None without such a pair.
    """
    require_region(region, frames)
    total, pairs = 0.0, 0
    for axis in (1, 2):
        length = region.shape[axis] - 1
        both = region.narrow(axis, 0, length) & region.narrow(axis, 1, length)
        steps = frames.narrow(axis + 1, 1, length) - frames.narrow(axis + 1, 0, length)
        total += float(steps.square().mean(dim=1)[both].sum(dtype=torch.float64))
        pairs += int(both.sum())
    return 127.5**2 * total / pairs if pairs else None


def temporal_iou(mask: Tensor, motion: Motion) -> float | None:
    """Mean over neighbouring frames of the mask's intersection over union with the mask before, brought along; in [0, 1].

    Only pixels that were seen one frame earlier count; a pair of empty masks doesn't.

    Args:
        mask: ``f H W`` bool.
        motion: of what the mask holds.
    """
    require_same_shape(later_frames=mask[1:], motion=motion.seen)
    moved = warp(mask[:, None].float(), motion)[:, 0] >= 0.5
    both = (mask[1:] & moved & motion.seen).flatten(1).sum(dim=1)
    either = ((mask[1:] | moved) & motion.seen).flatten(1).sum(dim=1)
    shares = both[either > 0] / either[either > 0]
    return float(shares.mean()) if len(shares) else None


class WarpErrorObject(ClipMetric):
    figure = staticmethod(warp_error)
    name, unit, over, higher_is_better = "warp_error_object", "8-bit levels", "pixels of all pairs pooled", False


class WarpErrorBackgroundStill(WarpErrorObject):
    """Under a camera that stands still: any change is an error."""

    name = "warp_error_background_still"


class WarpErrorBackgroundFlow(WarpErrorObject):
    """Under a camera that moves: the flow's own errors are in it, so it has no mean with the other."""

    name = "warp_error_background_flow"


class WarpErrorInMask(WarpErrorObject):
    name = "warp_error_in_mask"


class WarpErrorOutsideMask(WarpErrorObject):
    name = "warp_error_outside_mask"


class WarpErrorInAnnotation(WarpErrorObject):
    name = "warp_error_in_annotation"


class WarpErrorOutsideAnnotation(WarpErrorObject):
    name = "warp_error_outside_annotation"


class ObjectGradientEnergy(ClipMetric):
    figure = staticmethod(gradient_energy)
    name, unit, over = "object_gradient_energy", "squared 8-bit levels", "pairs of pixels of all frames pooled"


class GradientEnergyInMask(ObjectGradientEnergy):
    name = "gradient_energy_in_mask"


class GradientEnergyInAnnotation(ObjectGradientEnergy):
    name = "gradient_energy_in_annotation"


REGIONS: dict[str, tuple[type[ClipMetric], type[ClipMetric], type[ClipMetric]]] = {
    "annotation": (WarpErrorInAnnotation, WarpErrorOutsideAnnotation, GradientEnergyInAnnotation),
    "mask": (WarpErrorInMask, WarpErrorOutsideMask, GradientEnergyInMask),
}
"""who says where the object is -> warp error inside and outside, gradient energy inside"""


class MaskTemporalIou(ClipMetric):
    figure = staticmethod(temporal_iou)
    name, unit, over, higher_is_better = "mask_temporal_iou", "share", "mean over neighbours", True


class MaskTemporalIouFlow(MaskTemporalIou):
    name = "mask_temporal_iou_flow"
