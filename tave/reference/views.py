"""What the image encoder sees of the target: as it is, on plain grey, or set into a source frame.

The encoder returns one vector for a whole picture, so the target image's background counts as much as its object.
Pictures are `3 H W` in [-1, 1], mattes and masks in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.config import ReferenceOptions, choice
from tave.reference.cutout import matte
from tave.regions import box_of, grown
from tave.scratch import Scratch
from tave.video.frames import from_pixels, to_pixels

MARGIN = 0.1  # grey around the object in `neutral`, as a share of its longer side
RIM = 0.02  # of the frame's height: anti-aliasing and chroma subsampling carry the old object's colours this far
FRAMES = ("middle", "first", "per_frame")


@dataclass(frozen=True)
class TargetImage:
    """A picture of the target ``3 H W`` in [-1, 1], with its alpha or a given matte ``1 H W`` in [0, 1], if any."""

    rgb: Tensor
    alpha: Tensor | None = None
    matte: Tensor | None = None


@dataclass(frozen=True)
class Reference:
    """What is shown of one target image in one pass.

    ``pictures``: `1 3 H W` or `f 3 H W` each, averaged as embeddings; none for words alone. ``matte``: `1 H W`, None
    where nothing was cut out. ``note``: a warning, or "".
    """

    pictures: tuple[Tensor, ...]
    matte: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where the source object is. ``frames`` `f 3 H W`: inpainted there. ``boxes`` `f 4`: top, bottom, left, right."""

    frames: Tensor
    boxes: Tensor


def source_frames(frames: Tensor, frame: str = "middle") -> Tensor:
    """The frames of the clip `f 3 H W` that show the source object: `1 3 H W`, or all of them (per_frame)."""
    return frames[frame_indices(len(frames), frame)]


def frame_indices(count: int, frame: str = "middle") -> list[int]:
    """The indices that ``middle`` (the later one of two), ``first`` or ``per_frame`` selects of ``count`` frames."""
    choice("reference.frame", frame, FRAMES)
    return {"middle": [count // 2], "first": [0], "per_frame": list(range(count))}[frame]


def first_pass(image: TargetImage, options: ReferenceOptions) -> Reference:
    """The reference before the place is known: ``as_is`` the picture, ``none`` nothing, else the object on grey.

    Raises MatteError if there is no matte as requested.
    """
    if options.mode == "none":
        return Reference(())
    if options.mode == "as_is":
        return Reference((image.rgb[None],))
    cut = matte(image.rgb, image.alpha, image.matte, options.matte)
    whole = options.matte in ("auto", "colour") and bool((cut > 0.5).all())
    note = "no object stands out from the target image's border, so the whole picture is the target: give video.matte"
    return Reference((neutral(image.rgb, cut)[None],), cut, note if whole else "")


def second_pass(
    first: Reference, image: TargetImage, place: Place, options: ReferenceOptions, scratch: Scratch = Scratch()
) -> Reference:
    """``in_context``: the object in the old one's place; ``joint``: that and the picture as it is. In ``scratch``."""
    assert first.matte is not None
    rgb, cut = image.rgb, first.matte
    if options.heading == "mirrored":
        rgb, cut = rgb.flip(-1), cut.flip(-1)
    indices = frame_indices(len(place.frames), options.frame)
    looks = options.height_scale, options.feather
    shown = scratch.of(lambda span: torch.stack([put(place, i, rgb, cut, *looks) for i in indices[span]]), len(indices))
    return replace(first, pictures=(shown, image.rgb[None]) if options.mode == "joint" else (shown,))


def neutral(rgb: Tensor, cut: Tensor) -> Tensor:
    """The object on plain grey: ``rgb`` `3 H W` and matte ``cut`` `1 H W` -> `3 S S`.

    A square around the object, its longer side enlarged by a tenth at either end; grey is 0, the middle of the range.
    """
    box = box_of(cut[0].numpy() > 0.5)
    side = max(box.bottom - box.top, box.right - box.left)
    side += 2 * math.ceil(MARGIN * side)
    top, left = (box.top + box.bottom - side) // 2, (box.left + box.right - side) // 2
    height, width = rgb.shape[1:]
    # Negative padding crops: one call both cuts the square out and fills what lies outside the picture.
    return functional.pad(rgb * cut, (-left, left + side - width, -top, top + side - height))


def find_place(frames: Tensor, region: Tensor, scratch: Scratch = Scratch()) -> Place | None:
    """The box of ``region`` in each frame, and the frames without what is in it; None for an empty region.

    Boxes follow the region frame by frame, smoothed by a running median of three; frames without a region take the
    nearest box. All of the region counts, so a pair of objects is one place. The region is filled by inpainting (Telea
    2004) within its own frame, which also holds where the camera moves.

    Args:
        frames: the clip `f 3 H W` in [-1, 1]. region: the source object `f 1 H W`, 1 = object.
        scratch: where the filled frames are kept.
    """
    masks = region[:, 0].cpu().numpy() > 0.5
    times = np.nonzero(masks.any((1, 2)))[0]
    if not len(times):
        return None
    nearest = [masks[times[np.abs(times - i).argmin()]] for i in range(len(masks))]
    boxes = np.array([box_of(plane) for plane in nearest], dtype=np.float64)
    padded = np.concatenate([boxes[:1], boxes, boxes[-1:]])
    smoothed = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    reach = max(1, round(RIM * masks.shape[1]))

    def filled(span: slice) -> Tensor:
        holes = grown(masks[span], reach).astype(np.uint8)
        pictures = zip(to_pixels(frames[span]), holes, strict=True)
        return torch.stack([from_pixels(cv2.inpaint(*each, reach + 1, cv2.INPAINT_TELEA)) for each in pictures])

    return Place(scratch.of(filled, len(frames)), torch.from_numpy(smoothed))


def put(place: Place, index: int, rgb: Tensor, cut: Tensor, height_scale: float, feather: float) -> Tensor:
    """Frame ``index`` of the place with the target in it, `3 H W`: on the box's bottom line, centred, cropped at the
    edge.

    Args:
        rgb, cut: the target image `3 h w` in [-1, 1] and its matte `1 h w` in [0, 1].
        height_scale: the target's height as a multiple of the box's.
        feather: standard deviation of the edge's blending, as a share of the target's height.
    """
    top, bottom, left, right = place.boxes[index].tolist()
    height = max(1, round((bottom - top) * height_scale))
    box = box_of(cut[0].numpy() > 0.5)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    width = max(1, round((box.right - box.left) * height / (box.bottom - box.top)))
    # Colour times alpha is averaged: else the target's own background bleeds into its edge.
    layers = torch.cat([(rgb[:, rows, columns] + 1) * cut[:, rows, columns], cut[:, rows, columns]])[None]
    layer = functional.interpolate(layers, (height, width), mode="bilinear", antialias=True)[0]
    down, across = round(bottom) - height, round((left + right - width) / 2)
    tall, wide = place.frames.shape[-2:]
    layer = functional.pad(layer, (across, wide - across - width, down, tall - down - height))
    alpha = layer[3:].clamp(0, 1)
    soft = torch.minimum(alpha, _blurred(alpha, feather * height))
    colours = (layer[:3] / alpha.clamp(min=1e-4) - 1).clamp(-1, 1)
    return soft * colours + (1 - soft) * place.frames[index]


def _blurred(alpha: Tensor, deviation: float) -> Tensor:
    if deviation < 0.1:  # less than a tenth of a pixel is no blur
        return alpha
    around = math.ceil(3 * deviation)
    padded = np.pad(alpha[0].numpy(), around, mode="edge")  # an object at the frame's edge continues beyond it
    return torch.from_numpy(cv2.GaussianBlur(padded, (0, 0), deviation)[around:-around, around:-around].copy())[None]
