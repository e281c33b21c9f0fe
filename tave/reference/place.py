"""Where the target object goes: on plain grey, or into a source frame where the source object is."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.reference.cutout import MatteError, largest, without_holes


class Box(NamedTuple):
    """Pixels ``top <= y < bottom``, ``left <= x < right``."""

    top: int
    bottom: int
    left: int
    right: int


def box_of(binary: np.ndarray) -> Box:
    """The box around the true pixels of `H W`, of which there must be one."""
    rows, columns = np.nonzero(binary.any(1))[0], np.nonzero(binary.any(0))[0]
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def neutral(rgb: Tensor, cut: Tensor, margin: float = 0.1) -> Tensor:
    """The object on plain grey: ``rgb`` `3 H W` in [-1, 1] and matte ``cut`` `1 H W` -> `3 S S`.

    A square around the object, its longer side enlarged by ``margin`` at either end; grey is 0, the middle of
    the range.
    """
    box = box_of(cut[0].numpy() > 0.5)
    side = max(box.bottom - box.top, box.right - box.left)
    side += 2 * math.ceil(margin * side)
    top, left = (box.top + box.bottom - side) // 2, (box.left + box.right - side) // 2
    height, width = rgb.shape[1:]
    # Negative padding crops: one call both cuts the square out and fills what lies outside the picture.
    return functional.pad(rgb * cut, (-left, left + side - width, -top, top + side - height))


def in_context(
    rgb: Tensor,
    cut: Tensor,
    frames: Tensor,
    mask: Tensor,
    index: int,
    height_scale: float = 1.0,
    feather: float = 0.02,
) -> Tensor | None:
    """Source frame ``index`` with the target in the source object's place, `3 H W` in [-1, 1] (METHOD 1).

    The largest piece of ``mask`` over time gives the region and its box. The region is filled with the
    temporal median of its unmasked pixels, where there are none by inpainting. The object stands on the box's
    bottom line and is centred on it, as tall as the median of the boxes over time, times ``height_scale``: a
    box of one frame is a few cells more or less, and the target mustn't pulse with it. It keeps its heading,
    and what leaves the frame is cut off.

    Args:
        rgb, cut: the target image `3 h w` in [-1, 1] and its matte `1 h w` in [0, 1], at any size.
        frames, mask: the clip `f 3 H W` in [-1, 1] and the first pass's mask `f 1 H W`, 1 = edit.
        feather: standard deviation of the edge's blending, as a share of the object's height.

    Returns:
        None if the mask is empty.
    """
    if frames.shape[0] != mask.shape[0] or frames.shape[2:] != mask.shape[2:]:
        raise MatteError(f"mask {tuple(mask.shape)} and clip {tuple(frames.shape)} must agree in frames and size")
    masked = mask[:, 0].numpy() > 0.5
    if not masked.any():
        return None
    track = largest_over_time(masked)
    region, box = _region(masked, track, index)
    background = _fill(frames, masked, region, index)
    heights = [tall.bottom - tall.top for tall in map(box_of, track[track.any((1, 2))])]
    height = max(1, round(float(np.median(heights)) * height_scale))
    color, alpha = _scaled(rgb, cut, height)
    alpha = _feathered(alpha, feather * height)
    return _paste(background, color, alpha, box.bottom, (box.left + box.right) / 2)


def _region(masked: np.ndarray, track: np.ndarray, index: int) -> tuple[np.ndarray, Box]:
    """The source object's pixels at frame ``index``, `H W` bool, and its box; ``track`` is its `largest_over_time`."""
    if track[index].any():
        region = without_holes(track[index])
    elif masked[index].any():  # fast objects don't overlap themselves from frame to frame: the track is torn here
        region = without_holes(largest(masked[index]))
    else:
        times = np.nonzero(track.any((1, 2)))[0]
        nearest = int(times[np.abs(times - index).argmin()])
        return np.zeros_like(masked[index]), box_of(track[nearest])
    return region, box_of(region)


def largest_over_time(masked: np.ndarray) -> np.ndarray:
    """The largest connected piece of `f H W` bool: 8-connected in a frame, same pixel from frame to frame."""
    labels = np.zeros(masked.shape, dtype=np.int64)
    count = 1
    for frame, plane in enumerate(masked):
        pieces, numbered = cv2.connectedComponents(plane.astype(np.uint8), connectivity=8)
        labels[frame] = np.where(numbered > 0, numbered + count - 1, 0)
        count += pieces - 1
    root = np.arange(count)
    for now, after in pairwise(labels):
        touching = (now > 0) & (after > 0)
        for a, b in np.unique(np.stack([now[touching], after[touching]], 1), axis=0):
            root[root == root[b]] = root[a]
    pieces = np.where(labels > 0, root[labels], -1)
    names, sizes = np.unique(pieces[pieces >= 0], return_counts=True)
    return pieces == names[sizes.argmax()] if len(names) else np.zeros_like(masked)


def _fill(frames: Tensor, masked: np.ndarray, region: np.ndarray, index: int) -> Tensor:
    """Frame ``index`` without the source object, `3 H W`."""
    picture = frames[index].numpy().copy()
    seen = ~masked[:, region]  # f n
    samples = np.where(seen[:, None], frames.numpy()[:, :, region], np.nan)  # f 3 n
    known = seen.any(0)
    filled = np.zeros(samples.shape[1:], dtype=picture.dtype)
    filled[:, known] = np.nanmedian(samples[:, :, known], axis=0)
    picture[:, region] = filled
    if not known.all():
        unknown = region.copy()
        unknown[region] = ~known
        pixels = ((picture.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        inpainted = cv2.inpaint(pixels, unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        picture[:, unknown] = inpainted[unknown].T / np.float32(127.5) - 1
    return torch.from_numpy(picture)


def _scaled(rgb: Tensor, cut: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """The object alone, ``height`` pixels tall: colour `3 h w` in [-1, 1] and alpha `1 h w`."""
    box = box_of(cut[0].numpy() > 0.5)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    color, alpha = rgb[:, rows, columns], cut[:, rows, columns]
    width = max(1, round((box.right - box.left) * height / (box.bottom - box.top)))
    # Colour times alpha is what may be averaged: else the target's own background bleeds into its edge.
    layers = torch.cat([(color + 1) * alpha, alpha])[None]
    layers = functional.interpolate(layers, (height, width), mode="bilinear", antialias=True)[0]
    alpha = layers[3:].clamp(0, 1)
    return (layers[:3] / alpha.clamp(min=1e-4) - 1).clamp(-1, 1), alpha


def _feathered(alpha: Tensor, deviation: float) -> Tensor:
    if deviation < 0.1:  # less than a tenth of a pixel is no blur
        return alpha
    around = math.ceil(3 * deviation)
    padded = np.pad(alpha[0].numpy(), around)  # beyond the object there is nothing
    blurred = cv2.GaussianBlur(padded, (0, 0), deviation)[around:-around, around:-around]
    return alpha * torch.from_numpy(np.ascontiguousarray(blurred))


def _paste(picture: Tensor, color: Tensor, alpha: Tensor, bottom: int, middle: float) -> Tensor:
    """``color`` over ``picture``, standing on line ``bottom`` and centred on column ``middle``."""
    height, width = color.shape[1:]
    top, left = bottom - height, round(middle - width / 2)
    y0, y1 = max(top, 0), min(bottom, picture.shape[1])
    x0, x1 = max(left, 0), min(left + width, picture.shape[2])
    inside = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    place = (slice(None), slice(y0, y1), slice(x0, x1))
    picture = picture.clone()
    picture[place] = alpha[inside] * color[inside] + (1 - alpha[inside]) * picture[place]
    return picture
