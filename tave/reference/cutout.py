"""Which part of the target image is the target object: its matte."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from tave.config import choice
from tave.regions import largest, without_holes, without_thin
from tave.video.frames import to_pixels

MATTES = ("auto", "alpha", "given", "colour", "segmented", "none")

_SIDE = 256  # longest side in pixels at which the object is looked for; its colours don't need more
_ROUNDS = 5
_BAND = 0.1  # share of the height within which border pixels are compared with a row: sky is no evidence about road
_UNLIKE = 8.0  # Lab distance from which a colour no longer counts as the border's
LEAST, MOST = 0.005, 0.9  # shares of the picture that an object may plausibly cover


class MatteError(ValueError):
    """A matte that is missing or does not fit; the message names the remedy."""


def matte(rgb: Tensor, alpha: Tensor | None = None, given: Tensor | None = None, kind: str = "auto") -> Tensor:
    """The target object's matte `1 H W` in [0, 1], 1 = object.

    ``rgb`` `3 H W` in [-1, 1]; ``alpha`` (the picture's own) and ``given`` (the user's or a segmenter's) `1 H W` in
    [0, 1] or None. ``kind``: given | segmented (both: the given one) | alpha | colour (if that fails, the whole
    picture) | none (the whole picture) | auto: the given one, else alpha, else by colour.

    Raises:
        MatteError: the matte asked for isn't there, doesn't fit the picture or is empty.
    """
    choice("reference.matte", kind, MATTES)
    if kind in ("given", "segmented") and given is None:
        raise MatteError(f"reference.matte={kind} but there is no matte: give one, or set reference.matte=auto")
    if kind == "alpha" and alpha is None:
        raise MatteError(
            "reference.matte=alpha but the target image is opaque: save it as a PNG with a transparent "
            "background, or set reference.matte=auto"
        )
    if given is not None and kind in ("given", "segmented", "auto"):
        return _checked(given, rgb, "the given matte")
    if alpha is not None and kind in ("alpha", "auto"):
        return _checked(alpha, rgb, "the target image's alpha")
    found = cut_out(rgb) if kind in ("auto", "colour") else None
    return torch.ones_like(rgb[:1]) if found is None else found


def _checked(values: Tensor, rgb: Tensor, name: str) -> Tensor:
    if tuple(values.shape) != (1, *rgb.shape[1:]):
        size, other = ("x".join(str(side) for side in reversed(t.shape[-2:])) for t in (values, rgb))
        raise MatteError(f"{name} is {size} but the target image is {other}: save both at one size")
    if not bool((values > 0.5).any()):
        raise MatteError(f"{name} is empty: make it white where the object is")
    return values.float().clamp(0, 1)


def cut_out(rgb: Tensor) -> Tensor | None:
    """Cut the object out by colour: GrabCut, started from what differs from the picture's border.

    ``rgb`` `3 H W` in [-1, 1] -> matte `1 H W` in [0, 1], the largest connected piece without holes; None if
    it covers next to nothing or nearly everything. The border is assumed to be background. Deterministic.
    """
    height, width = rgb.shape[1:]
    pixels = to_pixels(rgb)
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    edge = _edge(*small.shape[:2])
    labels = np.where(_unlike_border(small, edge), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[edge] = cv2.GC_BGD
    if not (labels == cv2.GC_PR_FGD).any():
        return None
    object_ = without_holes(largest(without_thin(grab_cut(small, labels), 1)))
    if not LEAST < object_.mean() < MOST:
        return None
    full = cv2.resize(object_.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(full)[None]


def grab_cut(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """GrabCut (Rother et al. 2004) of ``pixels`` `H W 3` uint8 from OpenCV's ``labels`` `H W`, which it changes: `H W`
    bool.

    Deterministic.
    """
    cv2.setRNGSeed(0)  # its colour clusters start at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(pixels), labels, (0, 0, 1, 1), *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _edge(height: int, width: int) -> np.ndarray:
    edge = np.ones((height, width), dtype=bool)
    strip = max(1, round(0.02 * min(height, width)))
    edge[strip:-strip, strip:-strip] = False
    return edge


def _unlike_border(pixels: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """`H W` bool: where the colour is far from every border pixel of about the same height.

    GrabCut models colours, not places. Started from a plain rectangle it keeps skylines between object and border;
    those mostly reach the border at their own height, where they are recognised as background.
    """
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64)
    border, heights = lab[edge], np.nonzero(edge)[0]
    unlike = np.zeros(edge.shape, dtype=bool)
    for y, row in enumerate(lab):
        near = border[np.abs(heights - y) <= _BAND * len(lab)]
        near = near[:: max(1, len(near) // 400)]
        # |a - b|^2 as |a|^2 + |b|^2 - 2ab, which is one product of matrices
        distance = (row**2).sum(1) + ((near**2).sum(1) - 2 * row @ near.T).min(1)
        unlike[y] = distance > _UNLIKE**2
    return unlike
