"""What the four commands share: a small world to work in, forked calls of entry points, and the digests of results."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import Fault, install

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
MODULES = {name: f"tave.{name}" for name in ("train", "edit", "verify", "benchmark", "doctor")}
MODULES |= {name: f"tave.eval.{name}" for name in ("score", "leaderboard", "study")}
MODULES |= {"cache": "tave.stored", "batch": "tave.app.batch"}
TINY = ["video=custom", "video.path=clip/source.mp4", "video.source_prompt=a white bus", "backbone=tiny"]
TINY += ["tuning.steps=2", "inversion.steps=2", "inversion.refine=0", "metrics.judge=null", "logger=none"]
SUV = ["video.target_image=clip/target.png", "video.target_prompt=a red suv", "video.edit=suv"]
VAN = ["video.target_image=other.png", "video.target_prompt=a blue van", "video.edit=van"]
TRAIN = [*TINY, *SUV, "cache=cache", "hydra.run.dir=run"]
EDIT = ["run=run", "inputs=clip", *VAN]
# A line that only a programmer can read: the name of an exception, or the words of one that nobody caught.
JARGON = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b|\bcodec\b|\[Errno|NoneType")
VOLATILE = re.compile(r"seconds|peak|memory|\btime\b")


@dataclass(frozen=True)
class Outcome:
    """How a call ended. ``code`` is negative after a signal and None if it had to be stopped at its time limit."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The line that a user sees last, of stderr."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


# ---- calls -----------------------------------------------------------------------------------------------------------


def warm(folder: Path) -> None:
    """Import here what a run needs, so that forked calls start at once. Computes nothing: threads don't survive forks.

    A whole run in a forked child in ``folder`` names the modules.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for name in MODULES.values():
        importlib.import_module(name)
    from tave.cli import compose_options

    compose_options("train", [*TRAIN, "mask.steps=[0,1]", "logger=csv"])  # fills the caches of Hydra's parser
    listed = folder / "modules.json"

    def whole() -> None:
        _main("train")
        listed.write_text(json.dumps(sorted(sys.modules)))

    start(whole, folder, ["train", *TRAIN]).wait(300)
    for name in json.loads(listed.read_text()) if listed.exists() else ():
        if name not in sys.modules and not name.startswith("__"):
            try:
                importlib.import_module(name)
            except Exception:
                continue  # made by another module while it ran
    listed.unlink(missing_ok=True)


class Child:
    """A running call; ``wait`` for its :class:`Outcome`."""

    def __init__(self, pid: int, streams: tuple[Path, Path]) -> None:
        self.pid, self.streams, self.began = pid, streams, time.monotonic()

    def wait(self, limit: float) -> Outcome:
        """The outcome; a call that takes longer than ``limit`` seconds is killed with all that it started."""
        status: int | None = None
        while status is None:
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(ended)
            elif time.monotonic() - self.began > limit:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            else:
                time.sleep(0.01)
        seconds = time.monotonic() - self.began
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left running
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self.streams)
        for path in self.streams:
            path.unlink(missing_ok=True)
        return Outcome(status, out, err, seconds)


def start(
    work: Callable[[], Any], folder: Path, words: Sequence[str], prepare: Callable[[], Any] | None = None
) -> Child:
    """Run ``work`` in a forked child in ``folder`` with ``words`` as its command line, after ``prepare``."""
    streams = tuple(Path(tempfile.mkstemp(prefix="reliability-")[1]) for _ in range(2))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(work, folder, words, streams, prepare)
    return Child(pid, streams)  # type: ignore[arg-type]


def _become(
    work: Callable[[], Any],
    folder: Path,
    words: Sequence[str],
    streams: Sequence[Path],
    prepare: Callable[[], Any] | None,
) -> None:
    """The child's life; never returns. Ends as the interpreter would: exit code, traceback, functions of atexit."""
    code = 1
    try:
        os.setsid()
        atexit._clear()
        for number, path in zip((1, 2), streams, strict=True):
            os.dup2(os.open(path, os.O_WRONLY), number)
        for number, stream in ((0, sys.__stdin__), (1, sys.__stdout__), (2, sys.__stderr__)):
            if number == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            elif stream is not None:
                made = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), line_buffering=True)
                setattr(sys, ("stdout", "stderr")[number - 1], made)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(ENVIRONMENT)
        os.chdir(folder)
        sys.argv = list(words)
        if prepare is not None:
            prepare()
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code & 255)


def _main(entry: str) -> None:
    importlib.import_module(MODULES[entry]).main()


def begin(
    entry: str,
    words: Sequence[str],
    folder: Path,
    fault: Fault | None = None,
    log: Path | None = None,
    copies: Path | None = None,
    prepare: Callable[[], Any] | None = None,
) -> Child:
    """Begin ``python -m tave.ENTRY WORDS`` in ``folder``, in a forked child that meets ``fault``."""

    def ready() -> None:
        if fault is not None or log is not None:
            # held open: opened at each line, it would be counted itself
            lines = log.open("w") if log is not None else None
            install(fault, folder, lambda line: print(line, file=lines, flush=True) if lines else None, copies)
        if prepare is not None:
            prepare()

    return start(lambda: _main(entry), folder, [f"tave-{entry}", *words], ready)


def call(entry: str, words: Sequence[str], folder: Path, *, limit: float = 90, **more: Any) -> Outcome:
    """:func:`begin` and wait."""
    return begin(entry, words, folder, **more).wait(limit)


def call_anew(entry: str, words: Sequence[str], folder: Path, fault: Fault | None, limit: float = 180) -> Outcome:
    """The same in a process of its own, as a user starts it."""
    path = os.pathsep.join([str(Path(__file__).parent / "site"), str(ROOT)])
    env = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "TAVE_FAULT_ROOT": str(folder)}
    env |= {"TAVE_FAULT": str(fault)} if fault else {}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULES[entry], *words],
            capture_output=True, text=True, errors="replace", env=env, cwd=folder, timeout=limit, check=False,
            # a shell's background job ignores Ctrl-C, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return Outcome(None, "", str(late), limit)
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


# ---- the world -------------------------------------------------------------------------------------------------------


def make_world(folder: Path) -> Path:
    """A folder with ``clip/`` (8 frames of 32 px, target.png, truth), and another target, ``other.png``."""
    from PIL import Image

    from tave.roadside.cases import NAMED
    from tave.roadside.files import write_case

    folder.mkdir(parents=True)
    write_case(NAMED["bus_to_suv"], folder / "clip", 32)
    with Image.open(folder / "clip/target.png") as picture:
        red, green, blue, *alpha = picture.split()
        Image.merge(picture.mode, [blue, green, red, *alpha]).save(folder / "other.png")
    return folder


def prepared(where: Path) -> Path:
    """The world in ``where/fresh``, drawn once, and this process warm for it."""
    fresh = where / "fresh"
    if not fresh.exists():
        make_world(fresh)
        shutil.copytree(fresh, where / "warm")
        warm(where / "warm")
    return fresh


def finished(world: Path, folder: Path) -> Path:
    """``world`` in ``folder``, with the finished run ``run`` of :data:`TRAIN` and its ``cache``."""
    if folder.exists():
        return folder
    shutil.copytree(world, folder)
    done = call("train", TRAIN, folder, limit=300)
    if done.code != 0:
        raise SystemExit(f"an undisturbed run fails, so nothing can be tried:\n{done.err}")
    return folder


# ---- results ---------------------------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, str]:
    """A digest of each result of a run: tuned weights, trajectory, every file of every edit, figures."""
    found = {name: _tensors(run / f"{name}.safetensors") for name in ("tuned", "trajectory")}
    for path in sorted(run.glob("edits/*/*")):
        if not path.is_file():
            found[f"{path.parent.name}/{path.name}"] = "absent"
        elif path.suffix in (".mp4", ".png"):
            found[f"{path.parent.name}/{path.name}"] = _sha(path.read_bytes())
        elif path.suffix == ".npz":
            found[f"{path.parent.name}/{path.name}"] = _arrays(path)
    try:
        figures = json.loads((run / "metrics.json").read_text()).get("edits", {})
    except (OSError, ValueError) as error:
        figures = {"unreadable": str(error)}
    for name, each in figures.items():
        found[f"{name}/figures"] = _sha(json.dumps(_steady(each), sort_keys=True).encode())
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if not VOLATILE.search(key)}
    return value


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _tensors(path: Path) -> str:
    from safetensors import safe_open

    if not path.is_file():
        return "absent"
    try:
        with safe_open(path, "np") as stored:
            arrays = {key: stored.get_tensor(key) for key in sorted(stored.keys())}
    except Exception as error:
        return f"unreadable: {error}"
    return _sha(b"".join(f"{key}{a.shape}{a.dtype}".encode() + a.tobytes() for key, a in arrays.items()))


def _arrays(path: Path) -> str:
    import numpy as np

    try:
        with np.load(path) as stored:
            return _sha(b"".join(f"{k}{stored[k].dtype}".encode() + stored[k].tobytes() for k in sorted(stored.files)))
    except Exception as error:
        return f"unreadable: {error}"


def hidden(folder: Path, resumable: bool = False) -> list[str]:
    """Files and folders below ``folder`` that a stopped process left: hidden ones, and a tuning's checkpoints.

    ``resumable``: a checkpoint that the same command will continue from is none of them.
    """
    named = [path for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".part", ".tmp", ".lock")]
    left = [path for path in named if not path.is_symlink()]  # links are a stranger's
    tunings = [path for path in folder.glob("cache/tuned-*") if path.is_dir() and not path.suffix]
    left += [path for path in tunings if not (resumable and [each.name for each in path.iterdir()] == ["last.ckpt"])]
    return sorted(str(path.relative_to(folder)) for path in left)


def differing(found: dict[str, str], known: dict[str, str]) -> list[str]:
    """The names of results that are not as ``known``."""
    return sorted(name for name in {**found, **known} if found.get(name) != known.get(name))


# ---- judging ---------------------------------------------------------------------------------------------------------


def fault_of(done: Outcome, codes: Sequence[int] = (0, 1)) -> str:
    """What is wrong with how a call ended, "" if nothing: it hung, aborted, has a traceback, or says it in no line."""
    if done.code is None:
        return "hangs"
    if "Traceback (most recent call last)" in done.err:
        return f"traceback: {done.last}"
    if done.code < 0 and done.code not in codes:
        return f"died of {signal.Signals(-done.code).name}"
    if done.code not in codes:
        return f"exit code {done.code}, not {' or '.join(map(str, codes))}: {done.last}"
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    if done.code == 1 and (len(errors) != 1 or done.last != errors[0]):
        return f"no single line of error: {done.last}" if not errors else f"more than one line: {errors[0]}"
    if done.code == 1 and JARGON.search(done.last):
        return f"a line without input or remedy: {done.last}"
    return ""
