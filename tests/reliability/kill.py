"""Stop a run at every change of a file and every step, then give the same command again: nothing may differ.

python -m tests.reliability.kill               # make kill
python -m tests.reliability.kill only=17       # one trial again, its folder kept

Three commands are stopped: ``train`` (a clip and its first edit), ``edit`` (another edit of a finished run) and
``remake`` (the first edit again under another option, which replaces it).
"""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .faults import Fault
from .report import Seen, Settings, Trial, conduct, main
from .shared import (
    EDIT,
    TRAIN,
    Outcome,
    call,
    call_anew,
    contents,
    differing,
    fault_of,
    finished,
    hidden,
    prepared,
)

CODES = {"kill": -9, "term": 143, "int": 130}
NAMES = {"kill": "SIGKILL", "term": "SIGTERM", "int": "SIGINT"}
EVERY = 16  # SIGTERM and SIGINT come at each step, and at so many-th changes of a file


@dataclass(frozen=True)
class Command:
    """A command that is stopped: where it begins, what an undisturbed one gives, and what it goes through."""

    name: str
    line: list[str]  # entry point and words
    begins: Path
    known: dict[str, str]
    files: dict[int, str]  # by their number, without those that change nothing
    steps: list[str]
    sizes: list[int]
    states: Path  # N: what was there before the change N of a file, where it differs from all earlier ones
    late: int  # the number of files' changes before the last step: a signal after it may come too late


def command(name: str, line: list[str], begins: Path, where: Path) -> Command:
    """Run it undisturbed and write down its changes of files, its steps and the sizes of its files."""
    folder, log, states = where / f"reference-{name}", where / f"{name}.log", where / f"states-{name}"
    for old in (folder, states):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(begins, folder)
    done = call(line[0], line[1:], folder, log=log, copies=states, limit=300)
    if done.code != 0 or hidden(folder):
        raise SystemExit(f"{name} fails undisturbed ({done.code}), or leaves {hidden(folder)}:\n{done.err}")
    lines = log.read_text().splitlines()
    made = [path for path in folder.rglob("*") if path.is_file()]
    begun = {path: path.stat().st_mtime_ns for path in begins.rglob("*")}
    sizes = sorted(
        {p.stat().st_size for p in made if p.stat().st_mtime_ns != begun.get(begins / p.relative_to(folder))}
    )
    steps = [line.removeprefix("step ") for line in lines if line.startswith("step ")]
    # without what names the process in a temporary file
    changes = [re.sub(r"(\.|part-)[\w.-]*\d{2,}\S*$", "...", line) for line in lines if not line.startswith("step ")]
    files = {number: line for number, line in enumerate(changes, 1) if not line.startswith("idle ")}
    last = max(number for number, line in enumerate(lines) if line.startswith("step "))
    late = sum(not line.startswith("step ") for line in lines[:last])
    return Command(name, line, begins, contents(folder / "run"), files, steps, sizes, states, late)


def stopped(of: Command, fault: Fault, folder: Path, anew: bool = False) -> Seen:
    """Stop it, look at what is left, give the same command again and compare.

    What a SIGKILL at a change of a file leaves was copied when the command ran undisturbed.
    """
    home, before = folder / "home", contents(of.begins / "run")
    if fault.what == "kill" and fault.where == "file" and not anew:
        shutil.copytree(of.states / str(fault.at), home, symlinks=True)
        done = Outcome(CODES["kill"], "", "", 0.0)
    else:
        shutil.copytree(of.begins, home)
        done = (call_anew if anew else call)(of.line[0], of.line[1:], home, fault=fault)
    wrong = _left(of, fault, done, home, before)
    again = call(of.line[0], of.line[1:], home)
    line = done.last
    if not wrong and again.code != 0:
        wrong, line = f"the same command again fails: {fault_of(again) or again.last}", again.last
    if not wrong and (names := differing(contents(home / "run"), of.known)):
        wrong = f"the same command again differs in {', '.join(names[:4])}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:4])}"
    return Seen(wrong, line if fault.what != "kill" else "")


def _left(of: Command, fault: Fault, done: Outcome, home: Path, before: dict[str, str]) -> str:
    """What is wrong before the command is given again: how it ended, and an earlier edit that is lost."""
    late = fault.at > of.late if fault.where == "file" else fault.at == len(of.steps)
    if fault.what != "kill" and late and done.code == 0 and not differing(contents(home / "run"), of.known):
        return ""
    reached = fault.where != "size" or done.code != 0
    code = -25 if fault.where == "size" else CODES[fault.what]
    if done.code == 0 and reached and fault.what == "kill":
        return "the point was not reached: the reference is not what runs"
    if reached and (wrong := fault_of(done, (code,))):
        return wrong
    if fault.what != "kill":
        said = [line for line in done.err.splitlines() if line.startswith(("stopped", "error"))]
        if len(said) != 1 or done.last != said[0]:
            return f"not said in one line: {done.last}"
        if left := hidden(home, resumable=True):
            return f"left behind at its end: {', '.join(left[:4])}"
    stands = {path.name: contents(home / "run") for path in home.glob("run/edits/suv")}
    lost = of.name != "train" and (
        not stands or any(v not in (before[k], of.known.get(k)) for k, v in stands["suv"].items() if k in before)
    )
    if lost and not _held(home, before["suv/edited.mp4"]):
        return f"the earlier edit is lost: {sorted(path.name for path in home.glob('run/edits/*'))}"
    return ""


def _held(home: Path, digest: str) -> bool:
    """Whether the earlier edit still lies somewhere, from where the next start takes it back."""
    from .shared import _sha

    return any(_sha(path.read_bytes()) == digest for path in (home / "run/edits").rglob("edited.mp4"))


def points(of: Command, draw: random.Random) -> list[tuple[str, str, Fault]]:
    """(kind, about, fault) of every trial of a command."""
    found = []
    for number, line in of.files.items():
        if (of.states / str(number)).is_dir():
            found.append((f"{of.name}: SIGKILL at a change of a file", line, Fault("kill", "file", number)))
    for number, line in enumerate(of.steps, 1):
        found.append((f"{of.name}: SIGKILL at a step", line, Fault("kill", "step", number)))
    halves = sorted({size // 2 for size in of.sizes if size > 200})
    for half in halves:
        about = f"at {half} bytes"
        found.append((f"{of.name}: killed in the middle of a write", about, Fault("kill", "size", half)))
    for what in ("term", "int"):
        for number, line in enumerate(of.steps, 1):
            found.append((f"{of.name}: {NAMES[what]} at a step", line, Fault(what, "step", number)))
        for number in sorted(draw.sample(list(of.files), len(of.files) // EVERY)):
            about = of.files[number]
            found.append((f"{of.name}: {NAMES[what]} at a change of a file", about, Fault(what, "file", number)))
    return found


def trials_of(commands: Sequence[Command], settings: Settings) -> list[Trial]:
    """All trials; in the short form the middle one of each fifth kind."""
    draw, found = random.Random(settings.seed), []

    def trial(of: Command, fault: Fault, anew: bool = False) -> Callable[[Path], Seen]:
        return lambda folder: stopped(of, fault, folder, anew)

    for of in commands:
        listed = points(of, draw)
        found += [Trial(0, kind, f"{about} ({fault})", trial(of, fault)) for kind, about, fault in listed]
    for kind, about, fault in draw.sample(points(commands[0], draw), 6):
        kind = f"{kind.partition(':')[0]}: as a process of its own"
        found.append(Trial(0, kind, f"{about} ({fault})", trial(commands[0], fault, anew=True)))
    found = [Trial(number, each.kind, each.about, each.run) for number, each in enumerate(found, 1)]
    if settings.short:
        by_kind = {each.kind: [one for one in found if one.kind == each.kind] for each in found}
        middle = [each[len(each) // 2] for kind, each in by_kind.items() if not kind.endswith("its own")]
        found = middle[::5]
    return found


def kill(where: Path, settings: Settings) -> int:
    """Try all; exit code 0 if every trial survived."""
    world = prepared(where)
    done = finished(world, where / "done")
    commands = [
        command("train", ["train", *TRAIN], world, where),
        command("edit", ["edit", *EDIT], done, where),
        command("remake", ["train", *TRAIN, "sampler.guidance_scale=2"], done, where),
    ]
    title = "Stopped runs: SIGKILL, SIGTERM and SIGINT, then the same command again"
    return conduct("kill", title, trials_of(commands, settings), settings)


if __name__ == "__main__":
    sys.exit(main(kill))
