"""Motion between frames, exact or by optical flow, and what is measured along it: steadiness, and sharpness beside it.

A blur lowers the warp error, and :func:`gradient_energy` shows the blur.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.scratch import Scratch, spans
from tave.video.frames import to_pixels

from .regions import require_region, require_same_shape

Spans = Sequence[tuple[int, int]]
"""The windows in which a clip was edited: for each the first frame, and the one after the last."""


@dataclass(frozen=True)
class Motion:
    """Backward motion between neighbouring frames."""

    flow: Tensor  # f-1 2 H W, (x, y) in pixels: the content at p of frame i+1 was at p + flow[i, :, p] in frame i
    visible: Tensor  # f-1 H W bool: pixels of frame i+1 that were inside the picture and not covered in frame i

    def __getitem__(self, pairs: slice) -> Motion:
        """The motion of these pairs of neighbours alone."""
        return Motion(self.flow[pairs], self.visible[pairs])


def still(frames: int, height: int, width: int) -> Motion:
    """No motion: the background under a camera that stands still."""
    return Motion(torch.zeros(frames - 1, 2, height, width), torch.ones(frames - 1, height, width, dtype=torch.bool))


def optical_flow(frames: Tensor, scratch: Scratch = Scratch()) -> Motion:
    """DIS optical flow (Kroeger et al. 2016, OpenCV's medium preset at its finest scale), which lies in ``scratch``.

    A pixel counts as covered where the flows of both directions don't cancel: |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5
    (Sundaram et al. 2010).
    """
    if len(frames) < 2:
        return still(1, *frames.shape[2:])
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)

    def between(pairs: slice, step: int) -> Tensor:
        """From each frame to the next one (step 1), or from that one back (-1)."""
        pixels = to_pixels(frames[pairs.start : pairs.stop + 1])
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels]
        ordered = pairwise(grey) if step > 0 else zip(grey[1:], grey[:-1], strict=True)
        found = [estimator.calc(one, other, np.zeros((*one.shape, 2), np.float32)) for one, other in ordered]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()

    flow = scratch.of(lambda pairs: between(pairs, -1), len(frames) - 1)
    visible = scratch.of(lambda pairs: _returns(flow[pairs], between(pairs, 1)), len(frames) - 1)
    return Motion(flow, visible)


def _returns(backward: Tensor, forward: Tensor) -> Tensor:
    """Whether the motion back from each pixel lies in the picture and is cancelled by the one from there."""
    returned = _sampled(forward, backward)
    lengths = backward.square().sum(dim=1) + returned.square().sum(dim=1)
    cancels = (backward + returned).square().sum(dim=1) <= 0.01 * lengths + 0.5
    return cancels & _inside(backward)


def warp(frames: Tensor, motion: Motion) -> Tensor:
    """``f c H W`` -> ``f-1 c H W``: each frame but the last, moved to the next one's place (bilinear; edges repeat)."""
    return _sampled(frames[:-1], motion.flow)


def warp_error(frames: Tensor, motion: Motion, region: Tensor) -> float | None:
    """Root mean square difference between each frame and the warped one before it, in 8-bit levels (0 to 255).

    The square of it, over 255^2, is the warping error of Lai et al. 2018, here over ``region`` and pooled over all
    pairs: a pixel counts if it was visible one frame earlier and lies in the region in both frames.
    """
    return _rms(*_errors(frames, motion, region, spans(len(frames) - 1)))


def _errors(frames: Tensor, motion: Motion, region: Tensor, pairs: Iterable[slice]) -> tuple[float, int]:
    """The squared error, mean over channels, summed over the pixels of these pairs that count, and their number."""
    require_region(region, frames)
    require_same_shape(later_frames=region[1:], motion=motion.visible)
    total, pixels = 0.0, 0
    for span in pairs:
        both, along = slice(span.start, span.stop + 1), motion[span]
        clip, inside = frames[both], region[both]
        stayed = warp(inside[:, None].float(), along)[:, 0] > 0.99  # the whole bilinear sample lies in the region
        counted = inside[1:] & stayed & along.visible
        error = (clip[1:] - warp(clip, along)).square().mean(dim=1)[counted]
        total, pixels = total + float(error.sum(dtype=torch.float64)), pixels + error.numel()
    return total, pixels


def _rms(squares: float, pixels: int) -> float | None:
    """In 8-bit levels."""
    return 127.5 * math.sqrt(squares / pixels) if pixels else None


def seam_ratio(frames: Tensor, motion: Motion, region: Tensor, windows: Spans) -> float | None:
    """The :func:`warp_error` of neighbouring frames where a window begins or ends, over that of all other neighbours.

    1 where the borders of the windows in which a long clip was edited don't show. None for a clip in one window, and
    where one of both has no pixels or the others have no error.
    """
    ends = {frame for span in windows for frame in span} - {0, len(frames)}
    pairs = [slice(i, i + 1) for i in range(len(frames) - 1)]
    at, elsewhere = ([pair for pair in pairs if (pair.stop in ends) == end] for end in (True, False))
    seam, inside = (_rms(*_errors(frames, motion, region, some)) for some in (at, elsewhere))
    return None if seam is None or not inside else seam / inside


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
    for span, axis in product(spans(len(frames)), (1, 2)):
        clip, inside, length = frames[span], region[span], region.shape[axis] - 1
        both = inside.narrow(axis, 0, length) & inside.narrow(axis, 1, length)
        steps = clip.narrow(axis + 1, 1, length) - clip.narrow(axis + 1, 0, length)
        total += float(steps.square().mean(dim=1)[both].sum(dtype=torch.float64))
        pairs += int(both.sum())
    return 127.5**2 * total / pairs if pairs else None


def temporal_iou(mask: Tensor, motion: Motion) -> float | None:
    """Intersection over union of the mask with the warped mask before it, mean over neighbouring frames, in [0, 1].

    Only pixels that were visible one frame earlier count; a pair of empty masks doesn't.
    """
    require_same_shape(later_frames=mask[1:], motion=motion.visible)
    shares: list[float] = []
    for pairs in spans(len(mask) - 1):
        clip, along = mask[pairs.start : pairs.stop + 1], motion[pairs]
        moved = warp(clip[:, None].float(), along)[:, 0] >= 0.5
        both = (clip[1:] & moved & along.visible).flatten(1).sum(dim=1)
        either = ((clip[1:] | moved) & along.visible).flatten(1).sum(dim=1)
        shares += (both[either > 0] / either[either > 0]).tolist()
    return sum(shares) / len(shares) if shares else None


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
