"""Odd video files with a known answer, drawn by PyAV alone: each frame carries its number, and a red box that moves."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.container
import numpy as np

WIDTH, HEIGHT, COUNT, RATE = 160, 96, 24, 12
RED, SKY = (220, 40, 30), (60, 120, 180)
HDR = {"pq": 16, "hlg": 18}  # codes of ITU-T H.273


def drawn(number: int) -> np.ndarray:
    """`H W 3` uint8: 5 bits as squares of 16 px on top, a red box at x = 10 + 4 i, flat sky."""
    frame = np.full((HEIGHT, WIDTH, 3), SKY, np.uint8)
    for bit in range(5):
        frame[:16, 16 * bit : 16 * bit + 16] = 255 if number >> bit & 1 else 0
    frame[40:72, 10 + 4 * number : 50 + 4 * number] = RED
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number in the squares of a frame `H W 3`, at any scale."""
    unit = frame.shape[0] / HEIGHT, frame.shape[1] / WIDTH
    cells = [frame[int(8 * unit[0]), int((16 * bit + 8) * unit[1])].mean() > 128 for bit in range(5)]
    return sum(1 << bit for bit, cell in enumerate(cells) if cell)


def patches(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours of the red box and of the sky, away from edges."""
    scale, number = frame.shape[1] / WIDTH, number_of(frame)
    left, right = round((16 + 4 * number) * scale), round((44 + 4 * number) * scale)
    return frame[48:64, left:right].mean((0, 1)), frame[80:92, 4:-4].mean((0, 1))


@dataclass(frozen=True)
class Setting:
    """How to encode. ``tags``: attributes of the encoder; ``ticks``: times in 1/120 s."""

    codec: str = "libx264"
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "4", "bf": "2"})
    tags: dict[str, Any] = field(default_factory=dict)
    matrix: int | None = None  # of the conversion to Y'CbCr; None: 5, BT.601
    full: bool = False
    ticks: list[int] | None = None


def write(path: Path, setting: Setting, pictures: list[np.ndarray] | None = None, audio: bool = False) -> None:
    """Encode ``pictures`` (all that are drawn, by default) as RGB, RGBA or ready frames."""
    pictures = [drawn(i) for i in range(COUNT)] if pictures is None else pictures
    with av.open(str(path), "w") as file:
        stream = cast(av.VideoStream, file.add_stream(setting.codec, rate=RATE))
        sound = file.add_stream("aac", rate=44_100) if audio else None
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = setting.pixels, {**setting.options}
        context = stream.codec_context
        context.time_base = Fraction(1, 120 if setting.ticks else RATE)
        for name, value in setting.tags.items():
            setattr(context, name, value)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24" if picture.shape[2] == 3 else "rgba")
            if setting.pixels not in ("rgb24", "rgba", "rgb8", "pal8", "argb"):
                to = {"dst_colorspace": setting.matrix or 5, "dst_color_range": 2 if setting.full else 1}
                frame = frame.reformat(format=setting.pixels, interpolation="LANCZOS", **to)
            frame.pts = 10 * i if setting.ticks is None else setting.ticks[i]
            frame.time_base = Fraction(1, 120)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            _tone(file, cast(av.AudioStream, sound))


def _tone(file: av.container.OutputContainer, stream: av.AudioStream) -> None:
    samples = np.sin(np.arange(2 * 44_100) / 20).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
    frame.sample_rate = 44_100
    file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def set_matrix(path: Path, kind: str) -> None:
    """Set the display matrix of an mp4 as phones do, in its track's header."""
    data, one = bytearray(path.read_bytes()), 1 << 16
    at = data.index(struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = {
        "rot90": (0, 1, -1, 0), "rot180": (-1, 0, 0, -1), "rot270": (0, -1, 1, 0), "hflip": (-1, 0, 0, 1),
        "vflip": (1, 0, 0, -1), "transpose": (0, 1, 1, 0), "transverse": (0, -1, -1, 0),
    }[kind]  # fmt: skip
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


SHOWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # what a player makes of the stored picture
    "rot90": lambda frame: np.rot90(frame, -1),
    "rot180": lambda frame: np.rot90(frame, 2),
    "rot270": lambda frame: np.rot90(frame),
    "hflip": np.fliplr,
    "vflip": np.flipud,
    "transpose": lambda frame: frame.swapaxes(0, 1),
    "transverse": lambda frame: np.rot90(frame, 2).swapaxes(0, 1),
}


def remux(path: Path, source: Path, start: int = 0, shift: int = 0, twice: bool = False) -> None:
    """Copy packets, in decoding order from ``start``, with times moved by ``shift`` frames; ``twice``: two streams."""
    with av.open(str(source)) as given, av.open(str(path), "w") as file:
        stream = given.streams.video[0]
        outs = [file.add_stream_from_template(stream) for _ in range(1 + twice)]
        assert stream.time_base is not None
        move = round(shift / RATE / stream.time_base)
        for packet in list(given.demux(stream))[start:]:
            if packet.dts is None or packet.pts is None:
                continue
            data = bytes(packet)
            for out in outs:
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.time_base = packet.pts + move, packet.dts + move, packet.time_base
                copy.is_keyframe = packet.is_keyframe
                copy.stream = out
                file.mux(copy)


def hdr_picture(number: int, transfer: str) -> np.ndarray:
    """The drawn frame as 10-bit BT.2020 Y'CbCr 4:2:0 of limited range, SDR white at 203 nits: planes one below another.

    By the formulas of BT.2100 and BT.2087; HLG's system gamma on each channel, as zscale does.
    """
    rgb = drawn(number) / 255
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_wide = [[0.627404, 0.329283, 0.043313], [0.069097, 0.919541, 0.011362], [0.016391, 0.088013, 0.895595]]
    nits = 203 * light @ np.transpose(to_wide)
    if transfer == "pq":
        y = (nits / 10_000) ** (2610 / 16384)
        coded = ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    else:
        scene = (nits / 1000) ** (1 / 1.2)
        upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        coded = np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)
    luma = coded @ np.array([0.2627, 0.6780, 0.0593])
    chroma = (coded[..., 2] - luma) / 1.8814, (coded[..., 0] - luma) / 1.4746
    halved = [plane.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3)) for plane in chroma]
    planes = [64 + 876 * luma, *(512 + 896 * plane for plane in halved)]
    return np.concatenate([plane.round().astype(np.uint16).ravel() for plane in planes]).reshape(-1, WIDTH)


def write_hdr(path: Path, transfer: str) -> None:
    with av.open(str(path), "w") as file:
        stream = cast(av.VideoStream, file.add_stream("libx265", rate=RATE))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p10le"
        stream.options = {"crf": "4", "x265-params": "log-level=none"}
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_range = 9, 9, 1
        context.color_trc = HDR[transfer]
        for i in range(COUNT):
            frame = av.VideoFrame.from_ndarray(hdr_picture(i, transfer), "yuv420p10le")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
