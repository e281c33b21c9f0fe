"""Where the source object stands, frame by frame, and what is behind it (METHOD 1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from tave.reference.cutout import MatteError
from tave.reference.motion import agreed, moved
from tave.reference.regions import Box, box_of, largest, largest_over_time, no_specks, without_holes, without_thin
from tave.video.frames import from_pixels, to_pixels

_SHOWN = 3  # frames that have to show what is behind the object
_UNLIKE = 0.16  # of a range of 2: how far a pixel must be from the bare background to be none of it
_EDGE = 0.02  # of the frame's height: how far around the source object its colours may reach


class Stance(NamedTuple):
    """How the source object stands, frame by frame: `f` each, pixels."""

    bottoms: np.ndarray
    middles: np.ndarray
    heights: np.ndarray


@dataclass(frozen=True)
class Site:
    """Where the source object stands, frame by frame, and the clip without it; found once for any number of targets.

    frames `f 3 H W`: filled where the object was. region `f 1 H W` in {0, 1}: what is to be replaced: the object as most frames
    have it, and what else the mask holds that is apart from it. path: `f 2`, how far the object went, pixels right and down
    (:func:`moved`). seen: `f` bool, whether it is there.
    """

    frames: Tensor
    region: Tensor
    stance: Stance
    path: np.ndarray
    seen: np.ndarray


def find_site(frames: Tensor, mask: Tensor) -> Site | None:
    """The place of the largest piece of ``mask`` over time, and frames without it (METHOD 1).

    That piece is filled with the temporal median of its unmasked pixels, where there are none by inpainting.
    How it moves, its own pixels tell. Its size is a line over time, by the median of the slopes between frames, so that a
    region that is a few cells more or less in one frame doesn't make the target pulse.

    Args:
        frames, mask: the clip `f 3 H W` in [-1, 1] and the source object `f 1 H W`, 1 = it.

    Returns:
        None if the mask is empty.
    """
    if frames.shape[0] != mask.shape[0] or frames.shape[2:] != mask.shape[2:]:
        raise MatteError(f"mask {tuple(mask.shape)} and clip {tuple(frames.shape)} must agree in frames and size")
    masked = mask[:, 0].numpy() > 0.5
    if not masked.any():
        return None
    masked |= _standing_out(frames, masked)
    regions, boxes = _regions(masked)
    seen = _seen(regions)
    path = moved(frames, regions, boxes, seen)
    elsewhere = masked & ~_grown(regions)
    stance = _stance(boxes, regions.sum((1, 2)), path, seen, *masked.shape[1:])
    centres = np.stack([stance.middles, stance.bottoms - stance.heights / 2], 1)
    regions, boxes = _regions(agreed(masked, centres, stance.heights, seen))
    seen = _seen(regions)
    covered = _hulls(regions)
    hidden = _grown(masked | covered)
    filled = torch.stack([_fill(frames, hidden, region, index) for index, region in enumerate(_grown(covered))])
    stance = _stance(boxes, regions.sum((1, 2)), path, seen, *masked.shape[1:])
    return Site(filled, torch.from_numpy(regions | elsewhere)[:, None].to(mask), stance, path, seen)


def _standing_out(frames: Tensor, masked: np.ndarray) -> np.ndarray:
    """What around ``masked`` `f H W` differs from a background that stands still, alike; nothing where the camera moves.

    By its colours a tyre is road. But in most frames there is no tyre in its place, which shows how the road looks there.
    """
    hidden, clip = _grown(masked), frames.float().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of pixels that no frame shows
        bare = np.nanmedian(np.where(hidden[:, None], np.nan, clip), axis=0)
    known = (~hidden).sum(0) >= min(_SHOWN, len(clip))
    unlike = np.where(known, np.nan_to_num(np.abs(clip - bare).max(1)), 0.0)
    near = _grown(masked, 4)
    still = unlike[:, known][~near[:, known]]
    if not len(still) or np.quantile(still, 0.95) > _UNLIKE / 2:
        return np.zeros_like(masked)
    return (unlike > _UNLIKE) & near


def _regions(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest piece over time of `f H W` bool, frame by frame, and the boxes around it `f 4`.

    What a lamp-post parts is one piece, and so is a bus whose windows aren't its colour.
    """
    track = largest_over_time(_grown(masked, 2)) & masked
    regions = np.stack([_region(masked, track, index) for index in range(len(masked))])
    return regions, np.array([_box(regions, index) for index in range(len(regions))])


def _region(masked: np.ndarray, track: np.ndarray, index: int) -> np.ndarray:
    """The source object's pixels at frame ``index``, `H W` bool; ``track`` is its `largest_over_time`."""
    if track[index].any():
        return without_holes(track[index])
    # fast objects don't overlap themselves from frame to frame: there the track is torn
    return without_holes(largest(masked[index])) if masked[index].any() else masked[index]


def _box(regions: np.ndarray, index: int) -> Box:
    """Around the object at frame ``index``, without what is as thin as a mark on the road; where there is none, the nearest."""
    times = np.nonzero(regions.any((1, 2)))[0]
    region = regions[times[np.abs(times - index).argmin()]]
    thick = without_thin(region, max(1, round(_EDGE / 2 * len(region))))
    return box_of(thick if thick.any() else region)


def _hulls(regions: np.ndarray) -> np.ndarray:
    """`f H W` bool with what lies between an object's parts: where a hole in it is filled from, there must be nothing of it."""
    hulls = np.zeros(regions.shape, np.uint8)
    for hull, region in zip(hulls, regions, strict=True):
        if region.any():
            cv2.fillConvexPoly(hull, cv2.convexHull(np.argwhere(region)[:, ::-1].astype(np.int32)), 1)
    return hulls > 0


def _seen(regions: np.ndarray) -> np.ndarray:
    """In which frames of `f H W` bool the object is, and not a speck: `f` bool."""
    return no_specks(regions.sum((1, 2)))


def _grown(planes: np.ndarray, times: int = 1) -> np.ndarray:
    """`f H W` bool with a margin: a pixel at the object's edge holds some of it, and so does the codec's block around that."""
    side = 2 * max(1, round(times * _EDGE * planes.shape[1])) + 1
    return np.stack([cv2.dilate(plane.astype(np.uint8), np.ones((side, side), np.uint8)) for plane in planes]) > 0


def _stance(boxes: np.ndarray, areas: np.ndarray, path: np.ndarray, seen: np.ndarray, height: int, width: int) -> Stance:
    """Bottom lines, middles and heights over time, `f` each, of boxes `f 4` that ride on ``path`` `f 2`.

    Each edge is where most of the frames have it that ``seen`` `f` the object and don't cut it off there.
    """
    top, bottom, left, right = boxes.T
    tall = (top > 0) & (bottom < height)
    sound = next(known for known in (seen & tall & (left > 0) & (right < width), seen & tall, seen) if known.any())
    grown = np.maximum(1.0, _line(np.sqrt(areas), sound))  # a region's edges end at pixels, its area tells parts of one
    heights = np.maximum(1.0, grown * np.median(((bottom - top) / grown)[sound]))
    bottoms = path[:, 1] + heights / 2  # told from its middle, from which a growing object grows
    bottoms += _edge(bottom - bottoms, seen, bottom < height, np.max)
    ends = _edge(left - path[:, 0], seen, left > 0, np.min), _edge(right - path[:, 0], seen, right < width, np.max)
    return Stance(bottoms, path[:, 0] + sum(ends) / 2, heights)


def _edge(at: np.ndarray, seen: np.ndarray, free: np.ndarray, farthest: Callable[[np.ndarray], float]) -> float:
    """Where an edge ``at`` `f` is: the median of the frames that show it, else as far as any of them shows the object."""
    return float(np.median(at[seen & free]) if (seen & free).any() else farthest(at[seen]))


def _line(values: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """A line through ``values`` `f` over time that only ``sound`` frames decide: medians of slopes and levels (Theil 1950)."""
    times = np.nonzero(sound)[0]
    slopes = [(values[b] - values[a]) / (b - a) for a, b in combinations(times, 2)]
    slope = float(np.median(slopes)) if slopes else 0.0
    return np.median(values[times] - slope * times) + slope * np.arange(len(values))


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
        inpainted = cv2.inpaint(to_pixels(torch.from_numpy(picture)), unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        picture[:, unknown] = from_pixels(inpainted).numpy()[:, unknown]
    return torch.from_numpy(picture)
