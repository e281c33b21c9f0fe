"""Write clips, masks and pictures: all or nothing, and the same bytes each time."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from tave.config import choice, within
from tave.files import whole_file
from tave.video.frames import VideoError, to_pixels
from tave.video.sheet import mask_frames

GENERATED = "Generated with tave: this is not an unaltered recording."
CHROMA = ("444", "420")


def write_video(
    path: str | Path,
    frames: Tensor,
    fps: float,
    *,
    crf: int = 8,
    chroma: str = "444",
    lossless: bool = False,
    comment: str = GENERATED,
) -> None:
    """Write ``frames`` `f 3 H W` in [-1, 1] as H.264 mp4.

    Args:
        chroma: 444 | 420. Halving the colour resolution costs 25 dB on saturated thin lines at any ``crf``, so only
            4:4:4 keeps an untouched background. Chromium plays it in the right colours; 4:2:0 is for players that are
            bound to hardware decoders. Frames with odd sides are always 4:4:4.
        lossless: keep every bit as RGB, for files that are read again; browsers show them in false colours.
        comment: goes into the file's metadata.

    Raises:
        VideoError: no ``.mp4`` path, wrong shape or rate, or pixels that aren't finite.
        FileError: the file can't be written.
    """
    path = _named(path, ".mp4")
    choice("chroma", chroma, CHROMA)
    within("crf", crf, 0, 51)
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"{path}: fps={fps} is no frame rate; give a positive number")
    _refuse_shape(path, frames)
    odd = frames.shape[-1] % 2 or frames.shape[-2] % 2
    pixel_format = "rgb24" if lossless else "yuv420p" if chroma == "420" and not odd else "yuv444p"
    with (
        whole_file(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        rate = Fraction(fps).limit_denominator(65_535)
        stream = file.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = pixel_format
        # mbtree: its bytes differ from one writing to the next
        stream.options = {"qp": "0"} if lossless else {"crf": str(crf), "x264-params": "mbtree=0"}
        context = stream.codec_context
        context.thread_count = 1  # with more threads the bytes vary
        if not lossless:  # declares what the conversion below does, or players guess: 601 matrix, sRGB
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = 6, 1, 1, 13
        file.metadata["comment"] = comment
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(to_pixels(frame), "rgb24")
            if not lossless:
                picture = picture.reformat(format=pixel_format, dst_colorspace=6, interpolation="LANCZOS")
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))


def write_mask_video(path: str | Path, masks: Tensor, fps: float) -> None:
    """Write ``masks`` `f 1 H W` in [0, 1] as a grey mp4 (1 = white); thresholding restores a binary mask exactly."""
    write_video(path, mask_frames(masks), fps, crf=4, chroma="420")


def write_image(path: str | Path, frame: Tensor, *, comment: str = GENERATED) -> None:
    """Write ``frame`` `3 H W` in [-1, 1] as an 8-bit PNG."""
    path = _named(path, ".png")
    _refuse_shape(path, frame[None])
    text = PngInfo()
    text.add_text("Comment", comment)
    with whole_file(path) as temporary:
        Image.fromarray(to_pixels(frame)).save(temporary, "PNG", pnginfo=text)


def _named(path: str | Path, suffix: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix.lower() != suffix:
        raise VideoError(f"{path}: the name must end in {suffix}, which is the format that is written")
    return path


def _refuse_shape(path: Path, frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise VideoError(f"{path}: got pixels of shape {tuple(frames.shape)}; give at least one frame as `f 3 H W`")
    if not bool(torch.isfinite(frames).all()):
        raise VideoError(
            f"{path}: the pixels contain NaN or infinity, so nothing was written; find the stage that made them"
        )
