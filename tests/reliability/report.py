"""Running trials side by side, resuming, and the table of what was tried and what survived."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from .shared import ROOT


@dataclass(frozen=True)
class Settings:
    """How a command was called: ``seed=33 only=17 workers=2 short=true``.

    ``only`` repeats one trial and keeps its folder; ``short`` takes a fixed few, ``count`` about so
    many evenly spaced ones, ``kinds`` those whose kind begins so; ``docs`` puts the table into docs/reliability.md.
    """

    seed: int = 33
    only: int = 0
    workers: int = 2
    short: bool = False
    count: int = 0
    docs: bool = False
    kinds: str = ""
    out: str = "outputs/reliability"

    @staticmethod
    def read(words: Sequence[str]) -> Settings:
        """The settings of a command line; exits in one line for an unknown one."""
        kinds, found = {entry.name: entry.type for entry in fields(Settings)}, {}
        for word in words:
            key, _, value = word.partition("=")
            if key not in kinds or not value:
                raise SystemExit(f"{word}: give {', '.join(f'{name}=...' for name in kinds)}")
            kind = kinds[key]
            found[key] = int(value) if kind == "int" else value == "true" if kind == "bool" else value
        return Settings(**found)


class Seen(NamedTuple):
    """What a trial shows: what went wrong ("" if it survived), the line that the user sees, what was tried."""

    fault: str
    line: str = ""
    about: str = ""


@dataclass(frozen=True)
class Trial:
    """One mishap, which ``run`` tries in an empty folder."""

    index: int
    kind: str
    about: str
    run: Callable[[Path], Seen]


@dataclass(frozen=True)
class Result:
    """What came of a trial."""

    index: int
    kind: str
    about: str
    fault: str
    line: str
    seconds: float


def conduct(name: str, title: str, trials: Sequence[Trial], settings: Settings) -> int:
    """Run the trials that have no result yet, print and write the table; the exit code: 0 if all survived."""
    trials = [each for each in trials if each.kind.startswith(settings.kinds)]
    if settings.only:
        (trial,) = (each for each in trials if each.index == settings.only)
        result = _tried(trial, name, keep=True)
        print(f"{result.kind}: {result.about}\n{result.fault or 'survived'}\n{result.line}")
        return bool(result.fault)
    trials = trials[:: max(1, len(trials) // settings.count)] if settings.count else trials
    place = Path(settings.out)
    place.mkdir(parents=True, exist_ok=True)
    stored = place / f"{name}-{settings.seed}{'-short' if settings.short else ''}-{_code()}.jsonl"
    wanted = {each.index for each in trials}
    known = [result for result in _stored(stored) if result.index in wanted]
    due = [each for each in trials if each.index not in {result.index for result in known}]
    results = [*known, *_side_by_side(name, due, stored, settings, len(known), len(trials))]
    text = _markdown(name, title, sorted(results, key=lambda each: each.index), settings)
    path = place / f"{name}{'-short' if settings.short else ''}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(path)
    if settings.docs:
        _document(name, text)
    return int(any(each.fault for each in results))


def _stored(path: Path) -> list[Result]:
    if not path.is_file():
        return []
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _side_by_side(
    name: str, due: Sequence[Trial], stored: Path, settings: Settings, before: int, total: int
) -> list[Result]:
    """Run trials in ``settings.workers`` forked processes; each result is stored and shown when it comes."""
    reader, writer = os.pipe()
    pids = []
    for number in range(settings.workers):
        if (pid := os.fork()) == 0:
            os.close(reader)
            for trial in due[number :: settings.workers]:
                os.write(writer, (json.dumps(asdict(_tried(trial, name))) + "\n").encode())
            os._exit(0)
        pids.append(pid)
    os.close(writer)
    found, failed = [], 0
    try:
        with os.fdopen(reader) as lines, stored.open("a", encoding="utf-8") as kept:
            for line in lines:
                kept.write(line)
                kept.flush()
                found.append(result := Result(**json.loads(line)))
                failed += bool(result.fault)
                if result.fault:
                    print(f"  {result.index} {result.kind}, {result.about}: {result.fault}", flush=True)
                if len(found) % 10 == 0 or len(found) == len(due):
                    print(f"{name}: {before + len(found)} of {total} tried, {failed} failed", flush=True)
    finally:
        for pid in pids:
            os.waitpid(pid, 0)
    if len(found) != len(due):
        raise SystemExit(f"{name}: {len(due) - len(found)} trials gave no result: a worker died")
    return found


def _tried(trial: Trial, name: str, keep: bool = False) -> Result:
    folder, began = Path(tempfile.mkdtemp(prefix=f"tave-{name}-{trial.index}-")), time.monotonic()
    try:
        seen = trial.run(folder)
    except Exception as error:
        seen = Seen(f"the trial itself fails: {type(error).__name__}: {error}")
    fault, line, about = (re.sub(r"[^\s'\"=]*/?tave-[a-z]+-(\d+-)?\w+/", "", text)[:400] for text in seen)
    if keep:
        print(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - began, 2)
    return Result(trial.index, trial.kind, about or trial.about, fault, line, seconds)


def _markdown(name: str, title: str, results: Sequence[Result], settings: Settings) -> str:
    lines = [f"# {title}", "", f"`python -m tests.reliability.{name} seed={settings.seed}`; commit {_commit()}, "]
    lines[-1] += f"{platform.machine()}, {settings.workers} processes, {_spent(results)}."
    return "\n".join([*lines, "", *table(results), *_failures(name, results, settings), ""])


def _spent(results: Sequence[Result]) -> str:
    return f"{sum(each.seconds for each in results) / 60:.1f} minutes of trials"


def _document(name: str, text: str) -> None:
    """Replace what stands between this command's marks in docs/reliability.md, without its heading."""
    page = ROOT / "docs/reliability.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    tail = rest.split(end)[1]
    body = text.partition("\n")[2].strip()
    page.write_text(f"{head}{begin}\n\n{body}\n\n{end}{tail}", encoding="utf-8")


def table(results: Sequence[Result]) -> list[str]:
    """Tried and survived by kind, with the most frequent line that a user sees."""
    rows = ["| kind | tried | survived | the line that a user sees |", "| --- | --- | --- | --- |"]
    for kind in dict.fromkeys(each.kind for each in results):
        here = [each for each in results if each.kind == kind]
        survived = sum(not each.fault for each in here)
        shown = Counter(each.line for each in here if each.line and not each.fault).most_common(1)
        line = shown[0][0].replace("|", "\\|") if shown else ""
        rows.append(f"| {kind} | {len(here)} | {survived} | {f'`{line}`' if line else ''} |")
    rows.append(f"| all | {len(results)} | {sum(not each.fault for each in results)} | |")
    return rows


def _failures(name: str, results: Sequence[Result], settings: Settings) -> list[str]:
    failed = [each for each in results if each.fault]
    if not failed:
        return []
    lines = ["", f"What failed; `python -m tests.reliability.{name} seed={settings.seed} only=INDEX` repeats it:", ""]
    return lines + [f"- {each.index} {each.kind}, {each.about}: {each.fault}" for each in failed]


def _code() -> str:
    """A digest of the code that is tried and of that which tries it: results of other code are not taken up."""
    sha = hashlib.sha256()
    for folder in ("tave", "eval", "conf", "tests/reliability"):
        for path in sorted((ROOT / folder).rglob("*.[py]*")):
            if path.suffix in (".py", ".yaml"):
                sha.update(path.read_bytes())
    return sha.hexdigest()[:8]


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(*commands: Callable[[Path, Settings], int]) -> int:
    """Run commands under the settings of the command line, in one world; the exit code: 0 if everything survived."""
    settings = Settings.read(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="tave-reliability-") as held:
        return max(command(Path(held), settings) for command in commands)
