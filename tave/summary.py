"""What train and edit say when they end: a short table and the next commands, the folder alone, or one JSON line."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tave.record import REPORT, read_edit, read_metrics

REMEDIES = 3  # of doubtful figures, at most


class Notes(logging.Handler):
    """Keeps the warnings of a command, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._began = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        if (line := " ".join(record.getMessage().split())) not in self.lines:
            self.lines.append(line)

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return round(time.perf_counter() - self._began, 3)


@contextmanager
def noted(quiet: bool) -> Iterator[Notes]:
    """Collect the warnings of the block; ``quiet`` ones aren't shown."""
    root, notes = logging.getLogger(), Notes()
    shown = {handler: handler.level for handler in root.handlers} if quiet else {}
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        for handler in shown:
            handler.setLevel(logging.ERROR)
        root.addHandler(notes)
        try:
            yield notes
        finally:
            root.removeHandler(notes)
            for handler, level in shown.items():
                handler.setLevel(level)


def as_line(content: dict[str, Any]) -> str:
    """``content`` as one line of JSON."""
    return json.dumps(content, default=str)


def say(run: Path, names: Sequence[str], notes: Notes, folders: Sequence[Path], *, quiet: bool, as_json: bool) -> None:
    """Print how the edits ``names`` of a ``run`` came out. The last lines of stdout are the ``folders``."""
    figures = {name: each for name, each in read_metrics(run).get("edits", {}).items() if name in names}
    if as_json:
        edits = {name: run / "edits" / name for name in names}
        content = {"folder": run, "edits": edits, "figures": figures, "warnings": notes.lines, "seconds": notes.seconds}
        print(as_line(content))
        return
    if not quiet:
        print("\n".join(_summary(run, names, figures)), file=sys.stderr, flush=True)
    for folder in folders:
        print(folder)


def _summary(run: Path, names: Sequence[str], figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    from tave.eval.records import printable  # pyright: ignore[reportMissingImports]
    from tave.eval.rules import summary  # pyright: ignore[reportMissingImports]

    remedies: list[str] = []
    yield ""
    for name in names:
        yield printable(f"{name}: {read_edit(run / 'edits' / name).get('target_prompt', '')}")
        lines, more = summary(figures.get(name, {}))
        remedies += more
        yield from (f"  {line}" for line in lines or ["not measured"])
    if not names:
        yield "tuned on the clip; no edit was requested"
    yield from (f"doubtful: {remedy}" for remedy in remedies[:REMEDIES])
    if (run / REPORT).is_file():
        yield f"look at:  {shlex.quote(str(run / REPORT))}"
    yield from (f"          {shlex.quote(str(run / 'edits' / name / 'side_by_side.mp4'))}" for name in names)
    place = shlex.quote(f"run={run}")
    yield f'next:     python -m tave.edit {place} video.target_image=PICTURE video.target_prompt="..."'
    yield f"          python -m tave.verify {place}"
