"""Files: replaced whole or not at all, and known by their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def content_digest(path: str | Path, pattern: str = "[!.]*") -> str:
    """SHA-256 of a file; of a folder: of its files' names and contents, wherever it lies.

    Only files whose names fit ``pattern`` count; as it stands, all that aren't hidden.
    """
    path = Path(path)
    if not path.is_dir():
        return file_digest(path)
    sha = hashlib.sha256()
    for file in sorted(file for file in path.rglob(pattern) if file.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()} {file_digest(file)}\n".encode())
    return sha.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it if the block ends well, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield waiting
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
