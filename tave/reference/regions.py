"""What can be said of binary planes: boxes, pieces, holes."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

_SPECK = 0.25  # of the object's median area: what is smaller isn't the object, but a speck where it isn't seen


class Box(NamedTuple):
    """Pixels ``top <= y < bottom``, ``left <= x < right``."""

    top: int
    bottom: int
    left: int
    right: int


def box_of(binary: np.ndarray) -> Box:
    """The box around the true pixels of `H W`, of which there must be one."""
    rows, columns = np.nonzero(binary.any(1))[0], np.nonzero(binary.any(0))[0]
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def largest(binary: np.ndarray) -> np.ndarray:
    """The largest 8-connected piece of `H W`, as bool; empty if there is none."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(binary.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros(binary.shape, dtype=bool)
    return pieces == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def largest_over_time(masked: np.ndarray) -> np.ndarray:
    """The largest connected piece of `f H W` bool: 8-connected in a frame, same pixel from frame to frame."""
    labels = np.zeros(masked.shape, dtype=np.int64)
    count = 1
    for frame, plane in enumerate(masked):
        pieces, numbered = cv2.connectedComponents(plane.astype(np.uint8), connectivity=8)
        labels[frame] = np.where(numbered > 0, numbered + count - 1, 0)
        count += pieces - 1
    root = np.arange(count)
    for now, after in pairwise(labels):
        touching = (now > 0) & (after > 0)
        for a, b in np.unique(np.stack([now[touching], after[touching]], 1), axis=0):
            root[root == root[b]] = root[a]
    pieces = np.where(labels > 0, root[labels], -1)
    names, sizes = np.unique(pieces[pieces >= 0], return_counts=True)
    return pieces == names[sizes.argmax()] if len(names) else np.zeros_like(masked)


def without_thin(binary: np.ndarray, reach: int) -> np.ndarray:
    """`H W` bool without what is at most ``2 reach`` pixels wide or tall."""
    side = 2 * reach + 1
    return cv2.morphologyEx(binary.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8)) > 0


def without_holes(binary: np.ndarray) -> np.ndarray:
    """`H W` bool with every hole filled that doesn't reach the picture's edge."""
    outside = np.pad(binary.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), (2,))
    return outside[1:-1, 1:-1] != 2


def no_specks(areas: np.ndarray) -> np.ndarray:
    """Which of the areas `n` are no specks beside the others, most of which are an object's: `n` bool. One must be above 0."""
    return areas >= _SPECK * np.median(areas[areas > 0])
