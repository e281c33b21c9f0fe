"""Claims between processes: who writes a file or a folder alone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tave.files import HOST, LOCK, FileError, hold, made_folder, writing
from tave.interrupts import check, deferred

POLL = 0.05  # seconds between two attempts
UPDATE = 120.0  # seconds that an update of a file waits for another one, which takes milliseconds


class ClaimedError(FileError):
    """What another process holds; the message names both."""


@contextmanager
def claimed(path: Path, wait: float = 0.0, on_wait: Callable[[str], Any] | None = None) -> Iterator[None]:
    """Hold ``path``, which need not exist, alone among all processes; raises :class:`ClaimedError` if another holds it.

    The claim ends with the block or, by the kernel's hand, with the process, and leaves no file behind.

    Args:
        wait: seconds to wait for another holder, infinity included.
        on_wait: called once, with a line that says who is waited for.
    """
    place = path.with_name(f"{LOCK}{hashlib.sha256(path.name.encode()).hexdigest()[:16]}")
    until = time.monotonic() + wait
    handle: int | None = None
    with ExitStack() as around:
        with writing(path):
            around.enter_context(made_folder(place.parent))
        around.callback(lambda: handle is None or _release(place, handle))
        while True:
            with deferred():  # a signal between taking and noting the lock file would leave it behind
                handle = _held(place, path)
            if handle is not None:
                break
            if time.monotonic() >= until:
                raise ClaimedError(f"{path}: {_holder(place)} is writing it: wait, or give another folder or name")
            if on_wait is not None:
                on_wait(f"{path}: waiting for {_holder(place)}, which is writing it")
                on_wait = None
            check()
            time.sleep(POLL)
        with suppress(OSError):  # a full disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {HOST}".encode(), 0)
        yield


def _release(place: Path, handle: int) -> None:
    with deferred():
        with suppress(OSError):
            place.unlink()
        os.close(handle)


def _held(place: Path, path: Path) -> int | None:
    with writing(path):
        return hold(place)


@contextmanager
def all_claimed(paths: Iterable[Path], wait: float, on_wait: Callable[[str], Any] | None = None) -> Iterator[None]:
    """:func:`claimed` for several paths, in an order in which no two processes wait for each other."""
    with ExitStack() as claims:
        for path in sorted(paths):
            claims.enter_context(claimed(path, wait, on_wait))
        yield


def _holder(place: Path) -> str:
    with suppress(OSError):
        return place.read_text(encoding="utf-8", errors="replace") or "another process"
    return "another process"
