"""The files of drawn cases: a clip, a target image and the truth, drawn at the first use."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tave.files import FileError, read_json, remove_leftovers, whole_folder, write_json
from tave.locks import claimed
from tave.record import differences, unlisted, write_record
from tave.roadside.cases import FPS, SIZE, STUDY, Case, benchmark, frames_of, groups_of, small_benchmark, target_image
from tave.roadside.draw import VERSION
from tave.roadside.truth import truth_of

RECORD = "scene.json"  # in a case's folder: the description by which it was drawn


def write_case(case: Case, folder: Path, size: int = SIZE) -> None:
    """Write ``folder/source.mp4``, ``target.png``, ``truth/truth.npz`` and ``truth/truth.json``."""
    from tave.video import write_video  # imports torch, which a case that is already drawn doesn't need
    from tave.video.frames import from_pixels

    arrays, described = truth_of(case, size)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    write_video(folder / "source.mp4", from_pixels(frames_of(case.source, size)), FPS, crf=8)
    target_image(case, 2 * size).save(folder / "target.png")
    np.savez_compressed(folder / "truth" / "truth.npz", **arrays)  # type: ignore[arg-type]
    (folder / "truth" / "truth.json").write_text(json.dumps(described, indent=2) + "\n")


def draw_case(case: Case, folder: Path, size: int = SIZE) -> Path:
    """Draw a case into ``folder/NAME``, atomically, unless it is there at this ``size`` (px); return that folder."""
    place, description = folder / case.name, {"drawing": VERSION, "size": size, **asdict(case)}
    if _is_drawn(place, description):
        return place
    remove_leftovers(folder)
    with claimed(place, wait=math.inf):
        if not _is_drawn(place, description):  # another process may have been faster
            with whole_folder(place, replace=True) as waiting:
                write_case(case, waiting, size)
                write_json(waiting / RECORD, description)
                write_record(waiting)
    return place


def _is_drawn(place: Path, description: dict[str, Any]) -> bool:
    """Whether a case's folder was drawn by this description, and has every file as it was drawn."""
    try:
        here = (place / RECORD).is_file() and read_json(place / RECORD) == json.loads(json.dumps(description))
        return here and not unlisted(place, whole=True) and not differences(place)
    except FileError:
        return False


def draw_set(folder: str | Path, size: int = SIZE, which: str = "full", only: Collection[str] = ()) -> Path:
    """Draw a set of cases into ``folder`` and return its ``cases.json``.

    which: full (the benchmark), small (twelve of its cases) or study; only: some of these, by name.
    """
    place, cases = Path(folder), {"full": benchmark, "small": small_benchmark, "study": STUDY.values}[which]()
    chosen = [case for case in cases if not only or case.name in only]
    for case in chosen:
        draw_case(case, place, size)
    write_json(place / "cases.json", {"cases": [_listed(case) for case in chosen]})
    return place / "cases.json"


def _listed(case: Case) -> dict[str, Any]:
    """Return what ``cases.json`` says of a case."""
    return {
        "name": case.name,
        "groups": groups_of(case),
        "path": f"{case.name}/source.mp4",
        "source_prompt": case.source_prompt,
        "target_image": f"{case.name}/target.png",
        "target_prompt": case.target_prompt,
        "frames": case.source.frames,
        "truth": f"{case.name}/truth",
    }
