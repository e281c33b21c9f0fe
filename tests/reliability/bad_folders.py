"""Seeded bad folders: runs, damaged or of strangers, caches, weights, listings of cases, leaderboards."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import strangers
from .bad_inputs import CHEAP, World, judged, seen
from .mutations import changed_tree, leaves, spoil, write_tree
from .report import Seen
from .shared import EDIT, JARGON, SUV, TINY, TRAIN, Outcome, call, contents, differing, fault_of, start

MARK = "<img src=x onerror=alert(7261)>"


def damaged_run(world: World, home: Path, draw: random.Random) -> Seen:
    """One damaged file of a run: the next edit is refused, or bit for bit that of the undamaged run.

    Half of them have the damage in their digests, so that the parsers behind these are reached.
    """
    shutil.copytree(world.done, home)
    path = draw.choice(sorted(path for path in (home / "run").rglob("*") if path.is_file()))
    if path.suffix == ".json" and draw.random() < 0.6:
        about, tree = changed_tree(json.loads(path.read_text()), draw)
        write_tree(path, tree)
    else:
        about = spoil(path, draw)
    if draw.random() < 0.5:
        shutil.rmtree(home / "cache")
    if draw.random() < 0.5:  # by somebody who writes the digests anew: refused or taken, it ends in one line
        strangers.reseal(home / "run")
        entry = draw.choice(["edit", "verify", "score"])
        done = call(entry, WORDS[entry], home, limit=60)
        return seen(judged(home, done), done, f"{entry}, resealed {path.relative_to(home)}: {about}")
    done = call("edit", EDIT, home, limit=60)
    return seen(judged(home, done) or _silent(world, home, done), done, f"{path.relative_to(home)}: {about}")


def damaged_cache(world: World, home: Path, draw: random.Random) -> Seen:
    """A damaged entry of the cache: it is made again, bit for bit."""
    shutil.copytree(world.done, home)
    path = draw.choice(sorted(path for path in (home / "cache").rglob("*") if path.is_file()))
    about = spoil(path, draw)
    shutil.move(home / "run", home / "old")
    done = call("train", TRAIN, home, limit=60)
    again = done.code == 0 or about == "folder"  # a folder in a file's place is the user's
    wrong = judged(home, done) or ("" if again else f"not made again: {done.last}")
    if not wrong and not done.code and (names := differing(contents(home / "run"), contents(home / "old"))):
        wrong = f"a wrong result, silently: {', '.join(names[:3])} differ"
    return seen(wrong, done, f"{path.name.rsplit('-', 1)[0]}{path.suffix}: {about}")


def _silent(world: World, home: Path, done: Outcome) -> str:
    if done.code:
        return ""
    found = contents(home / "run")
    names = [name for name in differing(found, world.known) if name.startswith("van/")]
    return f"a wrong result, silently: {', '.join(names[:3])} differ" if names else ""


def stranger(world: World, home: Path, draw: random.Random) -> Seen:
    """A stranger's run folder: nothing of it runs, nothing is written or named outside."""
    shutil.copytree(world.done, home)
    about = strangers.plant(home, draw)
    entry = draw.choice(["edit", "edit", "edit", "score", "verify", "leaderboard"])
    label(home / "run", entry)
    before = _outside(home)
    os.environ.update(RELIABILITY_SECRET=strangers.SECRET, HOME=str(home.parent / "user"))
    done = call(entry, WORDS[entry], home, limit=60)
    wrong = "code of the run folder ran" if (home.parent / "pwned").exists() else ""
    wrong = wrong or ("written outside of the run folder" if _outside(home) != before else "")
    secret = [p for p in home.rglob("*.*") if p.is_file() and strangers.SECRET.encode() in p.read_bytes()]
    wrong = wrong or (f"an environment variable is written to {secret[0].name}" if secret else "")
    return seen(wrong or judged(home, done, places=True), done, f"{entry}: {about}")


def forged(world: World, home: Path, draw: random.Random) -> Seen:
    """An edit of a run whose tensors are others than their keys claim: a run of the user's own is as without it."""
    shutil.copytree(world.done, home)
    known = contents(home / "run")
    shutil.rmtree(home / "cache")
    name = draw.choice(["tuned", "trajectory"])
    start(lambda: strangers.forge(home / "run", name), home, ["forge"]).wait(60)
    done = call("edit", [*EDIT, "cache=cache"], home, limit=60)
    shutil.move(home / "run", home / "theirs")
    mine = call("train", TRAIN, home, limit=60)
    wrong = judged(home, done) or ("" if mine.code == 0 else f"the user's own run fails: {mine.last}")
    if not wrong and (names := differing(contents(home / "run"), known)):
        wrong = f"the user's own run is another: {', '.join(names[:3])} differ"
    return seen(wrong, done, f"{name}.safetensors")


def _outside(home: Path) -> dict[str, int]:
    """What lies beside ``home``, and its age; libraries' own caches in the user's folder are theirs."""
    found = [path for path in home.parent.rglob("*") if not path.is_relative_to(home) and path.is_file()]
    return {str(path): path.lstat().st_mtime_ns for path in found if "/user/.c" not in str(path)}


def weights(world: World, home: Path, draw: random.Random) -> Seen:
    """A folder of weights with one damaged or absurd file."""
    shutil.copytree(world.fresh, home)
    files = sorted(path for path in (home / "weights").rglob("*") if path.is_file())
    path = draw.choice([each for each in files if each.suffix == draw.choice([".json", ".safetensors"])] or files)
    if path.suffix == ".json" and draw.random() < 0.7:
        tree = json.loads(path.read_text())
        numbers = [key for key, value in tree.items() if type(value) is int]
        about, tree = changed_tree(tree, draw)
        if numbers and isinstance(tree, dict) and draw.random() < 0.4:
            key = draw.choice(numbers)
            tree[key] = draw.choice([10**9, 10**5, 0, -1, 2**40])
            about = f"{key}={tree[key]}"
        write_tree(path, tree)
    else:
        about = spoil(path, draw)
    own = [word for word in TINY if not word.startswith("backbone=")]
    own += ["backbone=folder", "backbone.path=weights", "video.width=32", "video.height=32", "video.multiple=8"]
    done = call("train", [*own, *CHEAP, *SUV, "cache=cache", "hydra.run.dir=run"], home, limit=90)
    return seen(judged(home, done) or _finite(home, done), done, f"{path.relative_to(home / 'weights')}: {about}")


def _finite(home: Path, done: Outcome) -> str:
    if done.code:
        return ""
    import numpy as np
    from safetensors import safe_open

    for path in home.glob("run/*.safetensors"):
        with safe_open(path, "np") as stored:
            if not all(np.isfinite(stored.get_tensor(key)).all() for key in stored.keys()):  # noqa: SIM118
                return f"{path.name} is not finite, and nothing is said"
    return ""


CASE = {"name": "one", "path": "clip/source.mp4", "source_prompt": "a bus", "target_image": "other.png",
        "target_prompt": "a van", "groups": ["a"], "frames": 2, "truth": None}  # fmt: skip
OVERRIDES = ["backbone=tiny", *CHEAP, "inversion.refine=0", "metrics.judge=null", "logger=none", "cache=cache"]
LISTED = ["set=folder", "set.folder=.", "folder=out", "methods=[tave]"]
LISTED += ["overrides=[" + ",".join(f'"{word}"' for word in OVERRIDES) + "]"]
BOARDS = {"leaderboard": ["runs=run", "out=out"], "study": ["sweep=run", "out=out"]}
WORDS = {"edit": EDIT, "verify": ["run=run"], "score": ["run=run", "judge=null"], **BOARDS}
LABEL = {"benchmark": {"case": "one", "method": "tave", "group": ["a"], "seed": 33}}
YAMLS = ["&a [*a, *a]", "- !!python/object/apply:os.system ['touch ../pwned']", "cases: 3", "[[]]", "- 1", "{",
         "a: &x [*x]", "&a [x,x,x,x,x]", "- name: one\n  name: two", "\t- x", "\x00",
         "cases:\n- {name: ../../x}"]  # fmt: skip


def listing(world: World, home: Path, draw: random.Random) -> Seen:
    """The listing of a benchmark's cases."""
    shutil.copytree(world.fresh, home)
    path = home / draw.choice(["cases.json", "cases.yaml"])
    if draw.random() < 0.2:
        about = draw.choice(YAMLS)
        path.write_text(about)
    else:
        about, tree = changed_tree([CASE, {**CASE, "name": "two"}], draw)
        write_tree(path, tree)
        about += f", {spoil(path, draw)}" if draw.random() < 0.2 else ""
    done = call("benchmark", LISTED, home, limit=90)
    wrong = "code of the listing ran" if (home.parent / "pwned").exists() else ""
    return seen(wrong or judged(home, done), done, repr(about[:80]))


JOB = {"name": "suv", "backbone": "tiny", "video.path": "clip/source.mp4", "video.source_prompt": "a white bus",
       "video.target_image": "clip/target.png", "video.target_prompt": "a red suv", "tuning.steps": 2,
       "inversion.steps": 2}  # fmt: skip
FURTHER = {"name": "tighter", "tuned": "suv", "mask.threshold": "fixed", "mask.fixed": 0.4}


def job_file(world: World, home: Path, draw: random.Random) -> Seen:
    """A list of jobs, or a file that one of them names; checked without running them."""
    shutil.copytree(world.fresh, home)
    path = home / "jobs.json"
    about, tree = changed_tree([JOB, FURTHER], draw) if draw.random() < 0.7 else ("", [JOB, FURTHER])
    write_tree(path, tree)
    if not about or draw.random() < 0.2:
        damaged = draw.choice([path, home / "clip/source.mp4", home / "clip/target.png"])
        about += f"{damaged.name}: {spoil(damaged, draw)}"
    done = call("batch", ["jobs.json", "--dry-run", "out=out", "cache=cache"], home, limit=90)
    lines = [line for line in done.out.splitlines() if ": would fail: " in line]
    if lines and done.code == 2:
        wrong = fault_of(replace(done, code=0)) or next(
            (f"jargon: {line}" for line in lines if JARGON.search(line)), ""
        )
    else:
        wrong = judged(home, replace(done, code=1) if done.code == 2 else done)
    if not wrong and (made := [name for name in ("out", "cache") if (home / name).exists()]):
        wrong = f"a dry run made {made[0]}"
    return seen(wrong, replace(done, code=1, err=lines[0]) if lines else done, about[:80])


def label(run: Path, entry: str) -> None:
    """Let the edits of a run be a benchmark's for a leaderboard."""
    for path in run.glob("edits/*/edit.json") if entry == "leaderboard" else ():
        path.write_text(json.dumps(json.loads(path.read_text()) | LABEL))
    strangers.reseal(run)


def board(world: World, home: Path, draw: random.Random) -> Seen:
    """The run folders of a leaderboard, or of a study."""
    shutil.copytree(world.done, home)
    run, entry = home / "run", draw.choice(["leaderboard", "leaderboard", "study"])
    label(run, entry)
    (run / "failed.json").write_text(json.dumps({"failed": [{"case": "a", "seed": 1, "method": "b", "error": "c"}]}))
    path = run / draw.choice(["metrics.json", "run.json", "edits/suv/edit.json", "failed.json"])
    tree = json.loads(path.read_text())
    texts = [each for each in leaves(tree) if isinstance(_at(tree, each), str)]
    if texts and draw.random() < 0.3:
        *above, last = draw.choice(texts)
        _at(tree, above)[last] = about = draw.choice([MARK, f"]({MARK})", f"| {MARK} |", "../../x", "`</script><b>"])
        write_tree(path, tree)
    elif draw.random() < 0.8:
        about, tree = changed_tree(tree, draw)
        write_tree(path, tree)
    else:
        about = spoil(path, draw)
    strangers.reseal(run)
    done = call(entry, BOARDS[entry], home, limit=60)
    wrong = judged(home, done)
    pages = [page for page in home.glob("out/*.*") if page.suffix in (".md", ".html")]
    if not wrong and any(MARK in page.read_text(errors="replace") for page in pages):
        wrong = "a name's HTML is written as it is"
    return seen(wrong, done, f"{entry}, {path.name}: {about}")


def _at(tree: Any, path: Any) -> Any:
    for key in path:
        tree = tree[key]
    return tree
