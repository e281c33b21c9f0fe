"""Read a picture file as pixels and alpha."""

from __future__ import annotations

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


def read_image(path: str | Path) -> Image4:
    """Read a picture as RGB and alpha, rotated by its EXIF tag; of an animation the first frame.

    Raises:
        VideoError: missing, a folder, or not a picture.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; give one picture")
    refuse_missing(path)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bit to white
                wide = np.asarray(image, dtype=np.float64)
                image = Image.fromarray(np.clip(wide / 257 + 0.5, 0, 255).astype(np.uint8))
            pixels = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: not a picture that can be read ({error}); save it again as PNG or JPEG") from error
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    alpha = values[3:].float() / 255
    # An opaque alpha channel cuts nothing out: treat it as none, so that the automatic matte is used.
    return Image4(from_bytes(values[:3]), None if bool((alpha == 1).all()) else alpha)


def read_matte(path: str | Path) -> Tensor:
    """Read a picture as a matte `1 H W` in [0, 1]: its alpha, or its brightness if it has none."""
    rgb, alpha = read_image(path)
    return alpha if alpha is not None else (rgb.mean(0, keepdim=True) + 1) / 2
