"""Several processes at once on one cache, one run, one name, one sweep: nothing is lost, nothing is half.

python -m tests.reliability.together           # make together
python -m tests.reliability.together only=3    # one trial again, its folder kept
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .report import Seen, Settings, Trial, conduct, main
from .shared import (
    EDIT,
    SUV,
    TINY,
    TRAIN,
    Outcome,
    begin,
    call,
    contents,
    differing,
    fault_of,
    finished,
    hidden,
    prepared,
)

SCALES = (1, 2, 4, 5)  # guidance scales of four different edits of one name
SWEEP = ["-m", *TINY, *SUV, "cache=cache", "hydra.sweep.dir=sweep", "mask.dilate=0,0.1,0.2"]
ROUNDS = 8


@dataclass(frozen=True)
class World:
    """``fresh`` has inputs alone, ``done`` a finished run; what each command gives when it is alone."""

    fresh: Path
    done: Path
    train: dict[str, str]
    other: dict[str, str]  # trained with another seed
    edits: dict[str, dict[str, str]]  # by the words that differ
    sweep: dict[str, dict[str, str]]  # by job


def at_once(
    calls: Sequence[tuple[str, list[str]]], home: Path, draw: random.Random, limit: float = 240
) -> list[Outcome]:
    """Begin the calls within up to a second and wait for all."""
    pause, running = draw.choice([0.0, 0.0, 0.05, 0.3]), []
    for entry, words in calls:
        running.append(begin(entry, words, home))
        time.sleep(pause * draw.random())
    return [each.wait(240) for each in running]


def _ended(ended: Sequence[Outcome], least: int) -> str:
    """What is wrong with how they ended; ``least`` of them have to succeed, others say in a line why they don't."""
    wrong = next((fault for fault in map(fault_of, ended) if fault), "")
    good = sum(each.code == 0 for each in ended)
    return wrong or (f"{good} of {len(ended)} succeed: {_said(ended)}" if good < least else "")


def _said(ended: Sequence[Outcome]) -> str:
    return next((each.last for each in ended if each.code), "")


def _edit(home: Path, name: str) -> dict[str, str]:
    """The contents of one edit of ``home/run``."""
    found = contents(home / "run").items()
    return {key.partition("/")[2]: value for key, value in found if key.startswith(f"{name}/")}


def one_cache(world: World, home: Path, draw: random.Random) -> Seen:
    """Eight runs share a cache: all succeed, each is as if alone."""
    shutil.copytree(world.fresh, home)
    words = [word for word in TRAIN if not word.startswith("hydra.run.dir=")]
    ended = at_once([("train", [*words, f"hydra.run.dir=run-{n}"]) for n in range(8)], home, draw)
    wrong = _ended(ended, 8)
    for number in range(8):
        if not wrong and (names := differing(contents(home / f"run-{number}"), world.train)):
            wrong = f"run-{number} differs in {', '.join(names[:3])}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:3])}"
    return Seen(wrong, _said(ended))


def one_name(world: World, home: Path, draw: random.Random) -> Seen:
    """Four different edits of one name: who succeeds has a folder of its own with its edit."""
    shutil.copytree(world.done, home)
    words = list(world.edits)
    ended = at_once([("edit", [*EDIT, word]) for word in words], home, draw)
    wrong, folders = _ended(ended, 1), []
    for word, each in zip(words, ended, strict=True):
        if each.code or wrong:
            continue
        folders.append(folder := each.out.split()[-1])
        found = _edit(home, Path(folder).name)
        if names := differing(found, world.edits[word]):
            wrong = f"{word}: {folder} is another edit or half of one ({', '.join(names[:3])})"
    if not wrong and len(set(folders)) != len(folders):
        wrong = f"an edit is lost: {', '.join(folders)}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:3])}"
    return Seen(wrong, _said(ended), f"{len(folders)} of {len(words)} succeed")


def one_edit(world: World, home: Path, draw: random.Random) -> Seen:
    """Four times the same edit: it is there once, whole."""
    shutil.copytree(world.done, home)
    word, known = next(iter(world.edits.items()))
    ended = at_once([("edit", [*EDIT, word])] * 4, home, draw)
    wrong = _ended(ended, 1)
    again = call("edit", [*EDIT, word], home)
    wrong = wrong or fault_of(again, (0,))
    for folder in sorted(path.name for path in home.glob("run/edits/van*")):
        if not wrong and (names := differing(_edit(home, folder), known)):
            wrong = f"{folder} differs in {', '.join(names[:3])}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:3])}"
    return Seen(wrong, _said(ended), f"{len(list(home.glob('run/edits/van*')))} folders")


def one_sweep(world: World, home: Path, draw: random.Random) -> Seen:
    """Two sweeps with the same jobs into one folder; the same command again completes what is not there."""
    shutil.copytree(world.fresh, home)
    ended = at_once([("train", SWEEP)] * 2, home, draw)
    wrong = ""
    for each in ended:
        errors = [line for line in each.err.splitlines() if line.startswith("error: ")]
        if each.code not in (0, 1) or "Traceback" in each.err or (each.code == 1 and not errors):
            wrong = fault_of(each) or "no line says why"
    again = call("train", SWEEP, home, limit=240)
    wrong = wrong or (f"the same command again: {fault_of(again, (0,))}" if again.code else "")
    found = {path.parent.name: contents(path.parent) for path in home.glob("sweep/*/run.json")}
    if not wrong and set(found) != set(world.sweep):
        wrong = f"{len(found)} of {len(world.sweep)} jobs have a folder"
    for name in found:
        if not wrong and (names := differing(found[name], world.sweep[name])):
            wrong = f"{name} differs in {', '.join(names[:3])}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:3])}"
    return Seen(wrong, _said(ended), f"exit codes {', '.join(str(each.code) for each in ended)}")


def one_folder(world: World, home: Path, draw: random.Random) -> Seen:
    """Two runs into one folder, the same or of another seed: it is one of them, whole."""
    shutil.copytree(world.fresh, home)
    other = [*TRAIN, "seed=7"] if draw.random() < 0.5 else TRAIN
    ended = at_once([("train", TRAIN), ("train", other)], home, draw)
    wrong = _ended(ended, 1)
    found = contents(home / "run")
    meant = [world.train, world.other] if other is not TRAIN else [world.train]
    allowed = [known for known, each in zip(meant, ended, strict=False) if each.code == 0] or [world.train]
    if not wrong and all(differing(found, known) for known in allowed):
        wrong = f"neither of the two: {', '.join(differing(found, allowed[0])[:4])} differ"
    if not wrong and other is not TRAIN and all(each.code == 0 for each in ended):
        wrong = "both succeed in one folder, so one is lost"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:3])}"
    return Seen(wrong, _said(ended), "the same" if other is TRAIN else "of another seed")


KINDS: dict[str, tuple[int, Callable[[World, Path, random.Random], Seen]]] = {
    "8 runs, one cache": (ROUNDS // 2, one_cache),
    "4 different edits of one name": (ROUNDS, one_name),
    "4 times the same edit": (ROUNDS, one_edit),
    "2 sweeps into one folder": (ROUNDS // 2, one_sweep),
    "2 runs into one folder": (2 * ROUNDS, one_folder),
}


def trials_of(world: World, settings: Settings) -> list[Trial]:
    """Every kind several times; when each process begins comes from the seed."""
    found: list[Trial] = []
    for kind, (rounds, work) in KINDS.items():
        for number in range(rounds):
            draw = random.Random(f"{settings.seed} {kind} {number}")
            run = _bound(work, world, draw)
            found.append(Trial(len(found) + 1, kind, "", run))
    if settings.short:
        found = [next(each for each in found if each.kind == kind) for kind in KINDS]
    return found


def _bound(work: Callable[..., Seen], world: World, draw: random.Random) -> Callable[[Path], Seen]:
    return lambda folder: work(world, folder / "home", draw)


def make(where: Path) -> World:
    """What each command gives when it is alone."""
    fresh = prepared(where)
    done = finished(fresh, where / "done")

    def alone(begins: Path, name: str, entry: str, words: list[str]) -> Path:
        folder = where / name
        shutil.copytree(begins, folder)
        if (ended := call(entry, words, folder, limit=240)).code:
            raise SystemExit(ended.err)
        return folder

    other = alone(fresh, "other", "train", [*TRAIN, "seed=7"])
    swept = alone(fresh, "sweep", "train", SWEEP)
    edits = {}
    for scale in SCALES:
        word = f"sampler.guidance_scale={scale}"
        edits[word] = _edit(alone(done, f"edit-{scale}", "edit", [*EDIT, word]), "van")
    jobs = {path.parent.name: contents(path.parent) for path in swept.glob("sweep/*/run.json")}
    return World(fresh, done, contents(done / "run"), contents(other / "run"), edits, jobs)


def together(where: Path, settings: Settings) -> int:
    """Try all; exit code 0 if every trial survived."""
    return conduct("together", "Several processes at once", trials_of(make(where), settings), settings)


if __name__ == "__main__":
    sys.exit(main(together))
