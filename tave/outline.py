"""From a region of cells to the source object's own outline: where its colours end in the clip's pixels (METHOD 5)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tave.reference.cutout import grab_cut
from tave.video.frames import to_pixels

_CELL = 4  # pixels to a cell's side at which the colours are looked at; finer ones would only take longer
# Shares of the region's area beyond which an outline is no outline of what the region holds: colours could not tell it.
_LEAST, _MOST = 0.3, 1.5


def outline(frames: Tensor, region: Tensor) -> Tensor | None:
    """The object that ``region`` roughly holds, to the pixel: `f 1 H W` in {0, 1}; None if its colours don't tell it.

    A disagreement of two predictions is a cell or two wider than what they disagree about, and has holes where the object
    looks like what is to come. GrabCut starts from the region, may grow it by one cell, and takes what has
    the region's colours rather than those around it; the colours are those of the whole clip, one model for all its frames.

    Args:
        frames: the clip `f 3 H W` in [-1, 1].
        region: on the latent grid, `f h w` in {0, 1}, 1 = object; H and W are whole multiples of h and w.
    """
    if not region.any() or region.all():  # nothing, or nothing around it
        return None
    f, (h, w) = len(frames), region.shape[1:]
    size = min(frames.shape[-2], _CELL * h), min(frames.shape[-1], _CELL * w)
    pixels = to_pixels(interpolate(frames.float(), size, mode="area"))
    inside = interpolate(region[:, None].float().cpu(), size, mode="nearest-exact")[:, 0].numpy() > 0
    cell = size[0] // h
    reach = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * cell + 1, 2 * cell + 1))
    near = np.stack([cv2.dilate(plane.astype(np.uint8), reach) for plane in inside]) > 0
    labels = np.where(inside, cv2.GC_PR_FGD, np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD)).astype(np.uint8)
    # the frames below each other are one picture, whose colours are the whole clip's
    found = grab_cut(pixels.reshape(-1, size[1], 3), labels.reshape(-1, size[1])).reshape(f, *size)
    if not _LEAST <= found.sum() / inside.sum() <= _MOST:
        return None
    areas = found.sum((1, 2))
    lost = areas < _LEAST * np.median(areas)  # in a frame, and not in the others: there the region knows better
    found[lost] = inside[lost]
    whole = torch.from_numpy(found.astype(np.float32))[:, None]
    return (interpolate(whole, frames.shape[-2:], mode="bilinear") > 0.5).to(frames)
