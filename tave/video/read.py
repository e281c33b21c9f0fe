"""Read a video file, or a folder of numbered pictures, as a clip."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import numpy as np
import torch
from torch import Tensor

from tave.config import ReadOptions
from tave.scratch import Scratch, Spool
from tave.video.colour import over
from tave.video.decode import Filters, Picture, pictures, shown_pixels
from tave.video.frames import Clip, Origin, VideoError, centre, fit_frames, from_bytes, to_bytes
from tave.video.image import read_pixels, refuse_missing, silent_errors
from tave.video.probe import Stored, decord_agrees, open_video, reading, shown_frames, video_stream
from tave.video.view import View, frame_size, whole_view

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FOLDER_RATE = Fraction(8)  # frames/s of a folder of pictures, which has none of its own
_MASK_NAME = re.compile(r"(^|[^a-z])(masks?|mattes?|alpha)([^a-z]|$)", re.IGNORECASE)


class Frame(NamedTuple):
    """A chosen frame as a player shows it: ``pixels`` `H W c` uint8, and its time in seconds of the file's clock."""

    pixels: np.ndarray
    time: Fraction


class Reader(NamedTuple):
    """An open clip. ``frames`` decodes the chosen ones as they are asked for; ``origin`` has no times yet."""

    origin: Origin
    frames: Iterator[Frame]


def read_clip(
    path: str | Path, options: ReadOptions | None = None, view: View | None = None, scratch: Scratch = Scratch()
) -> Clip:
    """Read a video file, or a folder of numbered pictures, as frames of one size, which lie in ``scratch``.

    ``view``: the part of its frames to read, in whole pixels; None: all of them, as ``options.fit`` says.

    Frame i is the i-th picture that a player shows, in its orientation, pixel shape and colours (docs/clips.md); where
    the frame rate varies, ``origin.times`` has the times. ``fps`` is the file's average rate divided by the stride.

    Raises:
        VideoError: the path is no readable clip, or has fewer frames than requested.
    """
    options = options or ReadOptions()
    path = Path(path).expanduser()
    frames, times = Spool(scratch), []
    with open_clip(path, options) as (origin, reader):
        if view == whole_view(origin.size, options):
            view = None
        for pixels, time in reader:
            pixels = over(pixels, options.backdrop) if pixels.shape[2] == 4 else pixels
            frames.append(sized(pixels, path, options, view))
            times.append(time)
    sizes = {f"{width}x{height}" for _, height, width in frames.shapes}
    if len(sizes) > 1:
        raise VideoError(f"{path}: its frames differ in size ({', '.join(sorted(sizes))}); set width and height")
    coded = frames.tensor()
    height, width = coded.shape[-2:]
    view = view or whole_view(origin.size, options)
    notes = (*origin.notes, *_cut_notes(origin, options, len(frames), (width, height), view))
    origin = replace(origin, times=tuple(times), notes=notes)
    decoded = scratch.of(lambda span: from_bytes(coded[span]), len(coded))
    return Clip(decoded, float(origin.rate) / options.stride, origin, view)


@contextmanager
def open_clip(path: Path, options: ReadOptions) -> Iterator[Reader]:
    """The chosen frames of a clip, decoded one by one, at the size that a player shows.

    Raises :class:`VideoError`: at once if it is no readable clip, at the end for fewer frames than requested.
    """
    if path.is_dir():
        yield _open_folder(path, options)
    else:
        refuse_missing(path)
        with open_video(path) as container:
            yield _open_file(path, container, options)


def shown_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a clip's frames as a player shows them. Raises :class:`VideoError` like :func:`read_clip`."""
    with open_clip(Path(path).expanduser(), ReadOptions()) as (origin, _):
        return origin.size


def _open_file(path: Path, container: av.container.InputContainer, options: ReadOptions) -> Reader:
    with reading(path):
        stream, notes = video_stream(path, container)
        decoded = pictures(path, container, stream)
        first = next(decoded, None)
        if first is None:
            raise VideoError(f"{path}: has no frames; export the clip again")
        stored = Stored.of(first.frame, stream, first.interlaced)
        origin = Origin(
            path,
            stored.shown,
            (),
            stream.average_rate or stream.guessed_rate or FOLDER_RATE,
            shown_frames(stream),
            stored,
            bool(container.streams.audio),
            (*notes, *_left_out(container, options), *stored.notes),
        )
        fast = decord_agrees(path, stream, stored)
    return Reader(origin, _file_frames(origin, options, stream, chain([first], decoded), fast))


def _left_out(container: av.container.InputContainer, options: ReadOptions) -> list[str]:
    """What the edited clip won't have of the file's further streams."""
    sounds, notes = len(container.streams.audio), []
    if sounds > 1 and options.audio == "keep":
        notes.append(f"one of its {sounds} sound tracks is kept")
    return notes + (["its subtitles are left out"] if container.streams.subtitles else [])


def _file_frames(
    origin: Origin, options: ReadOptions, stream: av.VideoStream, decoded: Iterator[Picture], fast: bool
) -> Iterator[Frame]:
    """The chosen frames: decord's where it reads the file alike, the reference reader's where it fails."""
    base = stream.time_base or Fraction(1, 1000)
    given, complete = (yield from _by_decord(origin, options, base)) if fast else (0, False)
    if complete:
        _refuse_short(origin.path, options, given, origin.total or 0)
        return
    seen, taken, filters = 0, 0, Filters(base)
    with reading(origin.path):
        while options.frames is None or taken < options.frames:
            picture = next(decoded, None)
            if picture is None:
                break
            if options.wants(seen):
                taken += 1
                if taken > given:
                    stored = Stored.of(picture.frame, stream, picture.interlaced)
                    yield Frame(shown_pixels(picture.frame, stored, origin.size, filters), picture.tick * base)
            seen += 1
    _refuse_short(origin.path, options, taken, seen)


def _by_decord(origin: Origin, options: ReadOptions, base: Fraction) -> Generator[Frame, None, tuple[int, bool]]:
    """Frames by decord until it fails or ends; returns how many, and whether those are all. Its errors tell nothing."""
    given = 0
    try:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        with silent_errors():
            reader = decord.VideoReader(str(origin.path), num_threads=1)  # str: a Path is refused
        if len(reader) != origin.total:
            return given, False
        for index in filter(options.wants, range(len(reader))):
            pixels, seconds = reader[index].asnumpy(), reader.get_frame_timestamp(index)[0]
            if pixels.shape != (*origin.size[::-1], 3):
                return given, False
            yield Frame(pixels, round(float(seconds) / base) * base)
            given += 1
    except Exception:  # no wheel for this machine, its library doesn't load, or damage
        return given, False
    return given, True


def _refuse_short(path: Path, options: ReadOptions, possible: int, count: int) -> None:
    """Raise :class:`VideoError` if only ``possible`` of the requested frames are among the ``count`` of the file."""
    requested = options.frames or 1
    if possible >= requested:
        return
    if options.start >= count:
        raise VideoError(
            f"{path}: has {count} frames, so video.start={options.start} is past its end; set it below {count}"
        )
    needed = options.start + (requested - 1) * options.stride + 1
    raise VideoError(
        f"{path}: has {count} frames, but video.frames={requested} with start={options.start} and "
        f"stride={options.stride} needs {needed}; set video.frames to {possible} or less, or lower start or stride"
    )


def _open_folder(path: Path, options: ReadOptions) -> Reader:
    files, left_out = picture_files(path)
    chosen = [file for index, file in enumerate(files) if options.wants(index)]
    _refuse_short(path, options, len(chosen), len(files))
    height, width = read_pixels(chosen[0]).shape[:2]
    names = ", ".join(file.name for file in left_out[:2]) + (", ..." if len(left_out) > 2 else "")
    notes = (f"{len(left_out)} pictures are left out, masks by their names ({names})",) if left_out else ()
    origin = Origin(path, (width, height), (), FOLDER_RATE, len(files), notes=notes)
    times = (index / FOLDER_RATE for index in range(len(files)) if options.wants(index))
    return Reader(origin, (Frame(read_pixels(file), time) for file, time in zip(chosen, times, strict=True)))


def picture_files(path: Path, masks: bool = False) -> tuple[list[Path], list[Path]]:
    """The numbered pictures of a folder in order, and those that are left out.

    Where some names say mask or matte and some don't, a clip is made of the others, ``masks`` of those.
    """
    files = [file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
    if not files:
        raise VideoError(f"{path}: is a folder without pictures; give a video file or a folder of numbered pictures")
    named = sorted(file for file in files if bool(_MASK_NAME.search(file.stem)) == masks)
    left_out = sorted({*files} - {*named}) if named else []
    files = named or files
    numbers = {file: [int(number) for number in re.findall(r"\d+", file.stem)] for file in files}
    if unnumbered := [file.name for file in files if not numbers[file]]:
        raise VideoError(f"{path}: {min(unnumbered)} has no number in its name; number the pictures in order")
    files.sort(key=lambda file: (numbers[file], file.name))
    for one, other in pairwise(files):
        if numbers[one] == numbers[other]:
            raise VideoError(
                f"{path}: {one.name} and {other.name} have the same number; keep one picture for each frame there"
            )
    return files, left_out


def sized(pixels: np.ndarray, path: Path, options: ReadOptions, view: View | None = None) -> Tensor:
    """One decoded frame `H W 3` uint8 at the requested size, or the ``view`` of it with as many pixels, `3 h w`."""
    height, width = pixels.shape[:2]
    if options.width is None and options.height is None and min(width, height) < options.multiple:
        raise VideoError(
            f"{path}: is {width}x{height}, smaller than a block of {options.multiple} pixels; set width and height"
        )
    size = frame_size((width, height), options)
    if view is not None:
        pixels, size = view.cut(pixels), view.size(size, options.multiple)
    frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if options.width is None and options.height is None:
        return centre(frame, *size).contiguous()
    if size == (frame.shape[2], frame.shape[1]):
        return frame.contiguous()
    return to_bytes(fit_frames(from_bytes(frame[None]), *size, "stretch" if view else options.fit)[0])


def _cut_notes(origin: Origin, options: ReadOptions, count: int, size: tuple[int, int], view: View) -> list[str]:
    """What the chosen frames, size and sound leave out of the file, for the user."""
    notes = []
    rate, total = float(origin.rate), origin.total
    if total is not None and options.frames is not None and count < total:
        every = f", one in {options.stride}" if options.stride > 1 else ""
        spans = f"{count * options.stride / rate:.2f} of {total / rate:.2f} s"
        notes.append(f"{count} of {total} frames are read{every} ({spans})")
    elif total is None and options.frames is not None:
        notes.append(f"{count} frames are read ({count * options.stride / rate:.2f} s), any others left out")
    elif options.start and options.frames is None:
        notes.append(f"{options.start} frames are left out before the first that is read")
    if options.stride > 1:
        notes.append(f"{rate / options.stride:.4g} instead of {rate:.4g} frames/s")
    if seen := _seen(origin.size, size, view, options):
        notes.append(seen)
    if origin.audio and options.audio == "drop":
        notes.append("its sound is left out")
    return notes


def _seen(shown: tuple[int, int], size: tuple[int, int], view: View, options: ReadOptions) -> str | None:
    """Which part of frames of the size ``shown`` is edited, and at which ``size``; None for all, at their own."""
    if (0, 0, *shown) == view == (0, 0, *size):
        return None
    whole, part, at = (f"{round(width)}x{round(height)}" for width, height in (shown, view[2:], size))
    if view[2:] == shown:
        return f"its {whole} is edited at {at}"
    if view != whole_view(shown, options):
        return f"of its {whole} the {part} around the object is edited, at {at}"
    if options.width is None and options.height is None:
        return f"of its {whole} the middle {part} is edited, in blocks of {options.multiple} pixels"
    if abs(shown[0] / size[0] * size[1] - shown[1]) < 1:
        return f"its {whole} is edited at {at}"
    if options.fit == "crop":
        return f"of its {whole} the middle {part} is edited, at {at}"
    return f"its {whole} is edited at {at}, " + (
        "which stretches it" if options.fit == "stretch" else "with black bars"
    )
