"""The clip of a run folder: the frames that the network saw, and the file that they were read from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tave.config import WHOLE, ReadOptions
from tave.findings import find_input
from tave.record import read_run
from tave.scratch import Scratch
from tave.video import Clip, Footage, Origin, View, read_clip


def clip_of(folder: Path, scratch: Scratch = Scratch()) -> Clip:
    """``source.mp4`` of the run ``folder``, which knows the file and the part of its frames that it shows.

    Raises :class:`VideoError` for a clip or a record that can't be read.
    """
    record, at = read_run(folder), folder / "run.json"
    origin, view = Origin.recorded(at, record.get("origin")), View.recorded(at, record.get("crop"))
    return replace(read_clip(folder / "source.mp4", WHOLE, scratch=scratch), origin=origin, view=view)


def footage_of(folder: Path, cut: ReadOptions, inputs: str | None = None) -> Footage | None:
    """The file from which the run ``folder`` read its clip with ``cut``, where it was or in the folder ``inputs``.

    None if it is at neither with the SHA-256 that the run recorded.
    """
    record = read_run(folder)
    known, view = record.get("inputs"), View.recorded(folder / "run.json", record.get("crop"))
    if not isinstance(known, dict) or not known or view is None:
        return None
    path, digest = next(iter(known.items()))  # the clip is the first
    here = find_input(path, digest, inputs)
    return None if here is None else Footage(here, cut, view)
