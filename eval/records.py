"""Values of the JSON files that runs leave behind, which may be anybody's: read by type, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tave.record import read_metrics as metrics_of

from . import EvalError

LONGEST = 300  # characters of a name in a table
LARGEST = 1e30  # of a figure: sums and means of smaller ones are finite


def printable(text: str) -> str:
    """``text`` with what a terminal or a table would obey as an escape: line ends, control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name_in(record: Mapping[str, Any], key: str, path: Path) -> str:
    """A name in ``record``, printable. Raises :class:`EvalError` unless it is a text of reasonable length."""
    value = record.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        raise EvalError(f"{path}: {key} is no name: {str(value)[:40]!r}")
    return printable(value)


def text_in(record: Mapping[str, Any], key: str, path: Path) -> str | None:
    """A text or nothing. Raises :class:`EvalError` for another type."""
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise EvalError(f"{path}: {key} is no text: {str(value)[:40]!r}")
    return value


def mapping_in(record: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is none. Raises :class:`EvalError` for another type."""
    value = record.get(key)
    if value is not None and not isinstance(value, dict):
        raise EvalError(f"{path}: {key} is no JSON object: {str(value)[:40]!r}")
    return value or {}


def texts_in(record: Mapping[str, Any], key: str, path: Path) -> list[str]:
    """A list of texts, of a single one too; empty if there is none. Raises :class:`EvalError` for another type."""
    value = record.get(key)
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise EvalError(f"{path}: {key} is no list of texts: {str(value)[:40]!r}")
    return found


def is_number(value: Any) -> bool:
    """Whether a value can be averaged: neither NaN nor infinite nor absurdly large."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def number_in(record: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A number or nothing. Raises :class:`EvalError` for another type, NaN and infinity."""
    value = record.get(key)
    if value is not None and not is_number(value):
        raise EvalError(f"{path}: {key} is no number: {str(value)[:40]!r}")
    return None if value is None else float(value)


def seed_in(record: Mapping[str, Any], path: Path) -> int | None:
    """The seed, if there is one. Raises :class:`EvalError` unless it is a whole number."""
    seed = number_in(record, "seed", path)
    if seed is not None and not seed.is_integer():
        raise EvalError(f"{path}: seed is no whole number: {seed}")
    return None if seed is None else int(seed)


def read_metrics(path: Path) -> dict[str, Any]:
    """A ``metrics.json``: figures under ``edits.NAME.METRIC``, id, direction and unit under ``metrics.METRIC``.

    Raises FileError or :class:`EvalError`, in one line, for a file of another form.
    """
    record = metrics_of(path.parent)
    facts = record.get("metrics", {})
    for name in facts:
        about = mapping_in(facts, name, path)
        name_in(about, "id", path)
        text_in(about, "unit", path)
        if len(name) > LONGEST or not isinstance(about.get("higher_is_better"), bool | None):
            raise EvalError(f"{path}: metrics.{name[:40]} has no direction: higher_is_better is true, false or null")
    plain = {"higher_is_better": None, "unit": ""}
    facts = {name: plain | about for name, about in facts.items()}
    return record | {"edits": record.get("edits", {}), "metrics": facts}
