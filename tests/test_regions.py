"""Connected pieces of masks."""

from __future__ import annotations

import numpy as np

from tave.regions import box_of, grown, largest, pieces_over_time, without_holes, without_specks, without_thin


def test_pieces_are_counted_over_time() -> None:
    masks = np.zeros((5, 20, 20), dtype=bool)
    masks[:, 2:5, 2:5] = True  # 9 pixels in five frames
    masks[1, 10:16, 10:16] = True  # 36 in one
    masks[3, 18, 18] = True
    sizes = pieces_over_time(masks)[1]
    assert sorted(sizes[sizes > 0]) == [1, 36, 45]
    kept = without_specks(masks, 0.5)
    assert kept.sum() == 81 and not kept[3, 18, 18] and without_specks(kept, 1.0).sum() == 45
    assert not without_specks(np.zeros((2, 4, 4), dtype=bool), 0.5).any()


def test_two_pieces_that_meet_later_are_one() -> None:
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 2, 1:3] = masks[0, 2, 5:7] = True
    masks[1, 2, 1:7] = True
    assert [int(size) for size in pieces_over_time(masks)[1] if size] == [10]


def test_planes() -> None:
    ring = np.zeros((12, 12), dtype=bool)
    ring[2:9, 3:10] = True
    ring[4:7, 5:8] = False
    ring[11, 0] = True
    assert tuple(box_of(largest(ring))) == (2, 9, 3, 10) and largest(ring).sum() == 40
    assert not largest(np.zeros((3, 3), dtype=bool)).any()
    assert without_holes(largest(ring)).sum() == 49
    assert without_thin(without_holes(ring), 1).sum() == 49  # the single pixel goes
    assert grown(ring[None], 1)[0, 10:, :2].all()
