"""The part of the frame that the network sees with ``video.crop=object``: one box around all places of the object."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from tave.cache import key_of
from tave.config import VideoOptions
from tave.inflate import frames_of
from tave.pipeline import Pipeline, Target
from tave.regions import box_of
from tave.video import Clip, View, frame_size, spread

log = logging.getLogger(__name__)

# Around the object's path, share of its longer side: the new object may be larger, and the network needs to see where
# it stands.
MARGIN = 0.2


def overview(shown: tuple[int, int], video: VideoOptions) -> View | None:
    """The whole of frames that are ``shown`` in this size, to look for the object in; None where the network sees all
    of their pixels anyway, or is asked to.
    """
    size = frame_size(shown, video)
    crop = video.crop == "object" and (size[0] < shown[0] or size[1] < shown[1])
    return View(0, 0, *shown) if crop else None


def find_box(
    pipeline: Pipeline, clip: Clip, video: VideoOptions, targets: Mapping[str, Target], *, look: bool = True
) -> View | None:
    """The box of all places that the ``targets``, by their keys, change in the ``clip``, which shows the whole frame.

    Masks that are given tell; else a first look with the network before its tuning, at frames all over the clip. None
    where there is nothing, and a line says so. Raises :class:`LookupError` where it would have to ``look`` and may not.
    """
    assert clip.origin is not None
    # a box may show just what the overview does: maps from before the tuning are none of those after it
    pipeline.cache.scope = key_of(pipeline.cache.scope, "first look")
    shown, boxes = clip.origin.size, list[View]()
    some = spread(len(clip.frames), frames_of(pipeline.denoiser.unet) or 1)
    for key, target in targets.items():
        if target.box is not None:
            boxes.append(target.box)
            continue
        if not look and not pipeline.cache.holds("place", [key, some]):
            raise LookupError("the place of the object isn't known")
        locate = partial(pipeline.locate, replace(clip, frames=clip.frames[some]), video.source_prompt, target)
        with pipeline.progress.counted_as("locating"):
            place = pipeline.cache.tensors("place", [key, some], lambda locate=locate: {"region": locate()})
        region = (place["region"] > 0).any(0)[0].numpy()
        if region.any():
            top, bottom, left, right = box_of(region)
            across, down = shown[0] / region.shape[1], shown[1] / region.shape[0]
            boxes.append(View(left, top, right - left, bottom - top).scaled(across, down))
    if not boxes:
        why = "nothing to edit was found in the whole frame" if targets else "no edit is requested yet"
        log.warning("video.crop=object: %s, so video.crop=frame is taken; video.mask gives the place", why)
        return None
    return box_around(boxes, shown, frame_size(shown, video))


def box_around(boxes: Sequence[View], shown: tuple[int, int], size: tuple[int, int]) -> View:
    """The box of ``boxes`` in frames that are ``shown`` in this size, with a margin.

    It lies inside the frame and has at least as many pixels as the network's ``size``, and its aspect; only a path
    that no such box covers gets one of another aspect.
    """
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    needed = right - left, bottom - top
    least, most = (
        max(n / s for n, s in zip(needed, size, strict=True)),
        min(w / s for w, s in zip(shown, size, strict=True)),
    )
    wanted = max((n + 2 * MARGIN * max(needed)) / s for n, s in zip(needed, size, strict=True))
    scale = max(least, min(wanted, most), 1.0)
    edges = [min(whole, math.ceil(side * scale)) for side, whole in zip(size, shown, strict=True)]
    middles = (left + right) / 2, (top + bottom) / 2
    corner = (
        round(min(max(0, middle - edge / 2), whole - edge))
        for middle, edge, whole in zip(middles, edges, shown, strict=True)
    )
    return View(*map(float, corner), *map(float, edges))
