"""Lay an edit over the frames of the file that it was made from, in the format in which the file stores them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import cv2
import numpy as np
from torch import Tensor

from tave.config import ReadOptions
from tave.video.colour import Colour, over, sdr_to_hdr
from tave.video.decode import pictures
from tave.video.frames import VideoError, to_pixels
from tave.video.probe import Stored, open_video, reading, video_stream
from tave.video.read import FOLDER_RATE, open_clip
from tave.video.view import View

_MATRICES = (1, 2, 4, 5, 6, 7, 9)  # of ITU-T H.273, those of linear Y'CbCr that swscale converts to
_DRAWN = Colour(6, 1, 13)  # what write_video writes, for files that store RGB
_CLOCK = Fraction(1, 90_000)  # their time base


@dataclass(frozen=True)
class Footage:
    """The file that a clip was read from. ``cut``: which of its frames; ``view``: the part that the network sees."""

    path: Path
    cut: ReadOptions
    view: View


@dataclass(frozen=True)
class Overlay:
    """An edit at the network's size: ``pixels`` `f 3 h w` in [-1, 1], of the opacity ``alpha`` `f 1 h w`."""

    pixels: Tensor
    alpha: Tensor


class Base(NamedTuple):
    """A chosen frame of the file that may be written to, and its time in seconds of the file's clock."""

    frame: av.VideoFrame
    time: Fraction


@dataclass(frozen=True)
class Opened:
    """An open file. ``stored``: how its frames are stored and will be encoded, planar Y'CbCr of 8 or 10 bit.

    ``matrix``: its display matrix; ``start``: seconds of its first frame.
    """

    stored: Stored
    frames: Iterator[Base]
    rate: Fraction
    time_base: Fraction
    matrix: list[int] | None = None


@contextmanager
def open_footage(footage: Footage) -> Iterator[Opened]:
    """The chosen frames of the file, decoded one by one, with the samples that it stores.

    What is stored as RGB, with alpha or in other unusual ways comes as players show it, 4:4:4. Raises
    :class:`VideoError` like the reader.
    """
    path = footage.path.expanduser()
    if not path.is_dir():
        with open_video(path) as container, reading(path):
            stream, _ = video_stream(path, container)
            decoded = pictures(path, container, stream)
            first = next(decoded)
            stored = Stored.of(first.frame, stream, first.interlaced)
            if (name := _planar(first.frame, stored)) is not None:
                chosen = _chosen(path, footage.cut, chain([first], decoded))
                matrix = first.frame.side_data.get("DISPLAYMATRIX")
                base = stream.time_base or _CLOCK
                frames = (Base(_own(each.frame, name, stored.size), each.tick * base) for each in chosen)
                numbers = None if matrix is None else np.frombuffer(bytes(matrix)[:36], np.int32).tolist()
                rate = stream.average_rate or stream.guessed_rate or FOLDER_RATE
                yield Opened(replace(stored, pixel_format=name), frames, rate, base, numbers)
                return
    with open_clip(path, footage.cut) as (origin, shown):
        like = Stored(origin.size, "yuv444p", "", colour=_DRAWN)
        frames = (Base(_of_rgb(each.pixels, footage.cut.backdrop), each.time) for each in shown)
        yield Opened(like, frames, origin.rate, _CLOCK)


def _chosen(path: Path, cut: ReadOptions, decoded: Iterator) -> Iterator:
    with reading(path):
        taken = 0
        for index, picture in enumerate(decoded):
            if cut.wants(index):
                yield picture
                taken += 1
                if taken == cut.frames:
                    return


def _planar(frame: av.VideoFrame, stored: Stored) -> str | None:
    """The format in which a frame's samples are encoded; None where they have to be converted to RGB first."""
    form = frame.format
    if form.is_rgb or stored.alpha or len(form.components) < 3 or stored.colour.matrix not in _MATRICES:
        return None
    shape = {(2, 2): "420", (2, 4): "422", (4, 4): "444"}.get((form.chroma_width(4), form.chroma_height(4)), "444")
    if shape != "444" and (frame.width % 2 or frame.height % 2):
        shape = "444"  # encoders want whole cells of chroma
    return f"yuv{shape}p" + ("10le" if max(part.bits for part in form.components) > 8 else "")


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The samples of a planar frame, `H W` each, uint8 or uint16, to be read or written in place."""
    kind = np.dtype(np.uint16 if frame.format.components[0].bits > 8 else np.uint8)
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, plane.line_size // kind.itemsize)[:, : plane.width]
        for plane in frame.planes
    ]


def _own(frame: av.VideoFrame, name: str, size: tuple[int, int]) -> av.VideoFrame:
    """A copy of a decoded frame, on which the decoder may still depend, in the planar format ``name``."""
    if frame.format.name.replace("yuvj", "yuv") == name and (frame.width, frame.height) == size:
        made = av.VideoFrame(*size, name)
        for to, samples in zip(planes(made), planes(frame), strict=True):
            to[...] = samples
    else:
        spread = int(frame.color_range) or 1
        made = frame.reformat(
            *size, format=name, interpolation="BICUBIC", src_color_range=spread, dst_color_range=spread
        )
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    return made


def _of_rgb(pixels: np.ndarray, backdrop: str) -> av.VideoFrame:
    rgb = over(pixels, backdrop) if pixels.shape[2] == 4 else pixels
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    return frame.reformat(format="yuv444p", dst_colorspace=_DRAWN.matrix, interpolation="LANCZOS")


# ---- the edit in pixels of the file ----------------------------------------------------------------------------------


class Placing:
    """Brings what the network's size has to the pixels of frames that are ``stored`` so."""

    def __init__(self, stored: Stored, view: View, network: tuple[int, int]) -> None:
        width, height = shown = stored.shown
        across, down = (size / edge for size, edge in zip(network, view[2:], strict=True))
        to_network = np.array([[across, 0, -view.left * across], [0, down, -view.top * down], [0, 0, 1]])
        unturned = shown[::-1] if stored.turn.transpose else shown
        scale = np.diag([unturned[0] / stored.size[0], unturned[1] / stored.size[1], 1.0])
        self.size, self.network = stored.size, network
        self._shrunk = tuple(max(1, min(n, round(edge))) for n, edge in zip(network, view[2:], strict=True))
        shrink = np.diag([self._shrunk[0] / network[0], self._shrunk[1] / network[1], 1.0])
        self._matrix = shrink @ to_network @ stored.turn.matrix(width, height) @ scale
        self._within = self._warped(np.ones(self._shrunk[::-1], np.uint8), (0, 0), self.size, cv2.INTER_NEAREST)

    def pixels(self, image: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """`h w 3` uint8 of the network's size -> `H W 3` uint8, the stored pixels from ``corner`` (x, y) on."""
        return self._warped(self._small(image), corner, size, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE)

    def opacity(self, alpha: np.ndarray) -> np.ndarray:
        """`h w` float32 -> the same for all stored pixels, 0 outside of the view."""
        whole = self._warped(self._small(alpha), (0, 0), self.size, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        return np.where(self._within > 0, whole, 0)

    def _small(self, image: np.ndarray) -> np.ndarray:
        """Without detail that the file's pixels can't hold, where the network's are smaller."""
        return image if self._shrunk == self.network else cv2.resize(image, self._shrunk, interpolation=cv2.INTER_AREA)

    def _warped(
        self,
        image: np.ndarray,
        corner: tuple[int, int],
        size: tuple[int, int],
        how: int,
        edge: int = cv2.BORDER_CONSTANT,
    ) -> np.ndarray:
        centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # of a pixel
        at = np.array([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]])
        matrix = (np.linalg.inv(centre) @ self._matrix @ centre @ at)[:2]
        return cv2.warpAffine(image, matrix, size, flags=how | cv2.WARP_INVERSE_MAP, borderMode=edge)


def lay_over(frame: av.VideoFrame, image: np.ndarray, alpha: np.ndarray, placing: Placing, colour: Colour) -> None:
    """Blend ``image`` `h w 3` uint8 of the network's size into a frame, with the opacity ``alpha`` `H W` of its pixels.

    Samples where it is 0 stay as they are.
    """
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    if not len(rows):
        return
    top, left = int(rows[0]) // 4 * 4, int(columns[0]) // 4 * 4  # whole cells of chroma
    bottom, right = min(frame.height, int(rows[-1]) // 4 * 4 + 4), min(frame.width, int(columns[-1]) // 4 * 4 + 4)
    size = right - left, bottom - top
    edit = _coded(placing.pixels(image, (left, top), size), frame, colour)
    opaque = np.ascontiguousarray(alpha[top:bottom, left:right])
    for plane, new in zip(planes(frame), planes(edit), strict=True):
        across, down = frame.width // plane.shape[1], frame.height // plane.shape[0]
        here = plane[top // down : top // down + new.shape[0], left // across : left // across + new.shape[1]]
        share = (
            cv2.resize(opaque, here.shape[::-1], interpolation=cv2.INTER_AREA) if here.shape != opaque.shape else opaque
        )
        here[...] = (here + share * (new.astype(np.float32) - here) + 0.5).astype(plane.dtype)


def _coded(rgb: np.ndarray, like: av.VideoFrame, colour: Colour) -> av.VideoFrame:
    """`H W 3` uint8 sRGB in the format and colours of the frame ``like``."""
    if colour.hdr:
        coded = av.VideoFrame.from_ndarray(sdr_to_hdr(rgb, colour), "yuv444p16le")
        return coded.reformat(format=like.format.name, interpolation="BICUBIC")
    matrix, spread = 5 if colour.matrix == 2 else colour.matrix, 2 if colour.full else 1
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    return frame.reformat(
        format=like.format.name, dst_colorspace=matrix, dst_color_range=spread, interpolation="LANCZOS"
    )


def pasted(opened: Opened, overlay: Overlay, view: View) -> Iterator[tuple[Base, np.ndarray]]:
    """The file's chosen frames with the edit in them, and its opacity `H W` in their stored pixels.

    Raises :class:`VideoError` if they are not as many as those of the edit.
    """
    placing = Placing(opened.stored, view, (overlay.pixels.shape[-1], overlay.pixels.shape[-2]))
    count = 0
    for base, pixels, alpha in zip(opened.frames, overlay.pixels, overlay.alpha[:, 0], strict=False):
        opacity = placing.opacity(alpha.cpu().numpy())
        lay_over(base.frame, to_pixels(pixels), opacity, placing, opened.stored.colour)
        yield base, opacity
        count += 1
    if count != len(overlay.pixels):
        raise VideoError(
            f"the file has {count} of the {len(overlay.pixels)} frames that were edited; give it as it was"
        )
