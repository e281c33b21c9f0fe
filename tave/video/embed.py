"""Clips and pictures as data URIs, for pages of one file that open from disk."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tave.video.frames import to_pixels
from tave.video.write import write_video

WEBP = 16_383  # px a side, WebP's limit
LONGEST = 512  # px of a clip's longer side in a page
SHORTEST = 256  # px up to which a small clip is enlarged by whole numbers: 4:2:0 then keeps each pixel's own colour


def _sized(frames: Tensor, longest: int, shortest: int) -> Tensor:
    height, width = frames.shape[-2:]
    side = max(height, width)
    if side > longest:
        size = [max(1, round(length * longest / side)) for length in (height, width)]
        return interpolate(frames, size, mode="bilinear", antialias=True)
    times = max(1, shortest // side)
    return frames.repeat_interleave(times, -1).repeat_interleave(times, -2)


def clip_uri(
    frames: Iterable[Tensor], fps: float, *, crf: int = 18, longest: int = LONGEST, shortest: int = SHORTEST
) -> str:
    """``frames``, each `3 H W` in [-1, 1], as H.264 in 4:2:0, which every browser plays; odd sides grow by a pixel."""

    def even(frame: Tensor) -> Tensor:
        large = _sized(frame[None].float(), longest, shortest)
        return pad(large, (0, large.shape[-1] % 2, 0, large.shape[-2] % 2), mode="replicate")[0]

    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "clip.mp4"
        write_video(at, map(even, frames), fps, crf=crf, chroma="420")
        return _uri("video/mp4", at.read_bytes())


def picture_uri(frame: Tensor, *, longest: int = LONGEST, quality: int | None = None) -> str:
    """A picture `3 H W` in [-1, 1] as WebP: lossless, or of a ``quality`` up to 100."""
    buffer = io.BytesIO()
    small = _sized(frame[None].float(), longest, 1)[0]
    Image.fromarray(to_pixels(small)).save(buffer, "WEBP", lossless=quality is None, quality=quality or 100)
    return _uri("image/webp", buffer.getvalue())


def strip_uri(frames: Tensor, *, longest: int = LONGEST, quality: int | None = None) -> str:
    """Frames `f 3 H W` one below the other, each with its longer side up to ``longest`` px, as :func:`picture_uri`."""
    small = _sized(frames.float(), max(1, min(longest, WEBP // len(frames))), 1)
    return picture_uri(torch.cat(list(small), dim=-2), longest=WEBP, quality=quality)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
