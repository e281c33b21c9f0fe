"""Cosines between an edit's frames, the target prompt, the target image and each other.

The functions take unit vectors, so that a clip is embedded once and any encoder serves. Whole frames measure the
picture, masked crops the object alone. The encoder that conditions the model favours its edits: use another one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

CROP_MARGIN = 0.25  # of the crop's side over the longer side of the region's box


def text_alignment(pictures: Tensor, caption: Tensor) -> float | None:
    """Mean over frames ``f d`` of the cosine with the prompt ``d``, in [-1, 1]."""
    return float((pictures @ caption).mean()) if len(pictures) else None


def image_alignment(pictures: Tensor, references: Tensor) -> float | None:
    """Mean over frames ``f d`` and target images ``n d`` of their cosine, in [-1, 1]."""
    return float((pictures @ references.T).mean()) if len(pictures) else None


def frame_accuracy(pictures: Tensor, target: Tensor, source: Tensor) -> float | None:
    """Share of frames nearer to the target prompt ``d`` than to the source prompt ``d``; None for equal prompts."""
    if torch.equal(target, source) or len(pictures) == 0:
        return None
    return float((pictures @ target > pictures @ source).float().mean())


def pickscore(pictures: Tensor, caption: Tensor, scale: float) -> float | None:
    """Mean over frames of ``scale`` (the model's own, about 100) times the cosine with the prompt."""
    cosine = text_alignment(pictures, caption)
    return None if cosine is None else scale * cosine


def adjacent_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of neighbouring frames, in [-1, 1]; None for a single frame. A frozen clip has 1."""
    return float((pictures[1:] * pictures[:-1]).sum(dim=1).mean()) if len(pictures) > 1 else None


def pairwise_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of all pairs of different frames (as in TGVE), in [-1, 1]; None for a single frame."""
    count = len(pictures)
    if count < 2:
        return None
    cosines = pictures @ pictures.T
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def object_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """Square crop around each frame's region, resized: its box's longer side plus 25 %.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        region: ``f H W`` bool, not empty in any frame.
        size: Side of the result.

    Returns:
        ``f 3 size size`` in [-1, 1]; beyond the picture its edge is repeated.
    """
    crops = [_square(frame, inside) for frame, inside in zip(frames, region, strict=True)]
    return torch.cat([_resized(crop, size) for crop in crops]) if crops else frames.new_zeros(0, 3, size, size)


def masked_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """:func:`object_crops` that are grey (0) outside the region, of the frames where it isn't empty."""
    counted = region.flatten(1).any(dim=1)
    frames, region = frames[counted], region[counted]
    return object_crops(frames * region[:, None], region, size)


def reference_pictures(rgb: Tensor, alpha: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """The target image as a whole, and cropped to its object as :func:`masked_crops` crops frames.

    Args:
        rgb: ``3 h w`` in [-1, 1].
        alpha: ``1 h w`` in [0, 1], which sets the object on grey. Without it the whole image stands for the object.
        size: Side of the results.

    Returns:
        ``1 3 size size`` twice, in [-1, 1]. The whole image is stretched: nothing of the target is cut off.
    """
    cut = rgb[None] if alpha is None else (rgb * alpha)[None]
    whole = _resized(cut, size)
    if alpha is None or not (inside := alpha > 0.5).any():
        return whole, whole
    return whole, masked_crops(cut, inside, size)


def _square(frame: Tensor, region: Tensor) -> Tensor:
    """``3 H W`` -> ``1 3 side side`` around the centre of the region's box."""
    rows, columns = (torch.nonzero(region.any(dim=dim)).flatten().tolist() for dim in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = math.ceil((1 + CROP_MARGIN) * max(bottom - top, right - left))
    # Clamped indices repeat the edge however far the square leaves the picture.
    rows = (torch.arange(side) + (top + bottom - side) // 2).clamp(0, frame.shape[1] - 1)
    columns = (torch.arange(side) + (left + right - side) // 2).clamp(0, frame.shape[2] - 1)
    return frame[:, rows][:, :, columns][None]


def _resized(pictures: Tensor, size: int) -> Tensor:
    resized = functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)
