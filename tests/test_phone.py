"""A phone's clip of 640x360 and two seconds: back with its size, rate, length and sound, with another object in it.

With few steps. Measured and not asserted: the mask's area, 2.08 times the true union.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from phone import run


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_phones_clip_comes_back_edited(tmp_path: Path) -> None:
    """``run`` itself compares size, shape, times, rotation tag and sound with the source's."""
    found = run(tmp_path, 640, 2, ["logger=none", "metrics.enabled=false", "tuning.steps=10", "inversion.steps=6"])
    assert found["background, worst frame, dB"] >= 45
    assert found["file / source"] <= 2
    assert found["true union in the mask"] >= 0.9
