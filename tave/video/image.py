"""Read a picture file as pixels and alpha."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tave.video.frames import Image4, VideoError, from_bytes


def refuse_missing(path: Path) -> None:
    """Raise :class:`VideoError` if there is no file at ``path``, or an empty one."""
    if not path.exists():
        raise VideoError(f"{path}: no such file; check the path (it is relative to {Path.cwd()})")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (zero bytes); copy or export it again")


def open_picture(path: Path) -> Image.Image:
    """The decoded picture, turned and mirrored by its EXIF tag; of an animation the first frame.

    Raises:
        VideoError: missing, a folder, or not a picture.
    """
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; give one picture")
    refuse_missing(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and large pictures
            with Image.open(path) as opened:
                with silent_errors() if opened.format == "TIFF" else nullcontext():
                    opened.load()
                return ImageOps.exif_transpose(opened)
    except PermissionError as error:
        raise VideoError(f"{path}: reading is not permitted; change the file's permissions") from error
    except Exception as error:  # a damaged file makes Pillow fail anywhere, with any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: not a picture that can be read ({reason}); save it again as PNG or JPEG") from error


@contextmanager
def silent_errors() -> Iterator[None]:
    """Drop what C code writes to the process's error output: libtiff and decord say there what they raise anyway."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def grey_levels(image: Image.Image, path: Path) -> np.ndarray:
    """A picture of mode I or F, `H W`, in 8-bit levels as float64: 16-bit integers, or floats in 0..1 or 0..255.

    Raises :class:`VideoError` for other numbers, whose white nobody knows.
    """
    values = np.asarray(image, dtype=np.float64)
    if image.mode != "F":
        return values / 257
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if not 0 <= low <= high <= 255:  # NaN is refused too
        raise VideoError(
            f"{path}: its numbers reach from {low:g} to {high:g}, but floats in 0..1 or 0..255 are read; scale them so"
        )
    return values * 255 if high <= 1 else values


def read_pixels(path: Path) -> np.ndarray:
    """A picture as `H W 4` uint8, RGB and straight alpha. Raises :class:`VideoError` like :func:`open_picture`."""
    image = open_picture(path)
    if image.mode[0] in "IF":  # Pillow's own conversion clips them to white or black
        image = Image.fromarray(np.clip(grey_levels(image, path) + 0.5, 0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGBA"))


def read_image(path: str | Path) -> Image4:
    """Read a picture as RGB and alpha, turned and mirrored by its EXIF tag; of an animation the first frame.

    Raises:
        VideoError: missing, a folder, or not a picture.
    """
    values = torch.from_numpy(read_pixels(Path(path).expanduser()).copy()).permute(2, 0, 1)
    alpha = values[3:].float() / 255
    # An opaque alpha channel cuts nothing out: treat it as none, so that the automatic matte is used.
    return Image4(from_bytes(values[:3]), None if bool((alpha == 1).all()) else alpha)


def read_matte(path: str | Path) -> Tensor:
    """Read a picture as a matte `1 H W` in [0, 1]: its alpha, or its brightness if it has none."""
    rgb, alpha = read_image(path)
    return alpha if alpha is not None else (rgb.mean(0, keepdim=True) + 1) / 2
