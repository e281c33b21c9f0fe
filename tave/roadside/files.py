"""The files of drawn cases: a clip, a target image and the truth, drawn at the first use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tave.files import FileError, read_json, remove_leftovers, whole_folder, write_json
from tave.locks import claimed
from tave.record import differences, unlisted, write_record

RECORD = "scene.json"  # in a case's folder: the description by which it was drawn


def write_files(
    folder: Path,
    frames: np.ndarray,
    image: Image.Image,
    truth: tuple[dict[str, np.ndarray], dict[str, Any]],
    fps: float,
) -> None:
    """Write ``folder/source.mp4``, ``target.png``, ``truth/truth.npz`` and ``truth/truth.json``.

    frames: of the clip, ``f H W 3`` uint8; image: the target image; truth: its arrays and facts.
    """
    from tave.video import write_video  # imports torch, which a case that is already drawn doesn't need
    from tave.video.frames import from_pixels

    (folder / "truth").mkdir(parents=True, exist_ok=True)
    write_video(folder / "source.mp4", from_pixels(frames), fps, crf=8)
    image.save(folder / "target.png")
    arrays, described = truth
    np.savez_compressed(folder / "truth" / "truth.npz", **arrays)  # type: ignore[arg-type]
    (folder / "truth" / "truth.json").write_text(json.dumps(described, indent=2) + "\n")


def drawn_folder(folder: Path, name: str, description: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Have ``write`` fill ``folder/name``, atomically, unless it is there as described; return that folder.

    description: what the files depend on, of values that JSON can hold; it is kept in the folder.
    """
    place = folder / name
    if _is_drawn(place, description):
        return place
    remove_leftovers(folder)
    with claimed(place, wait=math.inf):
        if not _is_drawn(place, description):  # another process may have been faster
            with whole_folder(place, replace=True) as waiting:
                write(waiting)
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


def listing_entry(name: str, groups: list[str], prompts: tuple[str, str], frames: int) -> dict[str, Any]:
    """Return what ``cases.json`` says of a case. prompts: of source and target; frames: of the clip."""
    return {
        "name": name,
        "groups": groups,
        "path": f"{name}/source.mp4",
        "source_prompt": prompts[0],
        "target_image": f"{name}/target.png",
        "target_prompt": prompts[1],
        "frames": frames,
        "truth": f"{name}/truth",
    }


def write_listing(folder: Path, entries: list[dict[str, Any]]) -> Path:
    """Write ``cases.json``, the list of the cases drawn into ``folder``, and return its path."""
    write_json(folder / "cases.json", {"cases": entries})
    return folder / "cases.json"
