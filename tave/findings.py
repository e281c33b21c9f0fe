"""What a check of a run folder finds, and where the inputs of a run lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tave.files import content_digest


@dataclass(frozen=True)
class Finding:
    """One line of a report. ``ok`` None: what can't be checked here, which is no fault of the folder."""

    ok: bool | None
    line: str

    def __str__(self) -> str:
        return f"{ {True: 'as made', False: 'CHANGED', None: 'unchecked'}[self.ok]:<10}{self.line}"


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
    places = [Path(path).expanduser(), *([Path(moved).expanduser() / Path(path).name] if moved else [])]
    return next((place for place in places if place.exists() and content_digest(place) == digest), None)
