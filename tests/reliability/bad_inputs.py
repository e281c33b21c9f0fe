"""Seeded bad inputs: pictures, masks, clips, options, prompts and file names."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from .mutations import NAMES, ODD_VALUES, SENTENCES, odd_folder, odd_picture, spoil
from .report import Seen
from .shared import EDIT, TRAIN, Outcome, call, fault_of, hidden

CHEAP = ["tuning.steps=1", "inversion.steps=2", "metrics.enabled=false"]
COSTLY = ("steps", "refine", "frames", "width", "height", "rank", "chunk", "tile", "devices", "num_nodes", "stride")


@dataclass(frozen=True)
class World:
    """``fresh`` has inputs alone, ``done`` a finished run too, ``known`` the results of another edit there."""

    fresh: Path
    done: Path
    known: dict[str, str]
    options: list[str]


def seen(fault: str, done: Outcome, about: str) -> Seen:
    """What a trial shows; a command that succeeds shows no line."""
    return Seen(fault, done.last if done.code else "", about)


def judged(home: Path, done: Outcome, places: bool = False) -> str:
    """What is wrong with a call of one input: how it ended, hidden files, files at places that nobody named."""
    if wrong := fault_of(done):
        return wrong
    if left := [each for each in hidden(home) if each.startswith(("run", "cache", "out"))]:
        return f"left behind: {', '.join(left[:3])}"
    strange = [path for path in home.parent.rglob("*") if path.name == "x" and "../x" in done.out]
    return f"written outside: {strange[0]}" if strange and not places else ""


def picture(world: World, home: Path, draw: random.Random) -> Seen:
    """A target image."""
    shutil.copytree(world.done, home)
    path = home / "other.png"
    about = spoil(path, draw) if draw.random() < 0.6 else odd_picture(path, draw)
    done = call("edit", [*EDIT, "metrics.enabled=false"], home, limit=60)
    return seen(judged(home, done), done, about)


def mask(world: World, home: Path, draw: random.Random) -> Seen:
    """A mask of the region, or a matte of the target."""
    shutil.copytree(world.done, home)
    key, suffix = draw.choice([("video.matte", "png"), ("video.mask", "mp4"), ("video.mask", "folder")])
    path = home / f"mask.{suffix}"
    if suffix == "folder":
        about = odd_folder(path, home / "clip/target.png", draw)
    elif draw.random() < 0.5 and suffix == "png":
        about = odd_picture(path, draw)
    else:
        shutil.copy(home / ("other.png" if suffix == "png" else "run/edits/suv/mask.mp4"), path)
        about = spoil(path, draw)
    done = call("edit", [*EDIT, "metrics.enabled=false", f"{key}={path.name}"], home, limit=60)
    return seen(judged(home, done), done, f"{key} {about}")


def clip(world: World, home: Path, draw: random.Random) -> Seen:
    """The clip."""
    shutil.copytree(world.fresh, home)
    words = [word for word in TRAIN if not word.startswith("video.path=")]
    suffix = draw.choice(["mp4", "mkv", "avi", "gif", "folder"])
    path = home / f"odd.{suffix}"
    if suffix == "folder":
        about = odd_folder(path, home / "clip/target.png", draw)
    else:
        shutil.copy(home / f"clips/clip.{suffix}", path)
        about = spoil(path, draw)
    more = draw.choice([[], [], ["video.width=null", "video.height=null"], ["video.start=7"], ["video.frames=null"]])
    done = call("train", [*words, *CHEAP, f"video.path={path.name}", *more], home, limit=60)
    return seen(judged(home, done), done, f"{suffix} {about} {' '.join(more)}")


def option(world: World, home: Path, draw: random.Random) -> Seen:
    """Any option with any value."""
    shutil.copytree(world.fresh, home)
    words = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        key = draw.choice(world.options)
        if draw.random() < 0.1:
            key = draw.choice([key[:-1], f"{key}x", f"+{key}", f"~{key}", f"{key}.x", key.split(".")[0], key.upper()])
        value = draw.choice([each for each in ODD_VALUES if isinstance(each, str | int | float | None)])
        if draw.random() < 0.2:
            value = draw.choice(["[1,2,3]", "[0,1]", "{a:1}", "1,2", "(", "]", "'", "a b", "0.5", "[nan,1]", "[1,0,0]"])
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 30 and key.endswith(COSTLY):
            value = draw.choice([2, 3, 24])  # large ones are no mistake, but last
        if isinstance(value, str) and ("\x00" in value or "\ud800" in value):
            value = "\x01"  # a command line has neither
        text = {None: "null", True: "true", False: "false"}.get(value, value) if not isinstance(value, float) else value
        words.append(f"{key}={text}")
    chosen = {word.partition("=")[0].lstrip("+~") for word in words}
    given = [word for word in [*TRAIN, *CHEAP] if word.partition("=")[0] not in chosen]
    done = call("train", [*given, *words], home, limit=90)
    return seen(judged(home, done, places=any("cache" in word for word in words)), done, " ".join(words)[:100])


def prompt(world: World, home: Path, draw: random.Random) -> Seen:
    """A sentence, which must be taken as it is."""
    shutil.copytree(world.done, home)
    text = draw.choice(SENTENCES)
    if draw.random() < 0.5:
        text = f"{text}{draw.choice(SENTENCES)}"
    if draw.random() < 0.3:
        text = "".join(draw.choice("abc ,;:'\"()[]{}=$%&#\\/~é車") for _ in range(draw.randrange(1, 40)))
    meant = text.startswith(("'", '"', "[", "{", "glob(", "choice(")) or text == "null"  # Hydra's grammar
    words = [word for word in EDIT if not word.startswith("video.target_prompt=")]
    done = call("edit", [*words, "metrics.enabled=false", f"video.target_prompt={text}"], home, limit=60)
    wrong = judged(home, done)
    if not wrong and done.code == 0:
        kept = json.loads((home / "run/edits/van/edit.json").read_text())["target_prompt"]
        wrong = "" if kept == text or meant else f"another sentence is recorded: {kept[:60]!r}"
    elif not wrong and text.strip() and not meant:
        wrong = f"a plain sentence is refused: {done.last}"
    return seen(wrong, done, repr(text[:80]))


def name(world: World, home: Path, draw: random.Random) -> Seen:
    """A file or folder name, which must be taken as it is."""
    shutil.copytree(world.fresh, home)
    folder, stem = draw.choice(["", *NAMES]), draw.choice(NAMES)
    path = home / folder / f"{stem}.mp4"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(home / "clip/source.mp4", path)
    words = [word for word in TRAIN if not word.startswith("video.path=")]
    given = path.relative_to(home).as_posix() if draw.random() < 0.5 else str(path)
    given = str(path) if given.startswith(("-", "~", "'", '"', "[", "{")) else given
    done = call("train", [*words, *CHEAP, f"video.path={given}"], home, limit=60)
    wrong = judged(home, done) or (f"a file's name is refused: {done.last}" if done.code else "")
    return seen(wrong, done, repr(f"{folder}/{stem}.mp4"))
