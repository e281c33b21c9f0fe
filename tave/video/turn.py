"""The display matrix of a stream: how a player turns and mirrors the stored picture."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import cv2
import numpy as np


class Turn(NamedTuple):
    """Shown = stored, first transposed, then mirrored left to right and top to bottom, then turned by ``degrees``."""

    transpose: bool = False
    mirror: bool = False
    flip: bool = False
    degrees: float = 0.0  # clockwise, for what is no multiple of 90; the picture keeps its size

    @staticmethod
    def of(matrix: bytes | None) -> Turn:
        """The turn that FFmpeg's programs apply for the 9 int32 of a display matrix."""
        if matrix is None or len(matrix) < 36:
            return Turn()
        m = struct.unpack("=9i", matrix[:36])
        scales = math.hypot(m[0], m[3]), math.hypot(m[1], m[4])
        if not all(scales):
            return Turn()
        angle = round(math.degrees(math.atan2(m[1] / scales[1], m[0] / scales[0]))) % 360
        if angle % 180 == 90:
            return Turn(True, mirror=(m[3] < 0), flip=angle == 270)
        if angle % 180:
            return Turn(degrees=angle)
        return Turn(mirror=m[0] < 0, flip=m[4] < 0) if angle else Turn(flip=m[4] < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turn pixels `H W c`."""
        if self.degrees:
            height, width = pixels.shape[:2]
            middle = ((width - 1) / 2, (height - 1) / 2)
            matrix = cv2.getRotationMatrix2D(middle, -self.degrees, 1.0)
            return cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR)
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]

    def matrix(self, width: int, height: int) -> np.ndarray:
        """`3 3`: from a point of the stored picture to that of the turned one of ``width`` x ``height``, in pixels from
        the upper left corner.
        """
        if self.degrees:
            turned = np.eye(3)
            turned[:2] = cv2.getRotationMatrix2D((width / 2, height / 2), -self.degrees, 1.0)
            return turned
        across, down = (-1 if self.mirror else 1), (-1 if self.flip else 1)
        offset = [width * self.mirror, height * self.flip]
        first, second = ([0, across], [down, 0]) if self.transpose else ([across, 0], [0, down])
        return np.array([[*first, offset[0]], [*second, offset[1]], [0, 0, 1]], np.float64)
