"""What a check of a run folder finds, and where the inputs of a run lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tave.files import content_digest

MOST = 100_000  # files of a clip that is a folder of pictures


def printable(text: str) -> str:
    """``text`` with what a terminal or a table would obey as an escape: line ends, control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Finding:
    """One line of a report. ``ok`` None: what can't be checked here, which is no fault of the folder."""

    ok: bool | None
    line: str

    def __str__(self) -> str:
        line = f"{ {True: 'as made', False: 'CHANGED', None: 'unchecked'}[self.ok]:<10}{self.line}"
        return printable(line)  # a record's texts are anybody's


def inputs_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Path -> SHA-256 of the pictures, mattes and mask of an ``edit.json``."""
    more = record.get("more_images")
    found: dict[str, str] = {}
    for each in (record, *(more if isinstance(more, list) else ())):
        for key, digest in (("target_image", "sha256"), ("matte", "matte_sha256"), ("mask", "mask_sha256")):
            if isinstance(each, Mapping) and isinstance(each.get(key), str) and isinstance(each.get(digest), str):
                found[each[key]] = each[digest]
    return found


def find_input(path: str, digest: Any, moved: str | None = None) -> Path | None:
    """Where the input ``path`` lies with this SHA-256: there, or by its name in the folder ``moved``."""
    places = [Path(path), *([Path(moved).expanduser() / Path(path).name] if moved else [])]
    return next((place for place in places if is_input(place) and content_digest(place) == digest), None)


def is_input(place: Path) -> bool:
    """Whether a path that a record names can be hashed: a file, or a folder of files as of pictures, on a disk.

    Not a device, which may have no end, nor a tree of folders, nor what the kernel makes up as it is read.
    """
    try:
        if place.resolve().is_relative_to("/proc") or place.resolve().is_relative_to("/sys"):
            return False
        if not place.is_dir():
            return place.is_file() and os.access(place, os.R_OK)
        files = list(islice(place.iterdir(), MOST + 1))
        return 0 < len(files) <= MOST and all(file.is_file() for file in files)
    except (OSError, ValueError):  # a name that no file can have
        return False
