"""Read masks in the forms that people have: white, alpha, soft grey, object numbers, colours (docs/clips.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tave.config import ReadOptions
from tave.video.decode import pictures as decoded_pictures
from tave.video.frames import VideoError, centre, fit_frames, ranges
from tave.video.image import grey_levels, open_picture, refuse_missing
from tave.video.probe import open_video, reading, video_stream
from tave.video.read import PICTURES, open_clip, picture_files
from tave.video.view import View, whole_view

HALF = 128  # of 255: where a soft mask ends
MOST_OF_FRAME = 0.5  # share of the frame above which a mask is questioned
_SINGLE = (*PICTURES, ".gif")
_MOST_NUMBERS = 64  # grey levels below this, and so many colours, are object numbers
_VOID = 255  # marks pixels that belong to no object in VOC's and DAVIS's palette
_COLOURED = 48  # levels between the channels of a pixel that is no grey after a video codec


@dataclass(frozen=True)
class MaskRequest:
    """Which mask, and for which frames. ``name``: the option, for messages. ``count`` frames of ``size`` (width,
    height), read from a clip with ``cut``, which showed ``source`` (width, height).

    ``object``: the number of the only object that is inside; ``inverted``: black is inside.
    """

    path: Path
    count: int
    size: tuple[int, int]
    cut: ReadOptions
    name: str = "video.mask"
    source: tuple[int, int] | None = None
    object: int | None = None
    inverted: bool = False


class Masks(NamedTuple):
    """``inside`` `f 1 H W` float32 in {0, 1}, and what the user should know of them."""

    inside: Tensor
    notes: list[str]


class _Plane(NamedTuple):
    """A mask picture as stored: ``pixels`` `H W` if they are grey, else `H W 3`, uint8; where it has some, ``alpha``
    and palette indices ``numbers`` `H W`, which are object numbers if any picture of the mask is ``numbered``.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    numbers: np.ndarray | None = None
    numbered: bool = False


def read_masks(request: MaskRequest, view: View | None = None) -> Masks:
    """The masks of the clip's chosen frames, 1 inside. ``view``: the part of its frames that they show.

    A file or folder has a mask for every chosen frame, or for every frame of the clip, or one picture for all.

    Raises:
        VideoError: in one line, for what can't be read, has another number of frames, lacks the object, or is empty.
    """
    path, where = request.path.expanduser(), f"{request.name}={request.path}"
    planes, notes = _planes(request, path)
    inside = _Reading(where, request.object, exact=path.is_dir() or path.suffix.lower() in _SINGLE).inside(
        planes, notes
    )
    if request.inverted:
        inside = [~each for each in inside]
    sizes = {each.shape for each in inside}
    height, width = next(iter(sizes))
    if len(sizes) > 1:
        raise VideoError(f"{where}: its pictures differ in size; give masks of one size")
    if (width, height) not in (request.size, request.source):
        notes.append(f"its {width}x{height} are brought to the clip's {'x'.join(map(str, request.size))}")
    masks = torch.stack([_placed(each, request, view) for each in inside])
    if len(masks) == 1 < request.count:
        masks = masks.expand(request.count, -1, -1)
        notes.append("its one picture is used for all frames")
    if not masks.any():
        remedy = "leave out video.mask_inverted" if request.inverted else "make them white where to edit"
        raise VideoError(f"{where}: all {len(masks)} masks are empty; {remedy}")
    share = float(masks.float().mean())
    if share > MOST_OF_FRAME:
        undo = "drop" if request.inverted else "set"
        remedy = f"{undo} {request.name}_inverted=true" if request.name.endswith("mask") else "invert it"
        notes.append(f"it covers {share:.0%} of the frame; if that is the background, {remedy}")
    if empty := [index for index, each in enumerate(masks) if not each.any()]:
        notes.append(f"it is empty in frame {ranges(empty)}: there the clip comes back as it was")
    return Masks(masks.float()[:, None], [f"{where}: {note}" for note in notes])


# ---- files -> planes -------------------------------------------------------------------------------------------------


def _planes(request: MaskRequest, path: Path) -> tuple[list[_Plane], list[str]]:
    """The pictures that belong to the clip's frames, and notes."""
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files, _ = picture_files(path, masks=True) if path.is_dir() else ([path], [])
        chosen = _chosen(request, len(files))
        return [_picture_plane(files[index]) for index in chosen], []
    refuse_missing(path)
    with open_video(path) as container, reading(path):
        count = sum(1 for _ in decoded_pictures(path, container, video_stream(path, container)[0]))
    chosen = {*_chosen(request, count)}
    with open_clip(path, ReadOptions(frames=None, multiple=1)) as (origin, frames):
        found = [_frame_plane(frame.pixels) for index, frame in enumerate(frames) if index in chosen]
    return found, [note for note in origin.notes if "sound" not in note]


def _chosen(request: MaskRequest, count: int) -> Sequence[int]:
    """Which of ``count`` masks belong to the clip's frames."""
    if count in (1, request.count):
        return range(count)
    chosen = [index for index in range(count) if request.cut.wants(index)]
    if len(chosen) != request.count:
        width, height = request.size
        raise VideoError(
            f"{request.name}={request.path}: {count} masks for a clip of {request.count} frames of {width}x{height}; "
            "give one for each chosen frame, one for each frame of the whole clip, or one picture"
        )
    return chosen


def _picture_plane(path: Path) -> _Plane:
    image = open_picture(path)
    if image.mode[0] in "IF":
        raw = np.asarray(image)
        small = image.mode != "F" and raw.min(initial=0) >= 0 and raw.max(initial=0) < _MOST_NUMBERS
        return _Plane((raw if small else np.clip(grey_levels(image, path) + 0.5, 0, 255)).astype(np.uint8))
    transparent = "A" in image.getbands() or "transparency" in image.info
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if transparent else None
    pixels = np.asarray(image.convert("RGB"))
    grey = bool((pixels.max(axis=2) == pixels.min(axis=2)).all())
    numbers = np.asarray(image) if image.mode == "P" else None
    return _Plane(pixels[..., 0] if grey else pixels, alpha, numbers, _numbers_objects(image, grey))


def _numbers_objects(image: Image.Image, grey: bool) -> bool:
    """Whether the indices of a palette picture are object numbers: 0 is black, and the others are VOC's or no greys."""
    palette = np.array(image.getpalette() or [], np.uint8)
    palette = palette[: len(palette) // 3 * 3].reshape(-1, 3)
    if image.mode != "P" or not len(palette) or palette[0].any():
        return False
    first = min(len(palette), 22)
    return not grey or (first > 7 and np.array_equal(palette[:first], _voc_palette()[:first]))


def _frame_plane(pixels: np.ndarray) -> _Plane:
    """A frame of a video, whose codec shifts colours a little."""
    rgb, alpha = pixels[..., :3].astype(np.int16), pixels[..., 3] if pixels.shape[2] == 4 else None
    coloured = (rgb.max(axis=2) - rgb.min(axis=2) > _COLOURED).mean() > 1e-3
    return _Plane(pixels[..., :3] if coloured else rgb.mean(axis=2).round().astype(np.uint8), alpha)


# ---- planes -> inside ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """Decides what a mask's values mean, from all of its pictures. ``exact``: no codec has shifted them."""

    where: str
    object: int | None
    exact: bool

    def inside(self, planes: list[_Plane], notes: list[str]) -> list[np.ndarray]:
        """`H W` bool for each picture; adds to ``notes``."""
        if any(plane.numbered for plane in planes):
            return self._objects([_indices(plane) for plane in planes], notes)
        if (alphas := _varying_alpha(planes)) is not None:
            return self._soft(alphas, notes)
        if (numbers := self._numbers(planes, notes)) is not None:
            return self._objects(numbers, notes)
        if any(plane.pixels.ndim == 3 for plane in planes):
            self._refuse_object("after a video codec its colours are not exact, so objects can't be told apart")
            notes.append("its coloured pixels are inside")
            levels = [plane.pixels for plane in planes]
            return [each.max(axis=2) >= HALF // 2 if each.ndim == 3 else each >= HALF for each in levels]
        return self._soft([plane.pixels for plane in planes], notes)

    def _soft(self, levels: list[np.ndarray], notes: list[str]) -> list[np.ndarray]:
        self._refuse_object("it has no object numbers")
        inside = [each >= HALF for each in levels]
        soft = sum(int(((each > 25) & (each < 230)).sum()) for each in levels)
        if soft > 0.2 * sum(int(each.sum()) for each in inside):
            notes.append(f"it is soft: inside is where it is at least half white, {HALF} of 255")
        return inside

    def _refuse_object(self, why: str) -> None:
        if self.object is not None:
            raise VideoError(f"{self.where}: {why}; leave out video.object, or give palette pictures (PNG)")

    def _numbers(self, planes: list[_Plane], notes: list[str]) -> list[np.ndarray] | None:
        """The object number of each pixel; None if the values are no numbers."""
        if not self.exact:
            return None
        if all(plane.pixels.ndim == 2 for plane in planes):
            highest = max(int(plane.pixels.max(initial=0)) for plane in planes)
            return [plane.pixels for plane in planes] if 0 < highest < _MOST_NUMBERS else None
        packed = [_packed(plane.pixels) for plane in planes]
        colours = sorted({int(value) for each in packed for value in np.unique(each)} - {0})
        if len(colours) > _MOST_NUMBERS:
            return None
        known = {int(code): index for index, code in enumerate(_packed(_voc_palette()[None])[0]) if index}
        if not {*colours} <= {*known}:
            known = {code: index for index, code in enumerate(colours, 1)}
            names = ", ".join(f"{index} = ({c >> 16},{c >> 8 & 255},{c & 255})" for c, index in known.items())
            notes += [f"its colours are numbered {names}"] if len(colours) > 1 else []
        numbers = [np.zeros(each.shape, np.uint8) for each in packed]
        for code in colours:
            for each, number in zip(packed, numbers, strict=True):
                number[each == code] = known[code]
        return numbers

    def _objects(self, numbers: list[np.ndarray], notes: list[str]) -> list[np.ndarray]:
        found = sorted({int(value) for each in numbers for value in np.unique(each)} - {0})
        if _VOID in found and len(found) > 1:
            found.remove(_VOID)
            notes.append(f"number {_VOID} is outside, since it marks pixels of no object")
        named = ranges(found)
        if self.object is None:
            if len(found) > 1:
                notes.append(f"it has the objects {named}, and all are inside; video.object={found[0]} would take one")
            return [np.isin(each, found) for each in numbers]
        if self.object not in found:
            raise VideoError(f"{self.where}: has no object {self.object} in these frames; it has {named or 'none'}")
        if len(found) > 1:
            notes.append(f"object {self.object} of {named} is inside")
        return [each == self.object for each in numbers]


def _indices(plane: _Plane) -> np.ndarray:
    if plane.numbers is not None:
        return plane.numbers
    return plane.pixels if plane.pixels.ndim == 2 else plane.pixels.max(axis=2)


def _varying_alpha(planes: list[_Plane]) -> list[np.ndarray] | None:
    """The alpha of each picture, if it says anything."""
    alphas = [plane.alpha for plane in planes if plane.alpha is not None]
    levels = {level for alpha in alphas for level in (int(alpha.min()), int(alpha.max()))}
    return alphas if len(alphas) == len(planes) and len(levels) > 1 else None


def _packed(rgb: np.ndarray) -> np.ndarray:
    """`... 3` uint8 -> one number for each colour."""
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[..., None], 3, axis=-1)
    wide = rgb.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _voc_palette() -> np.ndarray:
    """The 256 colours of VOC's and DAVIS's palette, `256 3`: the bits of a number, spread over the channels."""
    number, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(3):
        for channel in range(3):
            colours[:, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)


# ---- inside -> the clip's size ---------------------------------------------------------------------------------------


def _placed(mask: np.ndarray, request: MaskRequest, view: View | None) -> Tensor:
    """`H W` bool at the size of the clip's frames, cut as the clip was."""
    (width, height), inside = request.size, torch.from_numpy(mask)
    cut, source = request.cut, request.source
    if inside.shape == (height, width):
        return inside
    sides = inside.shape[::-1]
    if source is not None and sides != source and not _alike(sides, source):
        if _alike(sides, request.size):
            return _resized(inside, width, height, "stretch")  # a mask of the frames as they are edited
        inside = _resized(inside, *source, "stretch")
        sides = source
    if view is not None and source is not None and view != whole_view(source, cut):
        seen = view.scaled(sides[0] / source[0], sides[1] / source[1])
        part = torch.from_numpy(np.ascontiguousarray(seen.cut(inside.numpy().astype(np.uint8))))
        return _resized(part > 0, width, height, "stretch")
    given = bool(cut.width or cut.height)
    if not given and [side // cut.multiple * cut.multiple for side in sides] == [width, height]:
        return centre(inside, width, height)  # trimmed like the clip, not resampled
    return _resized(inside, width, height, cut.fit if given else "crop")


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes have one aspect, to a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _resized(inside: Tensor, width: int, height: int, fit: str) -> Tensor:
    return fit_frames(inside[None, None].float() * 2 - 1, width, height, fit)[0, 0] > 0
