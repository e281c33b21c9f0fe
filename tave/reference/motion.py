"""How the source object moves: its own pixels, registered from frame to frame. The target rides on this (METHOD 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np
from torch import Tensor

_GAPS = (1, 1, 2, 4)  # frames apart; from one to the next twice: the second time it is known how most of them went
_SURE = 0.5  # the least correlation by which two frames show the same thing
_GUESS = 0.01  # what counts, beside a registration, where the regions end, and that objects go on as they went

Pairs = dict[tuple[int, int], tuple[float, float, float]]  # earlier and later frame: correlation, pixels right and down


def moved(frames: Tensor, regions: np.ndarray, boxes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Where the object is in each frame, against the first one: `f 2`, pixels right and down, to a tenth of one.

    A region's box ends where the region does: a cell more here, a shadow less there. The object's pixels look alike in all
    frames, and tell to parts of a pixel how far it went. Frames that are 1, 2 and 4 apart are registered by the translation
    that correlates their pixels best (Evangelidis and Psarakis 2008), and the path is what most of these agree with: the
    least sum of absolute differences. Where nothing can be registered the boxes tell; where there are none, it goes on as it
    went.

    Args:
        frames: the clip `f 3 H W` in [-1, 1]. regions: the object, `f H W` bool. boxes: around it, `f 4`: top, bottom, left,
            right. seen: `f` bool, whether it is there.
    """
    greys = [cv2.cvtColor(np.ascontiguousarray(each.permute(1, 2, 0).float().numpy()), cv2.COLOR_RGB2GRAY) for each in frames]
    rims = [_with_rim(region) for region in regions]
    times = np.nonzero(seen)[0]
    between = _between(boxes, times, *regions.shape[1:])
    path, pairs = _path(len(frames), {}, between), Pairs()
    for gap in _GAPS:
        for now, then, guesses in _guesses(path, times, gap):
            found = [match for guess in guesses if (match := _match(greys[now], greys[then], rims[now], rims[then], guess))]
            best = max([*found, pairs.get((now, then), (_SURE, 0.0, 0.0))])
            if best[0] > _SURE:
                pairs[now, then] = best
        path = _path(len(frames), pairs, between)
    return path


def _between(boxes: np.ndarray, times: np.ndarray, height: int, width: int) -> Pairs:
    """From each frame of ``times`` to the next: how far the edges went that the frame cuts off in neither."""
    edges, free = boxes[:, [2, 3, 0, 1]], boxes[:, [2, 3, 0, 1]] % [width, width, height, height] > 0
    found = Pairs()
    for now, then in pairwise(times.tolist()):
        went, told = (edges[then] - edges[now]).reshape(2, 2), (free[now] & free[then]).reshape(2, 2)
        right, down = (step[known if known.any() else ~known].mean() for step, known in zip(went, told, strict=True))
        found[now, then] = _GUESS, right, down
    return found


def agreed(masked: np.ndarray, centres: np.ndarray, grown: np.ndarray, seen: np.ndarray, reach: int = 3) -> np.ndarray:
    """The object as most frames within ``reach`` have it, `f H W` bool: ``masked``, each seen in its turn from the others.

    What isn't the object doesn't ride with it: a mark on the road is part of it in one frame and not in the next, a lamp that
    it passes hides another part each time. Frames in which it isn't ``seen`` `f` have no say, and keep what they have, and so
    does a frame of which most is outvoted.

    Args:
        centres: the object's, `f 2`, pixels from left and top. grown: its size, `f`, in any unit.
    """
    height, width = masked.shape[1:]
    times, found = np.nonzero(seen)[0], masked.copy()
    for time in times:
        votes, could = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
        for other in times[np.abs(times - time) <= reach]:
            scale = grown[time] / grown[other]
            there = np.column_stack([scale * np.eye(2), centres[time] - scale * centres[other]])
            votes += cv2.warpAffine(masked[other].astype(np.float32), there, (width, height))
            could += cv2.warpAffine(np.ones_like(votes), there, (width, height))  # what had left the frame says nothing here
        voted = votes > could / 2
        if 2 * (voted & masked[time]).sum() >= masked[time].sum():  # else it turned into something that the others don't know
            found[time] = voted
    return found


def _with_rim(region: np.ndarray) -> np.ndarray:
    """A pixel more all around: where an object ends says the most about where it is."""
    return cv2.dilate(region.astype(np.uint8) * np.uint8(255), np.ones((3, 3), np.uint8))


def _guesses(path: np.ndarray, times: np.ndarray, gap: int) -> Iterator[tuple[int, int, Sequence[np.ndarray]]]:
    """Frames ``gap`` apart that both show the object, and from where to look: as the path went here, and as it mostly went."""
    now = np.array([time for time in times if time + gap in times], dtype=int)
    steps = path[now + gap] - path[now]
    for time, step in zip(now, steps, strict=True):
        yield int(time), int(time + gap), (step, np.median(steps, 0))


def _match(
    now: np.ndarray, then: np.ndarray, here: np.ndarray, there: np.ndarray, guess: np.ndarray
) -> tuple[float, float, float] | None:
    """Correlation and translation by which the object of ``now`` is found in ``then``, `H W` each; None where it isn't.

    here, there: the object's pixels in either, `H W`.
    """
    rows, columns = np.nonzero(here.any(1))[0], np.nonzero(here.any(0))[0]
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    corner = np.array([columns[0], rows[0]])
    start = np.eye(2, 3, dtype=np.float32)
    start[:, 2] = guess + corner
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
    try:
        correlation, found = cv2.findTransformECC(
            np.ascontiguousarray(now[part]), then, start, cv2.MOTION_TRANSLATION, until, there, 3
        )
    except cv2.error:  # so it tells that it didn't converge
        return None
    right, down = found[:, 2] - corner
    return float(correlation), float(right), float(down)


def _path(count: int, pairs: Pairs, between: Pairs) -> np.ndarray:
    """The path of ``count`` frames that the pairs agree with best, `count 2`, 0 in the first one."""
    each = np.eye(count)
    known = [*pairs.items(), *between.items()]
    told = [(each[then] - each[now], step, weight) for (now, then), (weight, *step) in known]
    told += [(each[i - 1] - 2 * each[i] + each[i + 1], (0, 0), _GUESS) for i in range(1, count - 1)]
    rows, where, weights = (np.array(part, dtype=float) for part in zip((each[0], (0, 0), 1.0), *told, strict=True))
    apart = np.ones(len(rows))
    for _ in range(10):  # least squares, each time weighted anew, have the least sum of absolute differences
        trust = (weights / np.sqrt(np.maximum(apart, 0.1)))[:, None]
        path = np.linalg.lstsq(rows * trust, where * trust, rcond=None)[0]
        apart = np.linalg.norm(rows @ path - where, axis=1)
    return path - path[0]
