"""Where the target object goes: on plain grey, or into a source frame where the source object is (METHOD 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.reference.regions import box_of
from tave.reference.site import Site


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


class Pose(NamedTuple):
    """How the target stands in the source object's place: as tall as it times ``height``, and turned the other way or not."""

    height: float = 1.0
    mirrored: bool = False


@dataclass(frozen=True)
class Placed:
    """The target in the source object's place, n frames: pictures `n 3 H W` in [-1, 1], and its alpha `n 1 H W` there."""

    pictures: Tensor
    alpha: Tensor


def put(
    site: Site, rgb: Tensor, cut: Tensor, pose: Pose = Pose(), feather: float = 0.02, indices: Sequence[int] | None = None
) -> Placed:
    """The target on the site's frames: standing on the bottom line and centred; what leaves the frame is cut off.

    Where the source object isn't seen, neither is the target, except in frames that are asked for by their ``indices``.

    Args:
        rgb, cut: the target image `3 h w` in [-1, 1] and its matte `1 h w` in [0, 1], at any size.
        feather: standard deviation of the edge's blending, as a share of the object's height.
        indices: of the frames; None: all.
    """
    if pose.mirrored:
        rgb, cut = rgb.flip(-1), cut.flip(-1)
    scaled = cache(partial(_scaled, rgb, cut))  # most frames want one height
    pictures, alphas = [], []
    for index in range(len(site.frames)) if indices is None else indices:
        if indices is None and not site.seen[index]:
            pictures.append(site.frames[index])
            alphas.append(torch.zeros_like(site.frames[index, :1]))
            continue
        height = float(site.stance.heights[index]) * pose.height
        layer = _at(
            scaled(max(1, round(height))),
            height,
            float(site.stance.bottoms[index]),
            float(site.stance.middles[index]),
            site.frames.shape[-2:],
        )
        opacity = layer[3:].clamp(0, 1)
        soft = _feathered(opacity, feather * height)
        shown = layer[:3] / opacity.clamp(min=1e-4) - 1
        pictures.append(soft * shown.clamp(-1, 1) + (1 - soft) * site.frames[index])
        alphas.append(soft)
    return Placed(torch.stack(pictures), torch.stack(alphas))


def _scaled(rgb: Tensor, cut: Tensor, height: int) -> np.ndarray:
    """The object alone, ``height`` pixels tall: `h w 4`, (colour + 1) times alpha, and alpha.

    Colour times alpha is what may be averaged: else the target's own background bleeds into its edge.
    """
    box = box_of(cut[0].numpy() > 0.5)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    color, alpha = rgb[:, rows, columns], cut[:, rows, columns]
    width = max(1, round((box.right - box.left) * height / (box.bottom - box.top)))
    layers = torch.cat([(color + 1) * alpha, alpha])[None]
    layers = functional.interpolate(layers, (height, width), mode="bilinear", antialias=True)[0]
    return layers.permute(1, 2, 0).contiguous().numpy()


def _at(layers: np.ndarray, height: float, bottom: float, middle: float, size: Sequence[int]) -> Tensor:
    """``layers`` `h w c`, h within half a pixel of ``height``, on nothing of ``size``: `c H W`. Parts of a pixel count."""
    scale = height / len(layers)
    # OpenCV's pixel n spans n - 0.5 to n + 0.5, ours n to n + 1
    right = middle - scale * layers.shape[1] / 2 + (scale - 1) / 2
    down = bottom - scale * len(layers) + (scale - 1) / 2
    moved = cv2.warpAffine(layers, np.array([[scale, 0, right], [0, scale, down]]), (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return torch.from_numpy(moved).permute(2, 0, 1).contiguous()


def _feathered(alpha: Tensor, deviation: float) -> Tensor:
    if deviation < 0.1:  # less than a tenth of a pixel is no blur
        return alpha
    around = math.ceil(3 * deviation)
    padded = np.pad(alpha[0].numpy(), around, mode="edge")  # what leaves the frame goes on beyond it
    blurred = cv2.GaussianBlur(padded, (0, 0), deviation)[around:-around, around:-around]
    return alpha * torch.from_numpy(np.ascontiguousarray(blurred))
