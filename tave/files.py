"""Files: written whole or not at all, identified by their content, and the one reader of JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class FileError(ValueError):
    """A file that can't be read; the message names it and the remedy."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).expanduser().open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def content_digest(path: str | Path, pattern: str = "[!.]*") -> str:
    """SHA-256 of a file, or of relative names and contents of the files in a folder that match ``pattern``."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return file_digest(path)
    sha = hashlib.sha256()
    for file in sorted(file for file in path.rglob(pattern) if file.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n".encode())
    return sha.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` if the block succeeds and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, remedy: str = "delete it and run again") -> dict[str, Any]:
    """Read the JSON object in ``path``; a :class:`FileError` names the file and ends with ``remedy``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise FileError(f"{path} can't be read ({reason}): {remedy}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} contains no JSON object: {remedy}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, all or nothing. Raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(content, indent=2, default=str, allow_nan=False)
    with whole_file(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
