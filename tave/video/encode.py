"""Write the frames of a file, edited, as that file had them: size, shape, times, colours and sound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import av.container

from tave.files import whole_file
from tave.video.paste import Base, Footage, Opened
from tave.video.probe import open_video, reading
from tave.video.write import GENERATED

# Of every frame and block alike, so that no frame is worse than the others. Measured: docs/clips.md.
_QUANTIZER = 15
_COPIED = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # sound that an mp4 holds as it is
_H264 = "mbtree=0:ipratio=1:pbratio=1"
_HEVC = "ipratio=1:pbratio=1:pools=none:frame-threads=1:log-level=none"


def write_like(
    path: Path, opened: Opened, frames: Iterable[Base], footage: Footage, *, comment: str = GENERATED
) -> list[str]:
    """Encode ``frames`` as mp4 with the size, pixel shape, display matrix, colours and times of the ``opened`` file.

    H.264 for 8 bit, HEVC for 10. The sound of the same span is copied, unless ``video.audio=drop``. Returns what the
    user should know. Raises :class:`FileError` if it can't be written.
    """
    sound: Sound | None = None
    every, shift, last = footage.cut.stride / opened.rate, Fraction(0), None
    with (
        whole_file(path) as temporary,
        ExitStack() as inputs,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        file.metadata["comment"] = comment
        stream = _stream(file, opened, 1 / every)
        for frame, time in frames:
            if last is None:
                # The file's own clock, unless its beginning is left out: then that of the first frame.
                shift = time if footage.cut.start or time < 0 else shift
                sound = open_sound(file, footage, shift, inputs)
            at = round((time - shift) / opened.time_base)
            last = at if last is None else max(at, last + 1)  # encoders want each time once
            frame.pts, frame.time_base = last, opened.time_base
            file.mux(stream.encode(frame))
            if sound is not None:
                file.mux(sound.until(time + every))
        file.mux(stream.encode(None))
        if sound is not None and footage.cut.frames is None:
            file.mux(sound.until(math.inf))  # it may be longer than the pictures
    return [sound.note] if sound is not None and sound.note else []


def _stream(file: av.container.OutputContainer, opened: Opened, rate: Fraction) -> av.VideoStream:
    stored = opened.stored
    deep = stored.pixel_format.endswith("10le")
    stream = cast(
        av.VideoStream, file.add_stream("libx265" if deep else "libx264", rate=rate.limit_denominator(65_535))
    )
    stream.width, stream.height = stored.size
    stream.pix_fmt = stored.pixel_format
    context, colour = stream.codec_context, stored.colour
    context.thread_count = 1  # with more threads the bytes vary
    context.time_base = stream.time_base = opened.time_base
    context.sample_aspect_ratio = stored.pixel_shape
    context.colorspace, context.color_primaries, context.color_trc = colour.matrix, colour.primaries, colour.transfer
    context.color_range = 2 if colour.full else 1
    if deep:
        context.codec_tag = "hvc1"  # Apple's players take no other
        stream.options = {"x265-params": f"qp={_QUANTIZER}:{_HEVC}"}
    else:
        stream.options = {"qp": str(_QUANTIZER), "x264-params": _H264}
    if opened.matrix is not None:
        stream.set_display_matrix(opened.matrix)
    return stream


# ---- sound -----------------------------------------------------------------------------------------------------------


@dataclass
class Sound:
    """The sound of a file as packets for another one. ``note``: what the user should know of it."""

    packets: Iterator[tuple[Fraction, av.Packet]]  # with their seconds on the clock of the file that is read
    note: str | None = None
    _next: tuple[Fraction, av.Packet] | None = None

    def until(self, time: Fraction | float) -> list[av.Packet]:
        """The next packets, those that begin before ``time``."""
        due = []
        while (here := self._next or next(self.packets, None)) is not None:
            self._next = here
            if here[0] >= time:
                break
            due.append(here[1])
            self._next = None
        return due


class _Track(NamedTuple):
    """Sound that is read from ``stream`` of the file at ``path`` and written to ``out``, ``shift`` seconds earlier.

    ``begin``: the seconds from which it is wanted.
    """

    path: Path
    stream: av.AudioStream
    out: av.AudioStream
    shift: Fraction
    begin: float


def open_sound(
    file: av.container.OutputContainer, footage: Footage, shift: Fraction, inputs: ExitStack
) -> Sound | None:
    """The sound that players play with the file, from ``shift`` seconds on; None for none.

    Its packets are copied; where an mp4 can't hold them, encoded as AAC. ``inputs`` closes the file that is read.
    """
    path = footage.path.expanduser()
    if path.is_dir() or footage.cut.audio == "drop":
        return None
    stream = cast(av.AudioStream | None, inputs.enter_context(open_video(path)).streams.best("audio"))
    if stream is None or stream.codec_context is None:
        return None
    begin = float(shift) if footage.cut.start else -math.inf
    if (name := stream.codec_context.name) in _COPIED:
        return Sound(_copied(_Track(path, stream, file.add_stream_from_template(stream), shift, begin)))
    out = cast(av.AudioStream, file.add_stream("aac", rate=stream.codec_context.sample_rate))
    return Sound(_encoded(_Track(path, stream, out, shift, begin)), f"its sound ({name}) is encoded as AAC")


def _copied(track: _Track) -> Iterator[tuple[Fraction, av.Packet]]:
    base = track.stream.time_base or Fraction(1)
    with reading(track.path):
        for packet in track.stream.container.demux(track.stream):  # type: ignore[union-attr]
            if packet.pts is not None and packet.dts is not None and packet.pts * base >= track.begin:
                seconds, ticks = packet.pts * base, round(track.shift / base)
                packet.stream, packet.pts, packet.dts = track.out, packet.pts - ticks, packet.dts - ticks
                yield seconds, packet


def _encoded(track: _Track) -> Iterator[tuple[Fraction, av.Packet]]:
    base, seconds = track.stream.time_base or Fraction(1), Fraction(0)
    with reading(track.path):
        for frame in track.stream.container.decode(track.stream):  # type: ignore[union-attr]
            if frame.pts is not None and frame.pts * base >= track.begin:
                seconds = frame.pts * base
                frame.pts -= round(track.shift / base)
                yield from ((seconds, packet) for packet in track.out.encode(frame))
        yield from ((seconds, packet) for packet in track.out.encode(None))
