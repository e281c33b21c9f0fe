"""Damaged files never end, stop or trace the process; `python -m tests.mutations 500` is the long form."""

from __future__ import annotations

from pathlib import Path

import mutations
import pytest


@pytest.mark.slow  # several runs
def test_damaged_files_are_read_or_refused_in_one_line() -> None:
    found = mutations.run(40, first=1000)
    assert len(found) == 40
    assert {seed: what for seed, what in found.items() if what not in mutations.GOOD} == {}


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused_in_one_line() -> None:
    found = mutations.run(500)
    assert len(found) == 500
    assert {seed: what for seed, what in found.items() if what not in mutations.GOOD} == {}


def test_a_header_that_claims_too_many_frames_is_no_danger(tmp_path: Path) -> None:
    """decord reserves memory for as many frames as the header claims, and ends the process where that fails."""
    from clips import Setting, write

    from tave.video import VideoError, read_clip

    write(tmp_path / "a.mp4", Setting())
    data = (tmp_path / "a.mp4").read_bytes()
    at = data.index(b"stsz") + 12
    for claimed in (25, 1 << 20, (1 << 31) - 1, (1 << 32) - 1):
        path = tmp_path / f"{claimed}.mp4"
        path.write_bytes(data[:at] + claimed.to_bytes(4, "big") + data[at + 4 :])
        try:
            assert len(read_clip(path).frames) == 24
        except VideoError as error:
            assert path.name in str(error)
