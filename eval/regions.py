"""Regions of a clip: how well an edit preserves one (PSNR, SSIM, LPIPS), and how well its mask covers the true ones.

Only the region's pixels count, since blanking the rest and averaging over the picture would reward a large mask. Errors
and counts are pooled over all frames of the clip, a few of which are computed at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tave.scratch import spans

from . import EvalError

if TYPE_CHECKING:
    from .encoders import Lpips

PSNR_CAP = 100.0  # dB of clips that agree exactly: JSON has no infinity
GUARD = 3  # pixels around a silhouette that are no background: anti-aliased rims, chroma subsampling
SSIM_REACH = 5  # pixels from the centre of SSIM's 11x11 window (sigma 1.5) to its side
SMALLEST_LPIPS = 64  # pixels a side below which AlexNet's strides leave nothing
CELL_PERCENT = 30  # least share of a latent cell's pixels for the cell to belong to an object; compared in integers


def psnr(frames: Tensor, reference: Tensor, region: Tensor) -> float | None:
    """Peak signal-to-noise ratio over ``region`` of all frames pooled, in dB (of peak 2), at most :data:`PSNR_CAP`."""
    require_same_shape(frames=frames, reference=reference)
    require_region(region, frames)
    total = 0.0
    for span in spans(len(frames)):
        error = squared_error(frames[span], reference[span])[region[span]]
        total += float(error.sum(dtype=torch.float64))
    return psnr_of_sum(total, int(region.sum()))


def psnr_of_sum(squared: float, pixels: int) -> float | None:
    """PSNR in dB of a :func:`squared_error` that was summed over ``pixels`` pixels."""
    if pixels == 0:
        return None
    return PSNR_CAP if squared == 0 else min(PSNR_CAP, 10 * math.log10(4 / (squared / (3 * pixels))))


def squared_error(frames: Tensor, reference: Tensor) -> Tensor:
    """Two clips -> ``f H W``, squared difference summed over the three channels."""
    return (frames - reference).square().sum(dim=1)


def background_ssim(edited: Tensor, source: Tensor, region: Tensor) -> float | None:
    """:func:`ssim` over the pixels whose whole window lies in ``region``, so that nothing outside it is compared."""
    return ssim(edited, source, outside(~region, SSIM_REACH))


def ssim(frames: Tensor, reference: Tensor, region: Tensor) -> float | None:
    """Structural similarity, mean over channels and over ``region``'s pixels of all frames pooled, at most 1."""
    require_same_shape(frames=frames, reference=reference)
    require_region(region, frames)
    if not region.any() or min(frames.shape[2:]) <= SSIM_REACH:
        return None
    total = 0.0
    for frame, other, inside in zip(frames, reference, region, strict=True):  # frame by frame: it takes ten copies
        # The luminance term needs black at 0. In float32, even areas leave 1e-4 of cancellation.
        image = ssim_image((frame.double() + 1) / 2, (other.double() + 1) / 2)
        total += float(image.mean(dim=0)[inside].sum())
    return total / int(region.sum())


def ssim_image(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity around each pixel (Wang et al. 2004) of ``3 H W`` float64 in [0, 1] -> ``3 H W``.

    Equals torchmetrics' full image but is separable: 22 products a pixel instead of 121, most of a measurement's time.
    """
    (mean, mean_), squares = (_windowed(p) for p in (one, other)), (_windowed(p * p) for p in (one, other))
    variances = sum(squares) - mean * mean - mean_ * mean_
    covariance = _windowed(one * other) - mean * mean_
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean * mean_ + c1) / (mean * mean + mean_ * mean_ + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _windowed(image: Tensor) -> Tensor:
    """``3 H W`` -> ``3 H W``: Gaussian mean of the 11x11 window around each pixel."""
    bell = torch.exp(-(torch.arange(-SSIM_REACH, SSIM_REACH + 1).double() ** 2) / (2 * 1.5**2))
    image = functional.pad(image[None], (SSIM_REACH,) * 4, mode="reflect")[0]
    for axis in (-1, -2):
        parts = image.unfold(axis, len(bell), 1).unbind(-1)
        image = sum((weight * part for weight, part in zip(bell / bell.sum(), parts, strict=True)), torch.zeros(()))
    return image


def background_lpips(edited: Tensor, source: Tensor, region: Tensor, lpips: Lpips) -> float | None:
    """Perceptual distance, mean over ``region``'s pixels of all frames pooled, at least 0; None below 64 pixels a side.

    Outside the region the edit is replaced by the source: the receptive field is large, and blanking would add an edge
    that neither clip has.
    """
    require_same_shape(edited=edited, source=source)
    require_region(region, edited)
    if not region.any() or min(edited.shape[2:]) < SMALLEST_LPIPS:
        return None
    total = 0.0
    for span in spans(len(edited)):
        filled = torch.where(region[span, None], edited[span], source[span])
        total += float(lpips.distance(filled, source[span])[region[span]].sum(dtype=torch.float64))
    return total / int(region.sum())


def outside(region: Tensor, guard: int = GUARD) -> Tensor:
    """The pixels further than ``guard`` from ``region``."""
    return ~grow(region, guard)


def grow(region: Tensor, pixels: int, down: int | None = None) -> Tensor:
    """``region`` grown by ``pixels`` in every direction, diagonals included; by ``down``, if given, up and down."""
    reach = (pixels if down is None else down, pixels)
    grown = torch.empty_like(region)
    for span in spans(len(region)):
        size = 2 * reach[0] + 1, 2 * reach[1] + 1
        near = functional.max_pool2d(region[span, None].float(), size, stride=1, padding=reach)
        grown[span] = near[:, 0] > 0
    return grown


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
    return mask_iou_source(binary, cells(source_mask | target_mask, binary.shape[-2], binary.shape[-1]))


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
        sizes = f"a {picture_width}x{picture_height} picture can't be cut into {width}x{height} latent cells"
        raise EvalError(f"{sizes}: are mask and clip from the same run?")
    return picture_height // height, picture_width // width


def _share(part: Tensor, whole: Tensor) -> float | None:
    total = int(torch.count_nonzero(whole))
    return int(torch.count_nonzero(part)) / total if total else None


def require_same_shape(**tensors: Tensor) -> None:
    """Raise :class:`EvalError` that names the tensors unless all have one shape."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise EvalError(f"shapes differ: {found}; give arrays of the same clip at the same size")


def require_region(region: Tensor, frames: Tensor) -> None:
    """Raise :class:`EvalError` unless ``region`` is bool ``f H W`` for ``frames`` ``f 3 H W``."""
    wanted = tuple(frames[:, 0].shape)
    if region.dtype != torch.bool or region.shape != wanted:
        raise EvalError(f"region is {region.dtype} {tuple(region.shape)}, but the clip needs bool {wanted}")
