"""Do the frames look alike to an encoder? In both forms in use, which don't compare with each other.

A frozen clip scores 1, so a figure is read beside the source clip's own.
"""

from __future__ import annotations

from torch import Tensor

from .metric import ClipMetric


def adjacent_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of neighbouring frames, in [-1, 1], higher is better; None for a single frame.

    Args:
        pictures: ``f d`` unit vectors.
    """
    return float((pictures[1:] * pictures[:-1]).sum(dim=1).mean()) if len(pictures) > 1 else None


def pairwise_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of all pairs of different frames (as in TGVE), in [-1, 1], higher is better; None for a single frame.

    Args:
        pictures: ``f d`` unit vectors.
    """
    count = len(pictures)
    if count < 2:
        return None
    cosines = pictures @ pictures.T
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


class FrameConsistencyAdjacent(ClipMetric):
    figure = staticmethod(adjacent_consistency)
    name, unit, over, higher_is_better = "frame_consistency_adjacent", "cosine", "mean over neighbours", True


class FrameConsistencyPairs(ClipMetric):
    figure = staticmethod(pairwise_consistency)
    name, unit, over, higher_is_better = "frame_consistency_pairs", "cosine", "mean over all pairs", True
