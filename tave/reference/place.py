"""Where the target object goes: on plain grey, or into a source frame where the source object is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.reference.cutout import MatteError, largest, without_holes, without_thin
from tave.reference.motion import agreed, moved

_SPECK = 0.25  # of the object's median area: what is smaller isn't the object, but a speck where it isn't seen
_SHOWN = 3  # frames that have to show what is behind the object
_UNLIKE = 0.16  # of a range of 2: how far a pixel must be from the bare background to be none of it
_EDGE = 0.02  # of the frame's height: how far around the source object its colours may reach


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


class Pose(NamedTuple):
    """How the target stands in the source object's place: as tall as it times ``height``, and turned the other way or not."""

    height: float = 1.0
    mirrored: bool = False


@dataclass(frozen=True)
class Placed:
    """The target in the source object's place, n frames: pictures `n 3 H W` in [-1, 1], and its alpha `n 1 H W` there."""

    pictures: Tensor
    alpha: Tensor


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


def no_specks(areas: np.ndarray) -> np.ndarray:
    """Which of the areas `n` are no specks beside the others, most of which are an object's: `n` bool. One must be above 0."""
    return areas >= _SPECK * np.median(areas[areas > 0])


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


def _at(layers: np.ndarray, height: float, bottom: float, middle: float, size: Sequence[int]) -> Tensor:
    """``layers`` `h w c`, h within half a pixel of ``height``, on nothing of ``size``: `c H W`. Parts of a pixel count."""
    scale = height / len(layers)
    # OpenCV's pixel n spans n - 0.5 to n + 0.5, ours n to n + 1
    right = middle - scale * layers.shape[1] / 2 + (scale - 1) / 2
    down = bottom - scale * len(layers) + (scale - 1) / 2
    moved = cv2.warpAffine(layers, np.array([[scale, 0, right], [0, scale, down]]), (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return torch.from_numpy(moved).permute(2, 0, 1).contiguous()


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


def _feathered(alpha: Tensor, deviation: float) -> Tensor:
    if deviation < 0.1:  # less than a tenth of a pixel is no blur
        return alpha
    around = math.ceil(3 * deviation)
    padded = np.pad(alpha[0].numpy(), around, mode="edge")  # what leaves the frame goes on beyond it
    blurred = cv2.GaussianBlur(padded, (0, 0), deviation)[around:-around, around:-around]
    return alpha * torch.from_numpy(np.ascontiguousarray(blurred))
