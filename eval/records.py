"""JSON files of a run folder, and the errors of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tave.files import whole_file


class EvalError(ValueError):
    """Inputs that can't be measured; the message is one line that names the file or argument and the remedy."""


class WeightsError(EvalError):
    """Weights that are missing, damaged or of another model."""


def require_file(path: Path) -> None:
    """Raise :class:`EvalError` if ``path`` isn't a file."""
    if not path.is_file():
        raise EvalError(f"{path} is missing: the run folder isn't complete")


def read_record(path: Path, optional: bool = False) -> dict[str, Any]:
    """Parse a JSON file that holds an object; with ``optional``, a missing file is an empty object."""
    if optional and not path.is_file():
        return {}
    require_file(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvalError(f"{path} isn't JSON: {error}") from error
    if not isinstance(record, dict):
        raise EvalError(f"{path} must hold a JSON object")
    return record


def write_json(path: Path, content: Any) -> None:
    """Write ``path`` as a whole; its folder must exist. Raises ValueError for NaN and infinity."""
    if not path.parent.is_dir():
        raise EvalError(f"{path} can't be written: there is no folder {path.parent}")
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
