"""What the edit should have left alone must not have moved: PSNR over the background's own pixels.

Errors are pooled over all pixels of the clip before the logarithm, and only pixels inside the asked region count: blanking
the rest and averaging over everything would reward a large mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

PSNR_CAP = 100.0
"""dB given to clips that agree (almost) exactly: JSON has no infinity."""


class MetricError(ValueError):
    """Inputs of a metric that can't belong together; the message names what differs."""


def psnr(frames: Tensor, reference: Tensor, region: Tensor | None = None) -> float | None:
    """Peak signal-to-noise ratio over ``region`` of all frames together, higher is better.

    Args:
        frames: ``f 3 H W`` in [-1, 1] (peak 2, so dB are those of the same clip in uint8).
        reference: like ``frames``.
        region: ``f H W`` bool, the pixels that count; all of them by default.

    Returns:
        dB, at most :data:`PSNR_CAP`; None where ``region`` holds no pixel.

    Raises:
        MetricError: shapes differ.
    """
    require_same_shape(frames=frames, reference=reference)
    error = squared_error(frames, reference)
    if region is not None:
        require_region(region, frames)
        error = error[region]
    return psnr_of_sum(float(error.sum(dtype=torch.float64)), error.numel())


def psnr_of_sum(squared: float, pixels: int) -> float | None:
    """dB of a summed :func:`squared_error` over ``pixels`` pixels; None for no pixel."""
    if pixels == 0:
        return None
    mean = squared / (3 * pixels)
    return PSNR_CAP if mean == 0 else min(PSNR_CAP, 10 * math.log10(4 / mean))


def squared_error(frames: Tensor, reference: Tensor) -> Tensor:
    """``f 3 H W`` twice -> ``f H W``, squared difference summed over the three channels."""
    return (frames - reference).square().sum(dim=1)


def background_psnr_outside_mask(edited: Tensor, source: Tensor, alpha: Tensor) -> float | None:
    """PSNR of the edit against the source where the composite took nothing from the edit.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        source: like ``edited``.
        alpha: ``f H W``, the composite's feathered alpha; only pixels where it is exactly 0 count.
    """
    return psnr(edited, source, alpha == 0)


def background_psnr(edited: Tensor, source: Tensor, source_mask: Tensor, target_mask: Tensor, guard: int = 3) -> float | None:
    """PSNR of the edit against the source wherever neither the old nor the ideal new object is.

    The edit mask plays no part, so pixels that an oversized mask repainted count against the edit.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        source: like ``edited``.
        source_mask: ``f H W`` bool, the source object.
        target_mask: ``f H W`` bool, the ideal target.
        guard: pixels around both silhouettes that don't count either (anti-aliased rims, chroma subsampling).
    """
    require_same_shape(source_mask=source_mask, target_mask=target_mask)
    return psnr(edited, source, ~grow(source_mask | target_mask, guard))


def grow(region: Tensor, pixels: int) -> Tensor:
    """``f H W`` bool, grown by ``pixels`` in every direction, diagonals included."""
    grown = functional.max_pool2d(region[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)
    return grown[:, 0] > 0


def require_same_shape(**tensors: Tensor) -> None:
    """Raise :class:`MetricError` that names the tensors unless all have one shape."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise MetricError(f"shapes differ: {found}; give arrays of the same clip at the same size")


def require_region(region: Tensor, frames: Tensor) -> None:
    """Raise :class:`MetricError` unless ``region`` is bool ``f H W`` for ``frames`` ``f 3 H W``."""
    if region.dtype != torch.bool or region.shape != frames[:, 0].shape:
        raise MetricError(
            f"region is {region.dtype} {tuple(region.shape)}, but the clip needs bool {tuple(frames[:, 0].shape)}"
        )
