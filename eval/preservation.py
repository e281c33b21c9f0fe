"""What the edit should have left alone must not have moved: PSNR and SSIM over the background's own pixels.

Only pixels inside the asked region count: blanking the rest and averaging over everything would reward a large mask.
Errors of the PSNR are pooled over all pixels of the clip before the logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from eval.metric import ClipMetric, MetricError

PSNR_CAP = 100.0
"""dB given to clips that agree (almost) exactly: JSON has no infinity."""


SSIM_REACH = 5
"""Pixels from the middle of SSIM's 11x11 window (sigma 1.5) to its side."""
GUARD = 3
"""Pixels around a silhouette that don't count as background (anti-aliased rims, chroma subsampling)."""


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


def background_psnr(
    edited: Tensor, source: Tensor, source_mask: Tensor, target_mask: Tensor, guard: int = GUARD
) -> float | None:
    """PSNR of the edit against the source wherever neither the old nor the ideal new object is.

    The edit mask plays no part, so pixels that an oversized mask repainted count against the edit.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        source: like ``edited``.
        source_mask: ``f H W`` bool, the source object.
        target_mask: ``f H W`` bool, the ideal target.
        guard: pixels around both silhouettes that don't count either.
    """
    return psnr(edited, source, background(source_mask, target_mask, guard))


def background(source_mask: Tensor, target_mask: Tensor, guard: int = GUARD) -> Tensor:
    """``f H W`` bool twice -> ``f H W`` bool: further than ``guard`` pixels from both silhouettes."""
    require_same_shape(source_mask=source_mask, target_mask=target_mask)
    return ~grow(source_mask | target_mask, guard)


def background_ssim(edited: Tensor, source: Tensor, region: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004, as torchmetrics has it), mean over pixels and channels, at most 1.

    A pixel counts where its whole window lies in ``region``, so that neither the edit itself nor a blanked area is compared.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        source: like ``edited``.
        region: ``f H W`` bool, the background.

    Returns:
        None where no window fits into ``region``, or into the picture.
    """
    require_same_shape(edited=edited, source=source)
    require_region(region, edited)
    whole = ~grow(~region, SSIM_REACH)
    if not whole.any() or min(edited.shape[2:]) <= SSIM_REACH:
        return None
    total = 0.0
    for frame, reference, inside in zip(edited, source, whole, strict=True):  # a frame at a time: five copies are made
        # Its luminance term knows where black is: to [0, 1]. In float32 even areas leave 1e-4 of cancellation.
        pair = ((frame[None].double() + 1) / 2, (reference[None].double() + 1) / 2)
        _, image = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
        total += float(image[0].mean(dim=0)[inside].sum(dtype=torch.float64))
    return total / int(whole.sum())


class BackgroundPsnrOutsideMask(ClipMetric):
    figure = staticmethod(background_psnr_outside_mask)
    name, unit, over, higher_is_better = "background_psnr_outside_mask", "dB", "pixels of all frames pooled", True


class BackgroundPsnr(ClipMetric):
    figure = staticmethod(background_psnr)
    name, unit, over, higher_is_better = "background_psnr", "dB", "pixels of all frames pooled", True


class BackgroundSsimOutsideMask(ClipMetric):
    figure = staticmethod(background_ssim)
    name, unit, over, higher_is_better = "background_ssim_outside_mask", "ssim", "whole windows of all frames", True


class BackgroundSsim(BackgroundSsimOutsideMask):
    name = "background_ssim"


class BackgroundPsnrOutsideAnnotation(ClipMetric):
    figure = staticmethod(psnr)
    name, unit, over, higher_is_better = "background_psnr_outside_annotation", "dB", BackgroundPsnr.over, True


class BackgroundSsimOutsideAnnotation(BackgroundSsimOutsideMask):
    name = "background_ssim_outside_annotation"


class BackgroundPsnrOutsideUnion(BackgroundPsnrOutsideAnnotation):
    name = "background_psnr_outside_union"


class BackgroundSsimOutsideUnion(BackgroundSsimOutsideMask):
    name = "background_ssim_outside_union"


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
