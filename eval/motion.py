"""Where each pixel was one frame earlier: known exactly, or estimated by an optical flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.video.frames import to_pixels


@dataclass(frozen=True)
class Motion:
    """Backward motion between neighbouring frames.

    Attributes:
        flow: ``f-1 2 H W``, (x, y) in pixels: what is at p in frame i+1 was at p + flow[i, :, p] in frame i.
        seen: ``f-1 H W`` bool, pixels of frame i+1 that were inside the picture and not covered in frame i.
        by: whose word it is, for the metric's id.
    """

    flow: Tensor
    seen: Tensor
    by: str


def still(frames: int, height: int, width: int) -> Motion:
    """Nothing moves: the background under a camera that stands still."""
    flow = torch.zeros(frames - 1, 2, height, width)
    return Motion(flow, torch.ones(frames - 1, height, width, dtype=torch.bool), "true motion")


def track_motion(track: Sequence[Sequence[float]], height: int, width: int) -> Motion:
    """The motion of a rigid object that is moved and scaled, held everywhere as if it filled the picture.

    Args:
        track: for each frame x, y of the object's anchor and its scale, in pixels; pixel p covers p to p + 1.
        height, width: of the picture.
    """
    places = torch.tensor(track, dtype=torch.float64)
    grid = _grid(height, width).double() + 0.5
    zoom = (places[:-1, 2] / places[1:, 2])[:, None, None, None]
    earlier, later = places[:-1, :2, None, None], places[1:, :2, None, None]
    flow = earlier + (grid - later) * zoom - grid
    return Motion(flow.float(), _inside(flow), "true motion")


def optical_flow(frames: Tensor) -> Motion:
    """DIS optical flow (Kroeger et al. 2016, OpenCV's medium preset at its finest scale) of ``f 3 H W`` in [-1, 1].

    A pixel counts as covered where the flow there and back don't cancel: |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5
    (Sundaram et al. 2010).
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in to_pixels(frames)]
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)

    def between(one: np.ndarray, other: np.ndarray) -> Tensor:
        empty = np.zeros((*one.shape, 2), dtype=np.float32)
        return torch.from_numpy(estimator.calc(one, other, empty)).permute(2, 0, 1).clone()

    height, width = frames.shape[2:]
    if len(frames) < 2:
        return Motion(torch.zeros(0, 2, height, width), torch.zeros(0, height, width, dtype=torch.bool), "DIS flow")
    back = torch.stack([between(grey[i + 1], grey[i]) for i in range(len(grey) - 1)])
    forth = torch.stack([between(grey[i], grey[i + 1]) for i in range(len(grey) - 1)])
    returned = _sampled(forth, back)
    lengths = back.square().sum(dim=1) + returned.square().sum(dim=1)
    cancels = (back + returned).square().sum(dim=1) <= 0.01 * lengths + 0.5
    return Motion(back, cancels & _inside(back), "DIS flow")


def warp(frames: Tensor, motion: Motion) -> Tensor:
    """``f c H W`` -> ``f-1 c H W``: each frame but the last, brought to the next one's place (bilinear; edges repeat)."""
    return _sampled(frames[:-1], motion.flow)


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
    """``n 2 H W`` -> ``n H W``: whether the place of origin lies in the picture, with a hundredth of a pixel's grace."""
    height, width = flow.shape[2:]
    x, y = (_grid(height, width) + flow).unbind(dim=1)
    grace = 0.01
    return (x >= -grace) & (x <= width - 1 + grace) & (y >= -grace) & (y <= height - 1 + grace)
