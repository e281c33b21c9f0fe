"""Motion between frames, exact or by optical flow, and what is measured along it: steadiness, and sharpness beside it.

A blur lowers the warp error, and :func:`gradient_energy` shows the blur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.video.frames import to_pixels

from .regions import require_region, require_same_shape

Spans = Sequence[tuple[int, int]]
"""The windows in which a clip was edited: for each the first frame, and the one after the last."""


@dataclass(frozen=True)
class Motion:
    """Backward motion between neighbouring frames."""

    flow: Tensor  # f-1 2 H W, (x, y) in pixels: the content at p of frame i+1 was at p + flow[i, :, p] in frame i
    visible: Tensor  # f-1 H W bool: pixels of frame i+1 that were inside the picture and not covered in frame i


def still(frames: int, height: int, width: int) -> Motion:
    """No motion: the background under a camera that stands still."""
    return Motion(torch.zeros(frames - 1, 2, height, width), torch.ones(frames - 1, height, width, dtype=torch.bool))


def track_motion(track: Sequence[Sequence[float]], height: int, width: int) -> Motion:
    """The motion of a rigid object that is moved and scaled, continued over the whole picture.

    ``track``: for each frame x, y of the object's anchor and its scale, in pixels; pixel p covers p to p + 1.
    """
    places = torch.tensor(track, dtype=torch.float64)
    grid = _grid(height, width).double() + 0.5
    zoom = (places[:-1, 2] / places[1:, 2])[:, None, None, None]
    earlier, later = places[:-1, :2, None, None], places[1:, :2, None, None]
    flow = earlier + (grid - later) * zoom - grid
    return Motion(flow.float(), _inside(flow))


def optical_flow(frames: Tensor) -> Motion:
    """DIS optical flow (Kroeger et al. 2016, OpenCV's medium preset at its finest scale).

    A pixel counts as covered where the flows of both directions don't cancel: |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5
    (Sundaram et al. 2010).
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in to_pixels(frames)]
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)

    def between(one: np.ndarray, other: np.ndarray) -> Tensor:
        empty = np.zeros((*one.shape, 2), dtype=np.float32)
        return torch.from_numpy(estimator.calc(one, other, empty)).permute(2, 0, 1).clone()

    if len(frames) < 2:
        return still(1, *frames.shape[2:])
    backward = torch.stack([between(later, earlier) for earlier, later in pairwise(grey)])
    forward = torch.stack([between(earlier, later) for earlier, later in pairwise(grey)])
    returned = _sampled(forward, backward)
    lengths = backward.square().sum(dim=1) + returned.square().sum(dim=1)
    cancels = (backward + returned).square().sum(dim=1) <= 0.01 * lengths + 0.5
    return Motion(backward, cancels & _inside(backward))


def warp(frames: Tensor, motion: Motion) -> Tensor:
    """``f c H W`` -> ``f-1 c H W``: each frame but the last, moved to the next one's place (bilinear; edges repeat)."""
    return _sampled(frames[:-1], motion.flow)


def warp_error(frames: Tensor, motion: Motion, region: Tensor) -> float | None:
    """Root mean square difference between each frame and the warped one before it, in 8-bit levels (0 to 255).

    The square of it, over 255^2, is the warping error of Lai et al. 2018, here over ``region`` and pooled over all
    pairs: a pixel counts if it was visible one frame earlier and lies in the region in both frames.
    """
    error, counted = _errors(frames, motion, region)
    return 127.5 * math.sqrt(float(error.mean(dtype=torch.float64))) if counted.any() else None


def _errors(frames: Tensor, motion: Motion, region: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error of each pixel that counts, mean over channels, and which those are, ``f-1 H W`` bool."""
    require_region(region, frames)
    require_same_shape(later_frames=region[1:], motion=motion.visible)
    stayed = warp(region[:, None].float(), motion)[:, 0] > 0.99  # all pixels of the bilinear sample lie in the region
    counted = region[1:] & stayed & motion.visible
    return (frames[1:] - warp(frames, motion)).square().mean(dim=1)[counted], counted


def seam_ratio(frames: Tensor, motion: Motion, region: Tensor, windows: Spans) -> float | None:
    """The :func:`warp_error` of neighbouring frames where a window begins or ends, over that of all other neighbours.

    1 where the borders of the windows in which a long clip was edited don't show. None for a clip in one window, and
    where one of both has no pixels or the others have no error.
    """
    ends = {frame for span in windows for frame in span} - {0, len(frames)}
    at = torch.tensor([i + 1 in ends for i in range(len(frames) - 1)], dtype=torch.bool)
    errors = []
    for pairs in (at, ~at):
        squares, pixels = 0.0, 0
        for i in pairs.nonzero().flatten().tolist():
            pair = slice(i, i + 2)
            here = Motion(motion.flow[i : i + 1], motion.visible[i : i + 1])
            error, counted = _errors(frames[pair], here, region[pair])
            squares, pixels = squares + float(error.sum(dtype=torch.float64)), pixels + int(counted.sum())
        if not pixels:
            return None
        errors.append(math.sqrt(squares / pixels))
    return errors[0] / errors[1] if errors[1] else None


def object_drift(frames: Tensor, region: Tensor, windows: Spans) -> float | None:
    """How far the object's mean colour is in the last window from that in the first, in 8-bit levels (rms of RGB).

    Compare with the source's or the ideal clip's. None for a clip in one window, or where a window has no object.
    """
    require_region(region, frames)
    if len(windows) < 2:
        return None
    colours = []
    for start, stop in (windows[0], windows[-1]):
        inside = region[start:stop]
        if not inside.any():
            return None
        colours.append(frames[start:stop].movedim(1, -1)[inside].mean(dim=0, dtype=torch.float64))
    return 127.5 * float((colours[1] - colours[0]).square().mean().sqrt())


def gradient_energy(frames: Tensor, region: Tensor) -> float | None:
    """Mean squared difference of adjacent pixels that both lie in ``region``, in squared 8-bit levels: sharpness.

    No direction is better: a blur lowers it, noise raises it. Compare with the source's or the ideal clip's.
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
    """Intersection over union of the mask with the warped mask before it, mean over neighbouring frames, in [0, 1].

    Only pixels that were visible one frame earlier count; a pair of empty masks doesn't.
    """
    require_same_shape(later_frames=mask[1:], motion=motion.visible)
    moved = warp(mask[:, None].float(), motion)[:, 0] >= 0.5
    both = (mask[1:] & moved & motion.visible).flatten(1).sum(dim=1)
    either = ((mask[1:] | moved) & motion.visible).flatten(1).sum(dim=1)
    shares = both[either > 0] / either[either > 0]
    return float(shares.mean()) if len(shares) else None


def _sampled(pictures: Tensor, flow: Tensor) -> Tensor:
    height, width = pictures.shape[2:]
    places = (_grid(height, width) + flow).permute(0, 2, 3, 1)
    scaled = places * 2 / torch.tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
    return functional.grid_sample(pictures, scaled, mode="bilinear", padding_mode="border", align_corners=True)


def _grid(height: int, width: int) -> Tensor:
    """``2 H W``: x and y of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]).float()


def _inside(flow: Tensor) -> Tensor:
    """``n 2 H W`` -> ``n H W`` bool: whether the origin lies in the picture, with a tolerance of 0.01 pixels."""
    height, width = flow.shape[2:]
    x, y = (_grid(height, width) + flow).unbind(dim=1)
    return (x >= -0.01) & (x <= width - 1 + 0.01) & (y >= -0.01) & (y <= height - 1 + 0.01)
