"""One job in a process of its own, through the ordinary entry points; and the parent's side of it.

python -m tave.app.worker    in a job's folder, which holds request.json; events come out as lines of JSON

SIGTERM ends it at its next step, and so does the end of its parent. What it held goes with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tave.app.check import module_process
from tave.app.public import cut
from tave.files import read_json, write_json
from tave.interrupts import Interrupted, handled
from tave.keys import ROOTS

REQUEST = "request.json"
LOG = "log.txt"
WEB = "web"  # clips for browsers, in a job's folder
INTERVAL = 0.5  # s between two events of a stage's steps
PATIENCE = 60.0  # s from SIGTERM to SIGKILL
Send = Callable[[Mapping[str, Any]], None]


# ---- the parent's side -----------------------------------------------------------------------------------------------


class Child:
    """A running job. ``wait`` calls ``send`` with each event and returns the exit code."""

    def __init__(self, folder: Path, words: Sequence[str], run: str, *, tuned: bool) -> None:
        write_json(folder / REQUEST, {"words": list(words), "run": run, "tuned": tuned})
        with (folder / LOG).open("ab") as log:
            self._process = module_process("tave.app.worker", stderr=log, cwd=folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, send: Send) -> int:
        """Until it has ended."""
        assert self._process.stdout is not None and self._process.stdin is not None
        with self._process.stdin, self._process.stdout:  # the end of its input would tell it that its parent is gone
            for line in self._process.stdout:
                send(json.loads(line))
            return self._process.wait()

    def stop(self) -> None:
        """:meth:`cancel`, and wait."""
        self.cancel()
        self._process.wait()

    def cancel(self) -> None:
        """Have it end at its next step, or at once if that takes over a minute."""
        self._process.terminate()
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.daemon = True
        timer.start()


def reason(code: int) -> str:
    """Why a child ended that gave no reason itself."""
    if code == -signal.SIGKILL:
        return "the job was ended by the system, most likely for lack of memory: give fewer video.frames"
    return f"the job ended with code {code}: give it again, and see the server's {LOG} if that doesn't help"


# ---- the child's side ------------------------------------------------------------------------------------------------


def perform(request: Mapping[str, Any], send: Send) -> list[str]:
    """Make the edits of a request in the working directory; returns their names. Raises what the entry points raise."""
    from tave.cli import compose_options, typed
    from tave.edit import edit, options_of
    from tave.source import footage_of
    from tave.train import train

    words, run = list(request["words"]), Path(request["run"])
    with followed(run, send):
        if request["tuned"]:
            options = typed(options_of(run, words))
            made = edit(run, options, overrides=words, footage=footage_of(run, options.video), show=False)
        else:
            options = compose_options("train", words)
            train(options, run, chosen={"experiment": None, "overrides": words}, show=False)
            made = list(options.video.requests())
        for name in made:
            from tave.app.preview import write_previews

            write_previews(run, name, Path(WEB))
    return made


@contextmanager
def followed(run: Path, send: Send) -> Iterator[None]:
    """Report the stages, warnings and the soft map of what happens in the block."""
    from tave import progress

    last = [0.0]

    def on_event(event: progress.Event) -> None:
        if event.value is not None:
            from tave.app.preview import write_soft

            write_soft(run / "source.mp4", event.value, Path(WEB))
            send({"file": "soft"})
            return
        now = time.monotonic()
        if 0 < event.done < (event.total or 0) and now - last[0] < INTERVAL:
            return
        last[0] = now
        about = {"done": event.done, "total": event.total, "seconds": round(event.seconds, 2), "over": event.over}
        send({"stage": event.stage, "label": event.label, "peak_mb": event.peak_mb, **about})

    handler = _Warnings(send)
    root = logging.getLogger()
    root.addHandler(handler)
    progress.listeners.append(on_event)
    try:
        yield
    finally:
        progress.listeners.remove(on_event)
        root.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("tave"):
            self._send({"warning": cut(record.getMessage())})


def main() -> None:
    """Exit code 0 if all is made, 1 after an error, 143 if it was cancelled."""
    os.umask(0o077)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event
    lock = threading.Lock()

    def send(event: Mapping[str, Any]) -> None:
        with lock:
            print(json.dumps(event), file=out, flush=True)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    try:
        with handled():
            send({"edits": perform(read_json(Path(REQUEST)), send)})
    except Interrupted as stop:
        code = stop.code
    except Exception as error:
        logging.getLogger(__name__).exception("the job failed")
        send({"error": cut(_line(error))})
        code = 1
    out.close()
    raise SystemExit(code)


def _line(error: Exception) -> str:
    from tave.cli import one_line

    line = one_line(error, ROOTS["train"])
    known = isinstance(error, ValueError | OSError) or type(error).__name__ == "OutOfMemoryError"
    return line if known and line else f"{type(error).__name__}: {line}"


def _end_with_parent() -> None:
    """The parent holds the other end of standard input as long as it lives."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
