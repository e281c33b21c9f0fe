"""The reference reader: a video file's pictures as a player shows them, in its order and at its times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import numpy as np
from av.error import FFmpegError
from av.filter import Graph

from tave.video.colour import hdr_to_sdr
from tave.video.frames import VideoError
from tave.video.probe import Stored, decoder

Chain = tuple[tuple[str, str], ...]  # filters of FFmpeg with their arguments
_DEINTERLACE: Chain = (("bwdif", "mode=send_frame:deint=interlaced"),)  # one picture for each frame


class Picture(NamedTuple):
    """A decoded frame and its time in units of the stream's time base."""

    frame: av.VideoFrame
    tick: int
    interlaced: bool  # before it was deinterlaced


class Filters:
    """Frames through filters of FFmpeg; the graph is built again where a frame's size, format or the filters change."""

    def __init__(self, time_base: Fraction | None) -> None:
        self.time_base = time_base or Fraction(1, 1000)
        self._graph: Graph | None = None
        self._key: tuple[object, ...] = ()

    def push(self, frame: av.VideoFrame | None, chain: Chain = ()) -> list[av.VideoFrame]:
        """The frames that are done once ``frame`` is known; None ends them."""
        key = () if frame is None else (*_shape(frame), chain)
        done = []
        if key != self._key:
            done = self._drained(None)
            self._graph, self._key = None if frame is None else self._built(frame, chain), key
        return done + ([] if frame is None else self._drained(frame))

    def _built(self, frame: av.VideoFrame, chain: Chain) -> Graph:
        graph = Graph()
        shape = ":".join(f"{name}={value}" for name, value in _shape(frame))
        source = graph.add("buffer", f"{shape}:time_base={self.time_base}:pixel_aspect=1/1")
        graph.link_nodes(source, *(graph.add(name, text) for name, text in chain), graph.add("buffersink"))
        graph.configure()
        return graph

    def _drained(self, frame: av.VideoFrame | None) -> list[av.VideoFrame]:
        done = []
        if self._graph is not None:
            self._graph.vpush(frame)
            while True:
                try:
                    done.append(self._graph.vpull())
                except (BlockingIOError, EOFError):
                    break
        return done


def _shape(frame: av.VideoFrame) -> tuple[tuple[str, object], ...]:
    """What FFmpeg's source of a graph has to know. Without the colours, scaling would convert to BT.601."""
    size, pixels = f"{frame.width}x{frame.height}", frame.format.name
    colours = ("colorspace", int(frame.colorspace)), ("range", int(frame.color_range))
    return ("video_size", size), ("pix_fmt", pixels), *colours


def pictures(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Picture]:
    """All frames of ``stream`` that a player shows, in its order; interlaced ones are deinterlaced.

    What can't be decoded before the first frame (a recording that begins between two key frames) is skipped. Raises
    :class:`VideoError` where the stream is damaged after that.
    """
    fields, waiting = Filters(stream.time_base), deque[Picture]()
    interlaced = False
    for picture in _decoded(path, container, stream):
        interlaced |= picture.interlaced
        if not interlaced:
            yield picture
            continue
        waiting.append(picture)
        for frame in fields.push(picture.frame, _DEINTERLACE):
            yield waiting.popleft()._replace(frame=frame)
    for frame in fields.push(None):
        yield waiting.popleft()._replace(frame=frame)


def _decoded(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Picture]:
    context, packets = decoder(stream), container.demux(stream)
    rate, base = stream.average_rate or stream.guessed_rate, stream.time_base
    step = max(1, round(1 / (rate * base))) if rate and base else 1
    seen, tick, failed, ended = 0, -step, None, False
    while not ended:
        frames = []
        try:
            packet = next(packets, None)
            ended = packet is None
            if packet is not None:
                frames = context.decode(packet if packet.size else None)
        except FFmpegError as error:
            if seen:
                raise VideoError(
                    f"{path}: damaged after {seen} frames; export it again, or request only frames before that"
                ) from error
            failed = error
        for frame in frames:
            tick = tick + step if frame.pts is None else frame.pts
            yield Picture(frame, tick, frame.interlaced_frame)
            seen += 1
    if not seen and failed is not None:
        raise failed


def shown_pixels(frame: av.VideoFrame, stored: Stored, size: tuple[int, int], filters: Filters) -> np.ndarray:
    """`H W 3` uint8 (with alpha `H W 4`) of a frame that was ``stored`` so, in the ``size`` that a player shows.

    ``filters`` scale and convert; one object serves all frames of a clip.
    """
    width, height = size[::-1] if stored.turn.transpose else size
    rgb, hdr = frame.format.is_rgb, stored.colour.hdr
    pixel_format = ("gbrp16le" if rgb else "yuv444p16le") if hdr else "rgba" if stored.alpha else "rgb24"
    (scaled,) = filters.push(frame, (("scale", f"{width}:{height}"), ("format", pixel_format)))[-1:]
    pixels = scaled.to_ndarray()
    return stored.turn.apply(hdr_to_sdr(pixels, stored.colour, rgb) if hdr else pixels)
