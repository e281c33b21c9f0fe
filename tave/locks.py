"""Claims between processes: who writes a file or a folder alone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tave.files import HOST, LOCK, FileError, hold, read_json, write_json, writing
from tave.interrupts import check

POLL = 0.05  # seconds between two attempts
UPDATE = 120.0  # seconds that an update waits for another one, which takes milliseconds


@contextmanager
def claimed(path: Path, wait: float = 0.0, on_wait: Callable[[str], Any] | None = None) -> Iterator[None]:
    """Hold ``path``, which need not exist, alone among all processes; raises :class:`FileError` if another holds it.

    The claim ends with the block or, by the kernel's hand, with the process, and leaves no file behind.

    Args:
        wait: seconds to wait for another holder, infinity included.
        on_wait: called once, with a line that says who is waited for.
    """
    place = path.with_name(f"{LOCK}{hashlib.sha256(path.name.encode()).hexdigest()[:16]}")
    until = time.monotonic() + wait
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        while (handle := hold(place)) is None:
            if time.monotonic() >= until:
                raise FileError(f"{path}: {_holder(place)} is writing it: wait, or give another folder or name")
            if on_wait is not None:
                on_wait(f"{path}: waiting for {_holder(place)}, which is writing it")
                on_wait = None
            check()
            time.sleep(POLL)
    try:
        with suppress(OSError):  # a full disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {HOST}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            place.unlink()
        os.close(handle)


def _holder(place: Path) -> str:
    with suppress(OSError):
        return place.read_text(encoding="utf-8", errors="replace") or "another process"
    return "another process"


@contextmanager
def updated_json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object in ``path``, empty if there is none, and write what the block makes of it.

    Updates of several processes follow one another. Raises FileError like :func:`read_json` and :func:`claimed`.
    """
    with claimed(path, UPDATE):
        content = read_json(path) if path.is_file() else {}
        yield content
        write_json(path, content)
