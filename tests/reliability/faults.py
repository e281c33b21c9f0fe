"""Faults that one process meets at a chosen point: the N-th change of a file, the N-th step of a progress bar, a size.

:func:`install` works in a forked child and, through ``TAVE_FAULT`` and ``sitecustomize.py``, in a process of its own.
It knows nothing of tave: files are counted by Python's audit events, steps by rich's progress bars.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
ERRORS = {"full": errno.ENOSPC, "denied": errno.EACCES, "readonly": errno.EROFS, "broken": errno.EIO}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
NEEDS_SPACE = {"open", "os.mkdir", "os.link", "os.symlink"}


@dataclass(frozen=True)
class Fault:
    """What happens and where.

    ``what``: a signal (kill, term, int), an error of every later change of a file (full, denied, readonly, broken), or
    ``gone``: the folder ``of`` is removed. ``where``: ``file`` or ``step``, ``at`` counts them from 1; or ``size``: no
    file may grow beyond ``at`` bytes, which fails (``full``) or kills the process in the middle of a write.
    """

    what: str
    where: str
    at: int
    of: str = ""

    def __str__(self) -> str:
        return f"{self.what}@{self.where}:{self.at}" + (f":{self.of}" if self.of else "")

    @staticmethod
    def read(text: str) -> Fault:
        """The fault that ``str`` wrote."""
        what, _, rest = text.partition("@")
        where, at, *of = rest.split(":", 2)
        return Fault(what, where, int(at), *of)


def install(
    fault: Fault | None,
    root: Path,
    seen: Callable[[str], None] = lambda line: None,
    copies: Path | None = None,
) -> None:
    """Let this process meet ``fault``; ``seen`` gets a line for each change of a file under ``root`` and each step.

    ``copies/N``: what is below ``root`` before the N-th change of a file, as a SIGKILL would leave it; left out where
    it is as before an earlier one.
    """
    if fault is not None and fault.where == "size":
        _limit_sizes(fault)
    count = {"file": 0, "step": 0}
    inside = threading.local()  # the fault's own removal of a folder must not be counted
    here = root.resolve()
    states: set[frozenset[Any]] = set()

    def met(where: str, event: str, line: str) -> None:
        if getattr(inside, "busy", False):
            return
        count[where] += 1
        if copies is not None and where == "file" and not line.startswith("idle "):
            inside.busy = True
            if (now := _state(here)) not in states:
                states.add(now)
                shutil.copytree(here, copies / str(count["file"]), symlinks=True)
            inside.busy = False
        seen(line)
        if fault is None or fault.where != where:
            return
        if fault.what in ERRORS and count["file"] >= fault.at and (fault.what != "full" or event in NEEDS_SPACE):
            number = ERRORS[fault.what]
            raise OSError(number, os.strerror(number), line.rsplit(" ", 1)[1])
        if count[where] == fault.at:
            inside.busy = True
            try:
                _act(fault)
            finally:
                inside.busy = False

    def hook(event: str, args: Sequence[Any]) -> None:
        if (event == "open" and _writes(args)) or event in CHANGES:
            path = _absolute(event, args)
            if path is not None and path.is_relative_to(here):
                # without effect: a folder that is there, a file that is not
                idle = (event == "os.mkdir" and path.exists()) or (event == "os.remove" and not os.path.lexists(path))
                met("file", event, f"{'idle ' if idle else ''}{event} {path.relative_to(here)}")

    sys.addaudithook(hook)
    _count_steps(lambda line: met("step", "", line))


def _state(root: Path) -> frozenset[Any]:
    """What is below ``root``: equal for two moments of one process at which it holds the same."""
    found = []
    for path in root.rglob("*"):
        facts = path.lstat()
        content = (facts.st_size, facts.st_mtime_ns) if path.is_file() and facts.st_size else ()
        found.append((path.relative_to(root), facts.st_mode, content))
    return frozenset(found)


def _act(fault: Fault) -> None:
    if fault.what in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.what])
    elif fault.what == "gone":
        shutil.rmtree(fault.of, ignore_errors=True)


def _limit_sizes(fault: Fault) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN if fault.what == "full" else signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, fault.at))


def _writes(args: Sequence[Any]) -> bool:
    flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _absolute(event: str, args: Sequence[Any]) -> Path | None:
    if not isinstance(args[0], str | bytes | os.PathLike):
        return None  # a descriptor that is open already
    path = Path(os.fsdecode(args[0]))
    if event != "open" and isinstance(args[-1], int) and args[-1] >= 0:  # relative to an open folder
        place = Path(f"/proc/self/fd/{args[-1]}")
        path = place.resolve() / path if place.exists() else path
    return path.parent.resolve() / path.name


def _count_steps(met: Callable[[str], None]) -> None:
    from rich.progress import Progress

    update = Progress.update

    def counted(self: Progress, task_id: Any, *args: Any, **more: Any) -> None:
        update(self, task_id, *args, **more)
        task = self.tasks[0]
        met(f"step {task.description.strip()} {task.completed:.0f}/{task.total or 0:.0f}")

    Progress.update = counted  # type: ignore[method-assign]


def from_environment() -> None:
    """Install the fault that ``TAVE_FAULT`` describes, counted below ``TAVE_FAULT_ROOT``."""
    if text := os.environ.get("TAVE_FAULT"):
        install(Fault.read(text), Path(os.environ["TAVE_FAULT_ROOT"]))
