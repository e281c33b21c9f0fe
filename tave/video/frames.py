"""Clips and pictures in memory, their 8-bit form, and resizing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tave.config import choice, within

if TYPE_CHECKING:
    from tave.video.probe import Stored
    from tave.video.view import View


class VideoError(ValueError):
    """A file or a clip that can't be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Origin:
    """The file that a clip was read from, for writing it back and for saying what was left out of it.

    ``size``: width, height as a player shows them, before the frames were brought to their size. ``times``: seconds of
    each frame that was read, on the file's own clock. ``rate``: frames per second of the file, on average. ``total``:
    frames in the file, None where its header doesn't tell. ``stored``: None for a folder of pictures. ``notes``: what
    was left out, cropped or converted.
    """

    path: Path
    size: tuple[int, int]
    times: tuple[Fraction, ...]
    rate: Fraction
    total: int | None = None
    stored: Stored | None = None
    audio: bool = False
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What :meth:`recorded` needs, for JSON."""
        plain = {key: getattr(self, key) for key in ("size", "total", "audio", "notes")}
        return {"path": str(self.path), "times": [*map(str, self.times)], "rate": str(self.rate), **plain}

    @staticmethod
    def recorded(at: Path, record: Any) -> Origin | None:
        """The origin of a :meth:`record` in the file ``at``, without how the pictures are stored; None if it has none.

        Raises :class:`VideoError` for anything else.
        """
        if record is None:
            return None
        try:
            width, height = map(int, record["size"])
            times, rate = tuple(map(_fraction, record["times"])), _fraction(record["rate"])
            if rate <= 0:
                raise ValueError("no frame rate")
            total = None if record["total"] is None else int(record["total"])
            more = total, None, bool(record["audio"]), tuple(map(str, record["notes"]))
            return Origin(Path(str(record["path"])), (width, height), times, rate, *more)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise VideoError(f"{at}: its origin can't be read: tune again with tave.train") from error

    @property
    def summary(self) -> str | None:
        """All notes in one line."""
        return f"{self.path}: {'; '.join(self.notes)}" if self.notes else None


@dataclass(frozen=True)
class Clip:
    """``frames`` `f 3 H W` float32 in [-1, 1], and the rate ``fps`` at which they play at true speed.

    ``origin``: the file that they were read from, if any; ``view``: which part of its frames they show.
    """

    frames: Tensor
    fps: float
    origin: Origin | None = None
    view: View | None = None


def _fraction(text: Any) -> Fraction:
    """A fraction as ``str`` writes it: of others, such as 1e999999999, the conversion alone takes for ever."""
    if not (isinstance(text, str) and re.fullmatch(r"-?\d{1,30}(/\d{1,30})?", text, re.ASCII)):
        raise ValueError(f"no fraction: {str(text)[:40]}")
    return Fraction(text)


class Image4(NamedTuple):
    """``rgb`` `3 H W` float32 in [-1, 1]; ``alpha`` `1 H W` in [0, 1], None if opaque throughout."""

    rgb: Tensor
    alpha: Tensor | None


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order as text: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def to_bytes(frames: Tensor) -> Tensor:
    """[-1, 1] -> uint8 of the same shape, rounded to nearest."""
    return ((frames.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], the inverse of :func:`to_bytes`."""
    return pixels.float() / 127.5 - 1


def to_pixels(frames: Tensor) -> np.ndarray:
    """`... 3 H W` in [-1, 1] -> `... H W 3` uint8, the layout of OpenCV, Pillow and PyAV."""
    return to_bytes(frames).movedim(-3, -1).contiguous().numpy()


def from_pixels(pixels: np.ndarray) -> Tensor:
    """`... H W c` uint8 -> `... c H W` float32 in [-1, 1], the inverse of :func:`to_pixels`."""
    return from_bytes(torch.from_numpy(pixels).movedim(-1, -3))


def fit_frames(frames: Tensor, width: int, height: int, fit: str = "crop") -> Tensor:
    """Resize ``frames`` `f 3 H W` in [-1, 1] to ``height`` x ``width``; unchanged to the bit if they have that size.

    Args:
        fit: crop (scale to cover, cut the centre) | stretch (ignore the aspect ratio) | pad (scale to contain, black
            bars). Resampling is bicubic with antialiasing, clamped to [-1, 1].
    """
    choice("fit", fit, ("crop", "stretch", "pad"))
    within("width", width, 1, 16_384)
    within("height", height, 1, 16_384)
    old_height, old_width = frames.shape[-2:]
    (new_width, new_height), (left, top) = placement((old_width, old_height), (width, height), fit)
    if (new_height, new_width) != (old_height, old_width):
        frames = functional.interpolate(
            frames, (new_height, new_width), mode="bicubic", antialias=True, align_corners=False
        ).clamp(-1, 1)
    if fit == "pad":
        around = (-left, width - new_width + left, -top, height - new_height + top)
        return functional.pad(frames, around, value=-1.0)
    return centre(frames, width, height)


def placement(old: tuple[int, int], new: tuple[int, int], fit: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """How frames of the size ``old`` (width, height) fill the size ``new``: the size to which they are scaled, and
    where the upper left corner of ``new`` lies in that; negative where ``fit=pad`` adds bars.
    """
    if fit == "stretch":
        return new, (0, 0)
    scales = [to / size for to, size in zip(new, old, strict=True)]
    scale, outer = (max(scales), max) if fit == "crop" else (min(scales), min)
    width, height = (outer(to, max(1, round(size * scale))) for to, size in zip(new, old, strict=True))
    if fit == "pad":
        return (width, height), (-((new[0] - width) // 2), -((new[1] - height) // 2))
    return (width, height), ((width - new[0]) // 2, (height - new[1]) // 2)


def centre(frames: Tensor, width: int, height: int) -> Tensor:
    """The central ``height`` x ``width`` of frames `... H W`, which are at least that large."""
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]
