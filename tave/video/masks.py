"""Read the masks of a clip, picture by picture, as masks of the network's frames (docs/clips.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tave.config import ReadOptions
from tave.scratch import Scratch
from tave.video.decode import pictures as decoded_pictures
from tave.video.frames import VideoError, centre, fit_frames, ranges
from tave.video.image import refuse_missing
from tave.video.mask_values import Plane, Values, frame_plane, picture_plane
from tave.video.probe import open_video, reading, video_stream
from tave.video.read import PICTURES, open_clip, picture_files
from tave.video.view import View, whole_view

MOST_OF_FRAME = 0.5  # share of the frame above which a mask is questioned
_SINGLE = (*PICTURES, ".gif")
_ROUNDING = 1e-4  # of resampling in [-1, 1]
_LIKE = 1.05  # between two aspects, of which one is then the other's


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

    @property
    def where(self) -> str:
        """The option as it was given."""
        return f"{self.name}={self.path}"


class Masks(NamedTuple):
    """``inside`` `f 1 H W` float32 in {0, 1}, what the user should know, and the box of all that is inside, in pixels
    of the clip's frames as a player shows them; None where their size isn't known.
    """

    inside: Tensor
    notes: list[str]
    box: View | None


def read_masks(request: MaskRequest, view: View | None = None, scratch: Scratch = Scratch()) -> Masks:
    """The masks of the clip's chosen frames, 1 inside, which lie in ``scratch``. ``view``: the part of its frames that
    they show.

    A file or folder has a mask for every chosen frame, or for every frame of the clip, or one picture for all. It is
    read picture by picture: once to see which values occur, once to decide by them.

    Raises:
        VideoError: in one line, for what can't be read, has another number of frames or another shape, lacks the
            object, is empty, or lies outside of the view.
    """
    path, where = request.path.expanduser(), request.where
    planes, notes = _planes(request, path)
    values = Values(exact=path.is_dir() or path.suffix.lower() in _SINGLE)
    for plane in planes():
        values.add(plane)
    is_inside, said = values.meaning(where, request.object)
    if len(values.sizes) > 1:
        raise VideoError(f"{where}: its pictures differ in size; give masks of one size")
    placing = _Placing.of(request, next(iter(values.sizes)), view)
    width, height = request.size
    masks, extent, count = scratch.empty(request.count, 1, height, width), _Extent(), 0
    for count, plane in enumerate(planes(), 1):
        inside = is_inside(plane) != request.inverted
        extent.add(inside, placing.seen(inside))
        masks[count - 1, 0] = placing.placed(inside)
    notes += [*said, *placing.notes]
    if count < request.count:
        for index in range(1, request.count):
            masks[index] = masks[0]
        notes.append("its one picture is used for all frames")
    notes += _questions(request, extent, placing, count)
    if empty := [index for index, each in enumerate(masks) if not each.any()]:
        notes.append(f"it is empty in frame {ranges(empty)}: there the clip comes back as it was")
    return Masks(masks, [f"{where}: {note}" for note in notes], placing.box(extent))


def _questions(request: MaskRequest, extent: _Extent, placing: _Placing, count: int) -> list[str]:
    """What may be wrong with masks of this extent. Raises :class:`VideoError` where there is nothing to edit."""
    where = request.where
    if not extent.inside:
        remedy = "leave out video.mask_inverted" if request.inverted else "draw white where to edit"
        what = f"all {count} masks are" if count > 1 else "the mask is"
        raise VideoError(f"{where}: {what} empty; {remedy}")
    if not extent.seen:
        raise VideoError(f"{where}: lies outside of the part of the frame that is edited, {placing.remedy}")
    notes = []
    if (outside := 1 - extent.seen / extent.inside) >= 0.005:
        notes.append(f"{outside:.0%} of it lies outside of the part of the frame that is edited, {placing.remedy}")
    if (share := extent.inside / extent.total) > MOST_OF_FRAME:
        undo = "drop" if request.inverted else "set"
        remedy = f"{undo} {request.name}_inverted=true" if request.name.endswith("mask") else "invert it"
        notes.append(f"it covers {share:.0%} of the frame; if that is the background, {remedy}")
    return notes


# ---- files -> planes -------------------------------------------------------------------------------------------------


def _planes(request: MaskRequest, path: Path) -> tuple[Callable[[], Iterator[Plane]], list[str]]:
    """What reads the pictures that belong to the clip's frames, one by one, as often as it is called; and notes."""
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files, _ = picture_files(path, masks=True) if path.is_dir() else ([path], [])
        wanted = _chosen(request, len(files))
        return lambda: (picture_plane(files[index]) for index in wanted), []
    refuse_missing(path)
    with open_video(path) as container, reading(path):
        count = sum(1 for _ in decoded_pictures(path, container, video_stream(path, container)[0]))
    chosen, whole = {*_chosen(request, count)}, ReadOptions(frames=None, multiple=1)

    def planes() -> Iterator[Plane]:
        with open_clip(path, whole) as (_, frames):
            for index, frame in enumerate(frames):
                if index in chosen:
                    yield frame_plane(frame.pixels)

    with open_clip(path, whole) as (origin, _):
        return planes, [note for note in origin.notes if "sound" not in note and "subtitles" not in note]


def _chosen(request: MaskRequest, count: int) -> Sequence[int]:
    """Which of ``count`` masks belong to the clip's frames."""
    if count in (1, request.count):
        return range(count)
    chosen = [index for index in range(count) if request.cut.wants(index)]
    if len(chosen) != request.count:
        width, height = request.size
        raise VideoError(
            f"{request.where}: {count} masks for a clip of {request.count} frames of {width}x{height}; "
            "give one for each chosen frame, one for each frame of the whole clip, or one picture"
        )
    return chosen


# ---- inside -> the clip's size ---------------------------------------------------------------------------------------


class _Extent:
    """Where masks `H W` bool of one size lie: pixels in all, inside, and inside of the part that is seen."""

    def __init__(self) -> None:
        self.total, self.inside, self.seen = 0, 0, 0
        self._rows, self._columns = np.zeros(1, bool), np.zeros(1, bool)

    def add(self, inside: np.ndarray, seen: np.ndarray) -> None:
        self.total += inside.size
        self.inside += inside.sum()
        self.seen += seen.sum()
        self._rows, self._columns = self._rows | inside.any(1), self._columns | inside.any(0)

    @property
    def box(self) -> View:
        """The smallest box around all that is inside, in pixels of the masks."""
        (left, *_, right), (top, *_, bottom) = (np.nonzero(np.diff(line, prepend=False, append=False))[0].tolist()
                                                for line in (self._columns, self._rows))  # fmt: skip
        return View(left, top, right - left, bottom - top)


class _Placing(NamedTuple):
    """Brings masks of the size ``sides`` (width, height) to the frames of the ``request``.

    They are ``own`` masks of those frames, or else of the clip's frames as shown, of which ``box`` is edited; None:
    what ``video.fit`` chooses.
    """

    request: MaskRequest
    sides: tuple[int, int]
    own: bool
    view: View | None

    @staticmethod
    def of(request: MaskRequest, sides: tuple[int, int], view: View | None) -> _Placing:
        """Raises :class:`VideoError` for masks of another shape than the frames."""
        source, size = request.source, request.size
        if source is None:
            return _Placing(request, sides, sides == size, None)
        if view == whole_view(source, request.cut):
            view = None
        if view is not None:
            own = sides == size and not _like(sides, source)
        else:
            own = sides == size or (_alike(sides, size) and not _alike(sides, source))
        if not own and not _like(sides, source):
            (wide, tall), (width, height) = sides, source
            raise VideoError(
                f"{request.where}: is {wide}x{tall}, of another shape than the clip's frames; "
                f"give masks of {width}x{height}, or smaller or larger ones of that shape"
            )
        return _Placing(request, sides, own, view)

    @property
    def _part(self) -> View | None:
        """The part of the frame that is edited, in the clip's pixels; None where its size isn't known."""
        source = self.request.source
        return source and (self.view or whole_view(source, self.request.cut))

    @property
    def notes(self) -> list[str]:
        """What the user should know of it."""
        (wide, tall), (width, height) = self.sides, self.request.size
        if self.own and self.view is not None:
            return [f"its {wide}x{tall} are the size of the part that is edited, so they are taken as masks of that"]
        if self.view is not None and self.sides == self.request.size != self.request.source:
            return [f"its {wide}x{tall} are taken as masks of the whole frame, not of the part that is edited"]
        if self.sides in (self.request.size, self.request.source):
            return []
        return [f"its {wide}x{tall} are brought to the clip's {width}x{height}"]

    @property
    def remedy(self) -> str:
        """Which part is edited, and how to edit more."""
        assert self._part is not None and self.request.source is not None
        left, top, width, height = map(round, self._part)
        part = f"{width}x{height} at {left}, {top} of its {'x'.join(map(str, self.request.source))}"
        if self.view is not None:
            return f"{part}; tune again with this mask, or with video.crop=frame"
        return f"{part}; tune with video.{'crop=object' if self.request.cut.crop == 'frame' else 'fit=pad'}"

    def seen(self, inside: np.ndarray) -> np.ndarray:
        """The part of a mask `H W` that is edited."""
        if self.own or self._part is None or self.request.source is None:
            return inside
        across, down = (side / whole for side, whole in zip(self.sides, self.request.source, strict=True))
        return self._part.scaled(across, down).cut(inside)

    def box(self, extent: _Extent) -> View | None:
        """The box of the masks of this ``extent`` in the clip's pixels, None where their size isn't known."""
        if self._part is None or self.request.source is None:
            return None
        shown, box = self._part if self.own else View(0, 0, *self.request.source), extent.box
        across, down = shown.width / self.sides[0], shown.height / self.sides[1]
        left, top, width, height = box.scaled(across, down)
        return View(shown.left + left, shown.top + top, width, height)

    def placed(self, inside: np.ndarray) -> Tensor:
        """A mask `H W` bool at the size of the clip's frames, cut as the clip was."""
        (width, height), cut, source = self.request.size, self.request.cut, self.request.source
        if self.own or self.view is not None:
            return _resized(torch.from_numpy(np.ascontiguousarray(self.seen(inside))), width, height, "stretch")
        mask, sides = torch.from_numpy(inside), self.sides
        if source is not None and not _alike(sides, source):
            mask, sides = _resized(mask, *source, "stretch"), source
        given = bool(cut.width or cut.height)
        if not given and [side // cut.multiple * cut.multiple for side in sides] == [width, height]:
            return centre(mask, width, height)  # trimmed like the clip, not resampled
        return _resized(mask, width, height, cut.fit if given else "crop")


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes have one aspect, to a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _like(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes have nearly one aspect, as after rounding to blocks."""
    return _alike(one, other) or 1 / _LIKE < one[0] * other[1] / (one[1] * other[0]) < _LIKE


def _resized(inside: Tensor, width: int, height: int, fit: str) -> Tensor:
    """`H W` bool at another size: where half of a pixel is inside, and in any case where most of one is."""
    share = fit_frames(inside[None, None].float() * 2 - 1, width, height, fit)[0, 0]
    most = float(share.max())
    return share >= most if -1 + _ROUNDING < most <= 0 else share > 0
