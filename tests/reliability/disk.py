"""Full disks, folders that may not be written, and folders that vanish: one line, nothing lost, then it goes on.

python -m tests.reliability.disk               # make disk
python -m tests.reliability.disk only=17       # one trial again, its folder kept

A disk is full in three ways: every change of a file fails from the N-th on, no file may grow beyond a size, and a real
file system of few kilobytes (where this user may mount one). Rights are tried as another user, which root alone can be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .faults import NEEDS_SPACE, Fault
from .kill import Command, command
from .report import Seen, Settings, Trial, conduct, main
from .shared import (
    EDIT,
    TRAIN,
    Outcome,
    call,
    contents,
    differing,
    fault_of,
    finished,
    hidden,
    prepared,
)

NOBODY = 65_534
SPACES = (4, 16, 40, 80, 120, 140, 170, 200, 240, 280, 330, 400)  # kilobytes of a file system
ERRORS = {"full": "full disk", "denied": "no rights", "readonly": "read-only file system", "broken": "broken disk"}


def judged(
    of: Command,
    done: Outcome,
    home: Path,
    before: dict[str, str],
    undo: Callable[[], None],
    removed: tuple[str, ...] = (),
) -> Seen:
    """One line and exit code 1, earlier edits as they were; after ``undo`` the same command completes.

    Exit code 0 is as good if everything is there but what begins with one of ``removed``.
    """
    wrong = fault_of(done)
    now = contents(home / "run")
    if not wrong and done.code == 0 and [name for name in differing(now, of.known) if not name.startswith(removed)]:
        wrong = "exit code 0, and something is not there"
    kept = {key: value for key, value in before.items() if key.startswith("suv/") or value != "absent"}
    lost = [key for key, value in kept.items() if now.get(key) not in (value, of.known.get(key))]
    if not wrong and lost:
        wrong = f"earlier results are lost: {', '.join(lost[:4])}"
    undo()
    again = call(of.line[0], of.line[1:], home)
    if not wrong and again.code != 0:
        wrong = f"the same command afterwards fails: {fault_of(again) or again.last}"
    if not wrong and (names := differing(contents(home / "run"), of.known)):
        wrong = f"the same command afterwards differs in {', '.join(names[:4])}"
    if not wrong and (left := hidden(home)):
        wrong = f"left behind: {', '.join(left[:4])}"
    return Seen(wrong, done.last if done.code else "")


# ---- injected --------------------------------------------------------------------------------------------------------


def injected(of: Command, fault: Fault, folder: Path) -> Seen:
    """Every change of a file fails from one on, or none may grow beyond a size."""
    home = folder / "home"
    shutil.copytree(of.begins, home)
    before = contents(home / "run")
    done = call(of.line[0], of.line[1:], home, fault=fault)
    return judged(of, done, home, before, lambda: None)


def vanished(of: Command, fault: Fault, folder: Path) -> Seen:
    """A folder is removed under way; what it held is gone, so that alone what is outside of it has to stand."""
    home = folder / "home"
    shutil.copytree(of.begins, home)
    gone, fault = fault.of, Fault(fault.what, fault.where, fault.at, str(home / fault.of))
    done = call(of.line[0], of.line[1:], home, fault=fault)

    def undo() -> None:  # the clip's and the edited run's files are the user's to bring back
        shutil.copytree(of.begins, home, dirs_exist_ok=True)

    return judged(of, done, home, {}, undo, ("suv/",) if gone == "run/edits" else ())


# ---- real ------------------------------------------------------------------------------------------------------------


def mounts() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True, check=False
        )
        if done.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return done.returncode == 0


def mounted(of: Command, place: str, kilobytes: int, folder: Path) -> Seen:
    """``place`` is a file system of its own with this much space left; 0: it is read-only."""
    home = folder / "home"
    shutil.copytree(of.begins, home)
    there = home / place
    there.mkdir(exist_ok=True)
    before, used = contents(home / "run"), _kilobytes(there)
    options = f"size={used + kilobytes}k" if kilobytes else "size=9m"
    if place == "." or any(there.iterdir()):
        shutil.move(there, folder / "filled")
        there.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(there)], check=True)
    try:
        if (folder / "filled").exists():
            shutil.copytree(folder / "filled", there, dirs_exist_ok=True)
        if not kilobytes:
            subprocess.run(["mount", "-o", "remount,ro", str(there)], check=True)
        done = call(of.line[0], of.line[1:], home)
        undo = ["mount", "-o", "remount,rw,size=9m", str(there)]
        return judged(of, done, home, before, lambda: subprocess.run(undo, check=True) and None)
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)


def _kilobytes(folder: Path) -> int:
    """What a folder takes on a file system with pages of 4 kB."""
    return sum(4 + (path.stat().st_size + 4095) // 4096 * 4 for path in folder.rglob("*")) + 4


def without_rights(of: Command, place: str, mode: int, folder: Path) -> Seen:
    """As a user to whom everything belongs but ``place``, which has ``mode``."""
    home = folder / "home"
    shutil.copytree(of.begins, home)
    folder.chmod(0o755)
    before = contents(home / "run")
    there = home / place
    if not there.exists():
        there.mkdir()
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.chown(there, 0, 0)
    ours = there.stat().st_mode
    there.chmod(mode)

    def become() -> None:
        os.environ["HOME"] = str(home)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    done = call(of.line[0], of.line[1:], home, prepare=become)
    return judged(of, done, home, before, lambda: there.chmod(ours))


# ---- the list --------------------------------------------------------------------------------------------------------


def trials_of(commands: list[Command], settings: Settings) -> list[Trial]:
    """A full disk at every change of a file that takes space, other errors at some; sizes, mounts, rights, folders."""
    listed: list[tuple[str, str, Callable[[Path], Seen]]] = []
    real = mounts()
    for of in commands:
        growing = [number for number, line in of.files.items() if line.split()[0] in NEEDS_SPACE]
        for what, each in (("full", 1), ("denied", 6), ("readonly", 8), ("broken", 8)):
            for number in growing if what == "full" else list(of.files)[::each]:
                fault = Fault(what, "file", number)
                about = f"{of.files[number]} ({fault})"
                listed.append((f"{of.name}: {ERRORS[what]}, injected", about, _bound(injected, of, fault)))
        for half in sorted({size // 2 for size in of.sizes if size > 200}):
            fault = Fault("full", "size", half)
            listed.append((f"{of.name}: no file beyond a size", f"{half} bytes", _bound(injected, of, fault)))
        for gone in ("run", "cache", "run/edits") if of.name == "edit" else ("run", "cache"):
            for number in list(of.files)[1::12]:
                fault = Fault("gone", "file", number, gone)
                about = f"{gone} at {of.files[number]}"
                listed.append((f"{of.name}: folder removed", about, _bound(vanished, of, fault)))
        for place in ("cache", "run") if real else ():
            for space in (0, *SPACES):
                kind = f"{of.name}: {'a file system of few kB' if space else 'a read-only file system'}"
                listed.append((kind, f"{place}, {space} kB", _bound(mounted, of, place, space)))
        for place, mode in RIGHTS[of.name] if os.geteuid() == 0 else ():
            listed.append((f"{of.name}: no rights", f"{place} {mode:o}", _bound(without_rights, of, place, mode)))
    found = [Trial(number, *each) for number, each in enumerate(listed, 1)]
    if settings.short:
        by_kind = {each.kind: [one for one in found if one.kind == each.kind] for each in found}
        found = [each[len(each) // 2] for each in list(by_kind.values())[::3]]
    return found


RIGHTS = {
    "train": [("cache", 0o555), ("run", 0o555), (".", 0o555), ("cache", 0), ("run", 0), ("clip/source.mp4", 0),
              ("clip/target.png", 0), ("clip", 0)],
    "edit": [("cache", 0o555), ("cache", 0), ("run", 0o555), ("run/edits", 0o555), ("run/run.json", 0),
             ("run/source.mp4", 0), ("run/tuned.safetensors", 0), ("run/trajectory.safetensors", 0), ("other.png", 0),
             ("run/metrics.json", 0), ("run/edits", 0)],
}  # fmt: skip


def _bound(work: Callable[..., Seen], *given: object) -> Callable[[Path], Seen]:
    return lambda folder: work(*given, folder)


def disk(where: Path, settings: Settings) -> int:
    """Try all; exit code 0 if every trial survived."""
    world = prepared(where)
    done = finished(world, where / "done")
    commands = [command("train", ["train", *TRAIN], world, where), command("edit", ["edit", *EDIT], done, where)]
    title = "Full disks, missing rights, vanished folders, then the same command again"
    return conduct("disk", title, trials_of(commands, settings), settings)


if __name__ == "__main__":
    sys.exit(main(disk))
