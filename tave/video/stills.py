"""An edit as numbered pictures for compositors: its frames as players show them, and the edit's opacity in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tave.config import ReadOptions
from tave.files import writing
from tave.video.decode import Filters, shown_pixels
from tave.video.paste import Base, Opened
from tave.video.write import GENERATED


def kept_as_pictures(
    folder: Path, frames: Iterator[tuple[Base, np.ndarray]], opened: Opened, cut: ReadOptions
) -> Iterator[tuple[Base, np.ndarray]]:
    """Pass on ``frames`` with their opacity `H W`, each written by :func:`write_still` under its number in the file."""
    stored, filters = opened.stored, Filters(opened.time_base)
    width, height = stored.shown[::-1] if stored.turn.transpose else stored.shown
    for index, (base, opacity) in enumerate(frames):
        whole = cv2.resize(opacity, (width, height), interpolation=cv2.INTER_LINEAR)
        matte = stored.turn.apply(whole[..., None])
        pixels = shown_pixels(base.frame, stored, stored.shown, filters)
        write_still(folder, cut.start + index * cut.stride, pixels, matte.reshape(matte.shape[:2]))
        yield base, opacity


def write_still(folder: Path, number: int, pixels: np.ndarray, opacity: np.ndarray) -> None:
    """Write ``pixels`` `H W 3` uint8 as ``frames/NUMBER.png``, ``opacity`` `H W` in [0, 1] as ``mattes/NUMBER.png``.

    Raises :class:`FileError` where the system refuses.
    """
    text = PngInfo()
    text.add_text("Comment", GENERATED)
    for name, picture in (("frames", pixels), ("mattes", (opacity * 255 + 0.5).astype(np.uint8))):
        path = folder / name / f"{number:06d}.png"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.ascontiguousarray(picture)).save(path, "PNG", pnginfo=text, compress_level=1)
