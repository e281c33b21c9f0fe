"""Binary mask utilities: boxes, connected pieces, holes. Planes are numpy bool `H W`, clips `f H W`."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np


class Box(NamedTuple):
    """Pixels ``top <= y < bottom``, ``left <= x < right``."""

    top: int
    bottom: int
    left: int
    right: int


def box_of(plane: np.ndarray) -> Box:
    """The bounding box of the true pixels, of which there must be one."""
    rows, columns = np.nonzero(plane.any(1))[0], np.nonzero(plane.any(0))[0]
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def largest(plane: np.ndarray) -> np.ndarray:
    """The largest 8-connected piece; empty if there is none."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(plane.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros(plane.shape, dtype=bool)
    return pieces == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def pieces_over_time(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label connected pieces of a clip: 8-connected within a frame, by a shared pixel from frame to frame.

    Returns ``labels`` `f H W` int, 0 = background, and ``sizes``, where ``sizes[label]`` is a piece's number of pixels
    over all frames (``sizes[0]`` is 0).
    """
    labels = np.zeros(masks.shape, dtype=np.int64)
    count = 1
    for frame, plane in enumerate(masks):
        pieces, numbered = cv2.connectedComponents(plane.astype(np.uint8), connectivity=8)
        labels[frame] = np.where(numbered > 0, numbered + count - 1, 0)
        count += pieces - 1
    root = np.arange(count)
    for now, after in pairwise(labels):
        touching = (now > 0) & (after > 0)
        for a, b in np.unique(np.stack([now[touching], after[touching]], 1), axis=0):
            root[root == root[b]] = root[a]
    labels = root[labels]
    sizes = np.bincount(labels.ravel(), minlength=count)
    sizes[0] = 0
    return labels, sizes


def without_specks(masks: np.ndarray, least: float) -> np.ndarray:
    """`f H W` without pieces (over time) smaller than the share ``least`` of the largest one."""
    labels, sizes = pieces_over_time(masks)
    return (labels > 0) & (sizes >= least * sizes.max())[labels]


def pieces_with(masks: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The pieces (over time) of ``masks`` `f H W` in which some of ``seeds`` lies."""
    labels, _ = pieces_over_time(masks)
    return np.isin(labels, np.unique(labels[masks & seeds]))


def long_pieces(plane: np.ndarray, length: float) -> np.ndarray:
    """Pieces whose bounding box is at least ``length`` pixels high or wide: thin structures stay, specks go."""
    _, found, stats, _ = cv2.connectedComponentsWithStats(plane.astype(np.uint8), connectivity=8)
    pieces = np.asarray(found, dtype=np.int64)
    extent = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    return (pieces > 0) & (extent >= length)[pieces]


def without_thin(plane: np.ndarray, reach: int) -> np.ndarray:
    """The plane without structures that are at most ``2 reach`` pixels wide or high."""
    side = 2 * reach + 1
    return cv2.morphologyEx(plane.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8)) > 0


def without_holes(plane: np.ndarray) -> np.ndarray:
    """The plane with every hole filled that is not connected to the picture's edge."""
    outside = np.pad(plane.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), (2,))
    return outside[1:-1, 1:-1] != 2


def grown(planes: np.ndarray, reach: int) -> np.ndarray:
    """Each plane of `f H W` dilated by ``reach`` pixels in the eight directions."""
    side = 2 * reach + 1
    return np.stack([cv2.dilate(plane.astype(np.uint8), np.ones((side, side), np.uint8)) for plane in planes]) > 0
