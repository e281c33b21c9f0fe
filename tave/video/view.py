"""Which part of a file's frames the network sees: from pixels of the file to pixels of the network, and back."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tave.config import ReadOptions
from tave.video.frames import VideoError, placement

SMALLEST = 32  # px of a side that can be edited


class View(NamedTuple):
    """A box in pixels of the frames as a player shows them; it may reach beyond them.

    Pixel ``u`` of ``n`` across of the network's frames is centred at ``left + (u + 0.5) * width / n - 0.5`` of the
    file's.
    """

    left: float
    top: float
    width: float
    height: float

    @staticmethod
    def recorded(at: object, record: Any) -> View | None:
        """The view in the JSON of the file ``at``; None for none. Raises :class:`VideoError` for anything else."""
        if record is None:
            return None
        try:
            view = View(*map(float, record))
            if all(map(math.isfinite, view)) and min(view.width, view.height) > 0:
                return view
        except (TypeError, ValueError):
            pass
        raise VideoError(f"{at}: its crop can't be read: tune again with tave.train")

    def scaled(self, across: float, down: float) -> View:
        """The same view of frames that are so many times as wide and high."""
        return View(self.left * across, self.top * down, self.width * across, self.height * down)

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Of pixels `H W ...` those in view, in whole pixels; one at least."""
        left, top, width, height = map(round, self)
        row, column = (min(max(0, at), side - 1) for at, side in zip((top, left), pixels.shape, strict=False))
        return pixels[row : max(row + 1, top + height), column : max(column + 1, left + width)]

    def size(self, network: tuple[int, int], multiple: int) -> tuple[int, int]:
        """Width and height of the network's frames of this view: as many pixels as in ``network``, its aspect."""
        scale = math.sqrt(network[0] * network[1] / (self.width * self.height))
        scale = max(scale, SMALLEST / min(self.width, self.height))
        return _nearest(self.width * scale, multiple), _nearest(self.height * scale, multiple)


def frame_size(shown: tuple[int, int], options: ReadOptions) -> tuple[int, int]:
    """Width and height of the network's frames for a clip of the size ``shown``."""
    multiple, (width, height) = options.multiple, shown
    if options.width is None and options.height is None:
        return width // multiple * multiple, height // multiple * multiple
    new_width = options.width or _nearest(width * (options.height or 0) / height, multiple)
    return new_width, options.height or _nearest(height * new_width / width, multiple)


def whole_view(shown: tuple[int, int], options: ReadOptions) -> View:
    """What the network sees of a clip of the size ``shown`` that is read whole, by ``video.fit``."""
    size = frame_size(shown, options)
    if options.width is None and options.height is None:  # trimmed to multiples, not resampled
        left, top = ((old - new) // 2 for old, new in zip(shown, size, strict=True))
        return View(left, top, *size)
    scaled, offset = placement(shown, size, options.fit)
    across, down = (old / new for old, new in zip(shown, scaled, strict=True))
    return View(offset[0] * across, offset[1] * down, size[0] * across, size[1] * down)


def _nearest(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
