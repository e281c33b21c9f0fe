"""Open a video file: which of its streams is the clip, how its pictures are stored, and who may decode it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
from av.error import FFmpegError
from av.stream import Disposition

from tave.video.colour import Colour
from tave.video.frames import VideoError
from tave.video.h264 import may_interlace
from tave.video.turn import Turn

LARGEST_SIDE = 16_384
_MOST_PIXELS = 8192 * 8192  # of a frame: a damaged header must not claim all memory
_TEXT_CODECS = ("ansi", "bintext", "xbin", "idf")  # FFmpeg renders any text file as pictures of a terminal
_PLAYLISTS = ("hls", "dash", "concat", "webm_dash_manifest", "imf", "lavfi")  # files that name other files
# FFmpeg's own decoders leave out the alpha channel of WebM.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# What decord reads as PyAV does, to the bit or nearly; tests/test_readers.py compares them.
_DECORD_FORMATS = ("yuv420p", "yuv444p", "gbrp")
_DECORD_MISREADS = (8, 12, 16, 24, 48, 72)  # widths at which it takes the stride for the channels


@dataclass(frozen=True)
class Stored:
    """How a video file stores its pictures. ``size``: width, height; ``pixel_shape``: width of a pixel by its height.

    ``pixel_format`` and ``codec`` are FFmpeg's names. All of it is the first frame's.
    """

    size: tuple[int, int]
    pixel_format: str
    codec: str
    pixel_shape: Fraction = Fraction(1)
    turn: Turn = Turn()
    colour: Colour = Colour()
    interlaced: bool = False
    alpha: bool = False

    @staticmethod
    def of(frame: av.VideoFrame, stream: av.VideoStream, interlaced: bool = False) -> Stored:
        """How the decoded ``frame`` of ``stream`` was stored."""
        shape = stream.sample_aspect_ratio or Fraction(1)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return Stored(
            size=(frame.width, frame.height),
            pixel_format=frame.format.name,
            codec=stream.codec_context.name,
            pixel_shape=shape if shape > 0 else Fraction(1),
            turn=Turn.of(bytes(matrix) if matrix is not None else None),
            colour=Colour(
                int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc), int(frame.color_range) == 2
            ),
            interlaced=interlaced,
            alpha=frame.format.has_palette or any(part.is_alpha for part in frame.format.components),
        )

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as a player shows them: turned, then stretched to square pixels like ``scale=iw*sar:ih``."""
        width, height = self.size[::-1] if self.turn.transpose else self.size
        shape = 1 / self.pixel_shape if self.turn.transpose else self.pixel_shape
        stretched = int(width * shape)
        return (stretched if 1 <= stretched <= LARGEST_SIDE else width), height

    @property
    def notes(self) -> list[str]:
        """What a reader does to the stored pictures, one line each."""
        width, height = self.shown
        turned = self.size[::-1] if self.turn.transpose else self.size
        said = [self.colour.note]
        if turned != (width, height):
            said.append(f"its pixels are not square, so {turned[0]}x{turned[1]} is read as {width}x{height}")
        if self.interlaced:
            said.append("it is interlaced, so its fields are joined to one picture a frame (bwdif)")
        return [line for line in said if line]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in the block is raised as one :class:`VideoError` that names file and remedy."""
    try:
        yield
    except VideoError:
        raise
    except PermissionError as error:
        raise VideoError(f"{path}: reading is not permitted; change the file's permissions") from error
    except Exception as error:  # a damaged file makes the library fail anywhere, with any of its exceptions
        raise VideoError(
            f"{path}: not a video that can be decoded ({_reason(error)}): truncated, damaged or of another kind; "
            "export it again, for instance as H.264 mp4"
        ) from error


@contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """The opened file. Raises :class:`VideoError` for what is no video."""
    # `file:`: a name with a colon is no protocol. The white list: a crafted file must not open others.
    options = {"protocol_whitelist": "file", "max_pixels": str(_MOST_PIXELS)}
    with reading(path):
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    with container:
        if {*container.format.name.split(",")} & {*_PLAYLISTS}:
            raise VideoError(f"{path}: is a list of other files ({container.format.name}); give the clip itself")
        yield container


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, FFmpegError) else str(error)) or type(error).__name__
    return " ".join(text.split())


def video_stream(path: Path, container: av.container.InputContainer) -> tuple[av.VideoStream, list[str]]:
    """The stream that a player shows, and lines on those that are left out.

    It is FFmpeg's choice: a default one before others, then the largest, then the first; no still of a cover.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams and container.streams.audio:
        raise VideoError(f"{path}: has sound but no pictures; give a file with a video stream")
    streams = [s for s in streams if s.codec_context is not None and s.codec_context.width]
    if not streams:
        raise VideoError(f"{path}: has no pictures that can be decoded: truncated or damaged; export it again")
    chosen = max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height, -s.index))
    if chosen.codec_context.name in _TEXT_CODECS:
        raise VideoError(f"{path}: is a text file, not a video; give a clip such as an mp4")
    others = ", ".join(f"#{s.index} ({s.width}x{s.height})" for s in streams if s is not chosen)
    which = f"stream #{chosen.index} ({chosen.width}x{chosen.height}) is read, {others} left out"
    return chosen, [which] if others else []


def decoder(stream: av.VideoStream) -> Any:
    """What decodes the stream's packets: its own context, or one that reads alpha where WebM has some."""
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return stream.codec_context
    context = av.CodecContext.create(name, "r")
    context.extradata = stream.codec_context.extradata
    return context


def shown_frames(stream: av.VideoStream) -> int | None:
    """How many frames an mp4's index lists, without those that an edit list hides; None for other files."""
    index = list(getattr(stream, "index_entries", ())) if stream.frames else []
    return sum(not entry.is_discard for entry in index) if len(index) == stream.frames > 0 else None


def decord_agrees(path: Path, stream: av.VideoStream, stored: Stored) -> bool:
    """Whether decord reads the file as PyAV does, by its header and first frame.

    A whole, plain mp4 of H.264 without fields: one entry of its index for every frame, each inside the file, none
    hidden by an edit list. decord reserves memory for as many frames as the header claims, and ends the process where
    that fails.
    """
    index = list(getattr(stream, "index_entries", ()))
    context, length = stream.codec_context, path.stat().st_size
    plain = stored == Stored(stored.size, stored.pixel_format, "h264", colour=stored.colour)
    return (
        plain
        and "mp4" in stream.container.format.name
        and len(stream.container.streams.video) == 1
        and not may_interlace(context.extradata)
        and stored.pixel_format in _DECORD_FORMATS
        and stored.size == (context.width, context.height)
        and stored.size[0] not in _DECORD_MISREADS
        and not stored.colour.hdr
        and (stream.start_time or 0) == 0
        and len(index) == stream.frames > 0
        and all(entry.size > 0 and not entry.is_discard and entry.pos + entry.size <= length for entry in index)
    )
