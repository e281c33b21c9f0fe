"""The part of the frame that the network sees with ``video.crop=object``: one box around all places of the object."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from tave.config import VideoOptions
from tave.inflate import frames_of
from tave.inputs import SMALLEST
from tave.pipeline import Pipeline, Target
from tave.regions import box_of
from tave.video import Clip, View, frame_size

log = logging.getLogger(__name__)

# Around the object's path, share of its longer side: the new object may be larger, and what the network sees of the
# place around it tells it how large things are.
MARGIN = 0.25


def overview(shown: tuple[int, int], video: VideoOptions) -> VideoOptions | None:
    """How a clip that is ``shown`` in this size is read to look for the object: the whole frame in its own aspect, of
    as many pixels as the network's. None where a part of it could not be seen better than all of it.
    """
    size = frame_size(shown, video)
    if video.crop == "frame" or (size[0] >= shown[0] and size[1] >= shown[1]):
        return None
    scale = max(math.sqrt(size[0] * size[1] / (shown[0] * shown[1])), SMALLEST / min(shown))
    width, height = (max(1, round(side * scale / video.multiple)) * video.multiple for side in shown)
    return replace(video, width=width, height=height, fit="stretch")


def find_box(pipeline: Pipeline, clip: Clip, video: VideoOptions, targets: Mapping[str, Target]) -> View | None:
    """The box of all places that the ``targets``, by their keys, change in the ``clip``, which shows the whole frame.

    Masks that are given tell; else a first look with the network before its tuning, at frames all over the clip. None
    where there is nothing, and a line says so.
    """
    assert clip.origin is not None
    region = np.zeros(clip.frames.shape[-2:], bool)
    count = min(len(clip.frames), frames_of(pipeline.denoiser.unet) or 1)
    some = [round(at) for at in np.linspace(0, len(clip.frames) - 1, count)]
    for key, target in targets.items():
        found = target.region
        if found is None:
            look = partial(pipeline.locate, replace(clip, frames=clip.frames[some]), video.source_prompt, target)
            found = pipeline.cache.tensors("place", [key, some], lambda look=look: {"region": look()})["region"]
        region |= (found > 0).any(0)[0].numpy()
    box = box_around(region, clip.origin.size, frame_size(clip.origin.size, video))
    if box is None:
        why = "nothing to edit was found in the whole frame" if targets else "no edit is requested yet"
        log.warning("video.crop=object: %s, so video.crop=frame is taken; video.mask gives the place", why)
    return box


def box_around(region: np.ndarray, shown: tuple[int, int], size: tuple[int, int]) -> View | None:
    """The box of a ``region`` `H W` bool of frames ``shown`` in this size, with a margin; None for an empty region.

    It has the aspect of ``size``, the network's, and at least as many pixels; it lies inside the frame, or reaches
    beyond both of two borders where the frame is too narrow.
    """
    if not region.any():
        return None
    box, (tall, wide) = box_of(region), region.shape
    left, right = (side * shown[0] / wide for side in (box.left, box.right))
    top, bottom = (side * shown[1] / tall for side in (box.top, box.bottom))
    margin = 2 * MARGIN * max(right - left, bottom - top)
    width, height = min(shown[0], right - left + margin), min(shown[1], bottom - top + margin)
    scale = max(width / size[0], height / size[1], 1.0)
    edges = round(size[0] * scale), round(size[1] * scale)
    middles = (left + right) / 2, (top + bottom) / 2
    corner = (
        round(min(max(0, middle - edge / 2), whole - edge)) if edge <= whole else (whole - edge) // 2
        for middle, edge, whole in zip(middles, edges, shown, strict=True)
    )
    return View(*map(float, corner), *map(float, edges))
