"""What the edit should have left alone must not have moved: PSNR and SSIM over the background's own pixels.

Only pixels inside the asked region count: blanking the rest and averaging over everything would reward a large mask.
Errors of the PSNR are pooled over all pixels of the clip before the logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .metric import ClipMetric, MetricError

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
    """Structural similarity (:func:`ssim_image`), mean over pixels and channels, at most 1.

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
    return ssim(edited, source, ~grow(~region, SSIM_REACH))


def ssim(frames: Tensor, reference: Tensor, region: Tensor) -> float | None:
    """Structural similarity (:func:`ssim_image`), mean over channels and over ``region``'s pixels of all frames together.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        reference: like ``frames``.
        region: ``f H W`` bool, the pixels whose windows count.

    Returns:
        At most 1; None where ``region`` holds no pixel, or no window fits into the picture.
    """
    require_same_shape(frames=frames, reference=reference)
    require_region(region, frames)
    if not region.any() or min(frames.shape[2:]) <= SSIM_REACH:
        return None
    total = 0.0
    for frame, other, inside in zip(frames, reference, region, strict=True):  # a frame at a time: ten copies are made
        # Its luminance term knows where black is: to [0, 1]. In float32 even areas leave 1e-4 of cancellation.
        image = ssim_image((frame.double() + 1) / 2, (other.double() + 1) / 2)
        total += float(image.mean(dim=0)[inside].sum())
    return total / int(region.sum())


def ssim_image(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity around each pixel (Wang et al. 2004): torchmetrics' own image of it, to 1e-12.

    Written out since its window is a product of two bells: 22 sums instead of the 121 of a convolution, which in float64 is
    most of the time that measuring an edit takes.

    Args:
        one: ``3 H W`` float64 in [0, 1]; mirrored at the picture's border.
        other: like ``one``.

    Returns:
        ``3 H W``, at most 1.
    """
    (mean, mean_), squares = (_windowed(p) for p in (one, other)), (_windowed(p * p) for p in (one, other))
    variances = sum(squares) - mean * mean - mean_ * mean_
    covariance = _windowed(one * other) - mean * mean_
    steady, steady_ = 0.01**2, 0.03**2  # K1 and K2 of a range of 1
    luminance = (2 * mean * mean_ + steady) / (mean * mean + mean_ * mean_ + steady)
    return luminance * (2 * covariance + steady_) / (variances + steady_)


def _windowed(image: Tensor) -> Tensor:
    """``3 H W`` -> ``3 H W``: the mean of the 11x11 window around each pixel, weighted by a bell of sigma 1.5."""
    bell = torch.exp(-(torch.arange(-SSIM_REACH, SSIM_REACH + 1).double() ** 2) / (2 * 1.5**2))
    image = functional.pad(image[None], (SSIM_REACH,) * 4, mode="reflect")[0]
    for axis in (-1, -2):
        slid = image.unfold(axis, len(bell), 1).unbind(-1)
        image = sum((weight * part for weight, part in zip(bell / bell.sum(), slid, strict=True)), torch.zeros(()))
    return image


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
