"""A set of edits to make, as one file lists it: ``cases.json`` or ``cases.yaml`` (docs/external_sets.md)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from tave.config import NAME_LENGTH, OptionError, check_name

NAMES = ("cases.json", "cases.yaml", "cases.yml")
PATHS = ("path", "target_image", "matte", "annotations", "truth")


@dataclass(frozen=True)
class ListedCase:
    """One edit to make. Paths are relative to the listing there, resolved here.

    ``path``: a clip or a folder of numbered pictures; ``frames``: how many of them (absent: ``video.frames``);
    ``annotations``: a folder with a mask of the source object for each of the clip's pictures; ``truth``: the known
    answer of a drawn clip. Both are read by metrics, controls and oracle methods alone.
    """

    name: str
    path: str
    source_prompt: str
    target_image: str
    target_prompt: str
    groups: tuple[str, ...] = ()
    matte: str | None = None
    frames: int | None = None
    annotations: str | None = None
    truth: str | None = None


NEEDED = ("name", "path", "source_prompt", "target_image", "target_prompt")


def listing_of(folder: str | Path) -> Path:
    """The listing of a set of your own. Raises :class:`OptionError` if there is none."""
    for name in NAMES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise OptionError(f"{folder}: no {NAMES[0]} or {NAMES[1]} in it; write one as docs/external_sets.md says")


def read_listing(listing: Path) -> list[ListedCase]:
    """The cases of a set. Raises :class:`OptionError` with one line that names the entry and the mistake."""
    try:
        content = yaml.safe_load(listing.read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise OptionError(f"{listing} can't be read: {' '.join(str(error).split())}") from error
    entries = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise OptionError(f"{listing} holds no list of cases: write them as docs/external_sets.md says")
    found = [_case(entry, listing) for entry in entries]
    names = [case.name for case in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"{listing}: {', '.join(twice)} listed twice; give each case a name of its own")
    return found


def _case(entry: dict[Any, Any], listing: Path) -> ListedCase:
    where = f"{listing}: case {str(entry.get('name', '?'))[:NAME_LENGTH]!r}"
    if lacking := [key for key in NEEDED if entry.get(key) in (None, "")]:
        raise OptionError(f"{where} lacks {', '.join(lacking)}: complete its entry")
    known = {field.name for field in fields(ListedCase)}
    if strange := sorted(str(key) for key in set(entry) - known):
        raise OptionError(f"{where} has the unknown {', '.join(strange)}: known are {', '.join(sorted(known))}")
    groups, frames = entry.get("groups") or (), entry.get("frames")
    found = {**entry, "groups": (groups,) if isinstance(groups, str) else groups}
    texts = {key: value for key, value in found.items() if key not in ("groups", "frames") and value is not None}
    if odd := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise OptionError(f"{where}: {odd[0]} is no text: put it in quotes")
    if not isinstance(found["groups"], list | tuple) or not all(isinstance(group, str) for group in found["groups"]):
        raise OptionError(f"{where}: groups is no list of names: give one, or several as [a, b]")
    if frames is not None and (type(frames) is not int or frames < 1):
        raise OptionError(f"{where}: frames={str(frames)[:20]!r} is no number of frames: give a whole number from 1 on")
    check_name(where, entry["name"])
    found["groups"] = tuple(found["groups"])
    for key in PATHS:
        if found.get(key) is not None:
            found[key] = str(listing.parent / Path(found[key]).expanduser())
            try:
                there = Path(found[key]).exists()
            except (OSError, ValueError):  # a name that no file can have
                there = False
            if not there:
                raise OptionError(f"{where}: {key}={' '.join(found[key].split())} is missing")
    return ListedCase(**found)
