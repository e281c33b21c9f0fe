"""Read a video file, or a folder of numbered pictures, as a clip."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from torch import Tensor

from tave.config import ReadOptions
from tave.scratch import Scratch, Spool
from tave.video.frames import Clip, VideoError, centre, fit_frames, from_bytes, to_bytes, to_pixels
from tave.video.image import read_image, refuse_missing

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FOLDER_FPS = 8.0  # the rate of a folder of pictures, which has none of its own
_TEXT_CODECS = ("ansi", "bintext", "xbin", "idf")  # FFmpeg renders any text file as pictures of a terminal


class _Decoded(NamedTuple):
    frames: Spool  # uint8 `3 H W`, only the requested ones
    fps: float
    seen: int  # frames met in the file; all of them if it has fewer than requested


_Keep = Callable[[np.ndarray], Tensor]  # `H W 3` uint8 as decoded -> `3 H W` uint8 at its final size


def read_clip(path: str | Path, options: ReadOptions | None = None, scratch: Scratch = Scratch()) -> Clip:
    """Read a video file, or a folder of numbered pictures, as frames of one size, which lie in ``scratch``.

    Frame i is the i-th picture shown, also where the frame rate varies; ``fps`` is the file's average rate divided by
    the stride. Rotation tags (phones) are applied.

    Raises:
        VideoError: the path is no readable clip, or has fewer frames than requested.
    """
    options = options or ReadOptions()
    path = Path(path).expanduser()

    def keep(image: np.ndarray) -> Tensor:
        frame = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return _sized(frame, path, options)

    if path.is_dir():
        decoded = _read_folder(path, options, keep, Spool(scratch))
    else:
        refuse_missing(path)
        decoded = _read_file(path, options, keep, scratch)
    _refuse_short(path, options, decoded)
    sizes = {f"{width}x{height}" for _, height, width in decoded.frames.shapes}
    if len(sizes) > 1:
        raise VideoError(f"{path}: its frames differ in size ({', '.join(sorted(sizes))}); set width and height")
    pixels = decoded.frames.tensor()
    return Clip(scratch.of(lambda span: from_bytes(pixels[span]), len(pixels)), decoded.fps / options.stride)


def _refuse_short(path: Path, options: ReadOptions, decoded: _Decoded) -> None:
    count, requested = decoded.seen, options.frames or 1
    possible = len(decoded.frames)
    if possible >= requested:
        return
    if count == 0:
        raise VideoError(f"{path}: has no frames; export the clip again")
    if options.start >= count:
        raise VideoError(
            f"{path}: has {count} frames, so video.start={options.start} is past its end; set it below {count}"
        )
    needed = options.start + (requested - 1) * options.stride + 1
    raise VideoError(
        f"{path}: has {count} frames, but video.frames={requested} with start={options.start} and "
        f"stride={options.stride} needs {needed}; set video.frames to {possible} or less, or lower start or stride"
    )


def _read_file(path: Path, options: ReadOptions, keep: _Keep, scratch: Scratch) -> _Decoded:
    """Frames of one file: PyAV checks it, decord reads it if it can, else PyAV."""
    seen = 0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(path, container)
            if decoded := _read_decord(path, options, keep, Spool(scratch)):
                return decoded
            fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
            frames = Spool(scratch)
            for frame in container.decode(stream):
                if options.wants(seen):
                    image = frame.to_ndarray(format="rgb24")
                    frames.append(keep(np.rot90(image, k=round(frame.rotation / 90))))
                seen += 1
                if len(frames) == options.frames:
                    break
            return _Decoded(frames, fps, seen)
    except PermissionError as error:
        raise VideoError(f"{path}: reading is not permitted; change the file's permissions") from error
    except FFmpegError as error:
        if seen:
            raise VideoError(
                f"{path}: damaged after {seen} frames; export it again, or request only frames before that"
            ) from error
        raise VideoError(
            f"{path}: not a video that can be decoded ({error.strerror}): truncated, damaged or of another kind; "
            "export it again, for instance as H.264 mp4"
        ) from error


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams and container.streams.audio:  # an attached picture is a sound file's cover
        raise VideoError(f"{path}: has sound but no pictures; give a file with a video stream")
    if not streams or not streams[0].width:
        raise VideoError(f"{path}: has no pictures that can be decoded: truncated or damaged; export it again")
    if streams[0].codec_context.name in _TEXT_CODECS:
        raise VideoError(f"{path}: is a text file, not a video; give a clip such as an mp4")
    return streams[0]


def _read_decord(path: Path, options: ReadOptions, keep: _Keep, frames: Spool) -> _Decoded | None:
    """Frames by decord, or None where it is missing or fails (AV1, GIF, damage: its error doesn't distinguish them)."""
    try:
        import decord
    except (ImportError, OSError):  # no wheel for this machine, or its library doesn't load
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)  # str: a Path is refused
        for index in filter(options.wants, range(len(reader))):
            image = reader[index].asnumpy()
            # At widths 8, 12, 16, 24, 48 and 72 it silently takes the stride for the channels.
            if image.ndim != 3 or image.shape[-1] != 3:
                return None
            frames.append(keep(image))
        return _Decoded(frames, float(reader.get_avg_fps()), len(reader))
    except (RuntimeError, decord.DECORDError):
        return None


def _read_folder(path: Path, options: ReadOptions, keep: _Keep, frames: Spool) -> _Decoded:
    files = [file for file in path.iterdir() if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
    if not files:
        raise VideoError(f"{path}: is a folder without pictures; give a video file or a folder of numbered pictures")
    numbers = {file: [int(number) for number in re.findall(r"\d+", file.stem)] for file in files}
    if unnumbered := [file.name for file in files if not numbers[file]]:
        raise VideoError(f"{path}: {min(unnumbered)} has no number in its name; number the pictures in order")
    files.sort(key=lambda file: (numbers[file], file.name))
    for one, other in pairwise(files):
        if numbers[one] == numbers[other]:
            raise VideoError(f"{path}: {one.name} and {other.name} have the same number; keep one picture per frame")
    chosen = [file for index, file in enumerate(files) if options.wants(index)]
    for file in chosen:
        frames.append(keep(to_pixels(read_image(file).rgb)))
    return _Decoded(frames, FOLDER_FPS, len(files))


def _sized(frame: Tensor, path: Path, options: ReadOptions) -> Tensor:
    """One decoded frame `3 H W` uint8 at the requested size."""
    height, width = frame.shape[-2:]
    multiple = options.multiple
    if options.width is None and options.height is None:
        if min(width, height) < multiple:
            raise VideoError(
                f"{path}: is {width}x{height}, smaller than a block of {multiple} pixels; set width and height"
            )
        return centre(frame, width // multiple * multiple, height // multiple * multiple).contiguous()
    new_width = options.width or _nearest(width * (options.height or 0) / height, multiple)
    new_height = options.height or _nearest(height * new_width / width, multiple)
    if (new_width, new_height) == (width, height):
        return frame.contiguous()
    return to_bytes(fit_frames(from_bytes(frame[None]), new_width, new_height, options.fit)[0])


def _nearest(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
