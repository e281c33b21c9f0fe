"""The JSON files of a run folder, read back: ``run.json``, ``metrics.json``, ``edit.json`` and the like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .metric import MetricError


class RunError(MetricError):
    """A run folder that can't be read; the message names the file and what is wrong with it."""


def read_json(path: Path) -> Any:
    """What the file holds. Raises :class:`RunError` if it is missing or isn't JSON."""
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} isn't JSON: {error}") from error


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that the file holds. Raises :class:`RunError` if it is missing or holds anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold a JSON object")
    return found


def read_record_if_any(path: Path) -> dict[str, Any]:
    """:func:`read_record`, or nothing where there is no file."""
    return read_record(path) if path.is_file() else {}


def require_file(path: Path) -> None:
    """Raise :class:`RunError` if the file isn't there."""
    if not path.is_file():
        raise RunError(f"{path} is missing: the run folder isn't complete")
