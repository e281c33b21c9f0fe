"""Signals that end a run: SIGINT (Ctrl-C), SIGTERM, and SIGUSR1, which SLURM can be asked to send.

Where nothing can be lost a signal ends the run at once. Inside :func:`deferred`, which guards the writing of a file and
the stages that run in steps, it waits for the next :func:`check`, that is for the end of the step. A second signal ends
the process at once wherever it is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REPEATED = 1.0  # seconds within which another signal is the same one: GNU timeout and srun deliver theirs twice


class Interrupted(BaseException):
    """A signal ended the run. No :class:`Exception`, so that nothing that recovers from errors takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def code(self) -> int:
        """The exit code: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1."""
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}: the same command continues"


class _State:
    """What the handlers know of this process; only its main thread changes it."""

    depth = 0  # of nested deferred blocks
    received: int | None = None
    at = 0.0


def check() -> None:
    """Raise :class:`Interrupted` if a signal has arrived: to be called between steps, where nothing is half done."""
    if _State.received is not None and _in_main_thread():
        raise Interrupted(_State.received)


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for the next :func:`check`, or for the end of the outermost such block."""
    if not _in_main_thread():  # Python handles signals in the main thread alone
        yield
        return
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    if _State.depth == 0:
        check()


@contextmanager
def handled() -> Iterator[None]:
    """Handle signals in the block as this module says; a signal that the process ignores stays ignored."""
    if not _in_main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    _State.depth, _State.received = 0, None
    try:
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, _receive)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        _State.depth, _State.received = 0, None


def follow_parent() -> None:
    """Prepare a worker process: it ends with its parent, which alone answers Ctrl-C and sends SIGTERM on.

    Signals wait for a block of :func:`at_once`, so that an idle worker is left to its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _State.depth = 1
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, _receive)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def at_once() -> Iterator[None]:
    """Let signals end the block of a worker process like that of :func:`handled`."""
    check()
    _State.depth -= 1
    try:
        yield
    finally:
        _State.depth += 1


def _receive(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.received is None:
        _State.received, _State.at = signum, now
    elif now - _State.at > REPEATED:
        _end_now(signum)
    if _State.depth == 0:
        raise Interrupted(_State.received)


def _end_now(signum: int) -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    os._exit(128 + signum)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
