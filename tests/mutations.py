"""Damaged clips, pictures and masks: python -m tests.mutations COUNT [FIRST]. Each is read, or refused in one line.

Every seed draws a file, damages it and reads it, in a child process that is watched: its death or silence is the
finding. Prints a line for each seed that failed and a summary; exit code 1 if any failed.
"""

from __future__ import annotations

import queue
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SILENCE = 60  # seconds after which a reader hangs
GOOD = ("read", "refused")
CLIPS = ("h264.mp4", "audio.mp4", "hevc.mp4", "h264.mkv", "h264.ts", "vp9.webm", "mjpeg.avi", "apng.apng", "png.mov")
PICTURES = ("a.png", "palette.png", "a.jpg", "a.tif", "lzw.tif", "float.tif", "a.webp", "a.bmp", "a.gif")


def sources(folder: Path) -> None:
    """Write the intact files."""
    from clips import Setting, drawn, write

    x265 = {"x265-params": "log-level=none"}
    settings = {
        "h264.mp4": Setting(), "audio.mp4": Setting(), "h264.mkv": Setting(), "h264.ts": Setting(),
        "hevc.mp4": Setting("libx265", options=x265), "vp9.webm": Setting("libvpx-vp9", "yuva420p", {}),
        "mjpeg.avi": Setting("mjpeg", "yuvj420p", {}, full=True), "apng.apng": Setting("apng", "rgba", {}),
        "png.mov": Setting("png", "rgba", {}),
    }  # fmt: skip
    for name, setting in settings.items():
        write(folder / name, setting, [drawn(i) for i in range(8)], audio=name == "audio.mp4")
    picture = Image.fromarray(drawn(3))
    for name in PICTURES:
        kept = picture.convert("P") if name in ("palette.png", "a.gif") else picture
        if name == "float.tif":
            kept = Image.fromarray(drawn(3)[..., 0] / np.float32(255))
        kept.save(folder / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed anywhere or near an end, a length or offset of nonsense, cut short, or with a piece repeated."""
    made, kind = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(made))
    if kind == 0:
        for _ in range(rng.choice((1, 2, 8, 64))):
            made[rng.randrange(len(made))] = rng.randrange(256)
    elif kind == 1:
        made = made[: max(1, at)]
    elif kind == 2:
        made[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\x80\0\0\0"))
    elif kind == 3:
        made[at:at] = made[rng.randrange(len(made)) :][: rng.randrange(1, 200)]
    else:
        near = min(2000, len(made))
        for _ in range(rng.choice((1, 4))):
            made[rng.choice((0, len(made) - near)) + rng.randrange(near)] = rng.randrange(256)
    return bytes(made)


def attempt(seed: int, intact: Path, folder: Path) -> str:
    """Damage a file and read it; what came of it in a word, and more if it is wrong."""
    from tave.config import ReadOptions
    from tave.video import MaskRequest, VideoError, read_clip, read_image, read_masks

    rng = random.Random(seed)
    kind = rng.choice(("clip", "clip", "picture", "mask"))
    name = rng.choice(CLIPS if kind == "clip" else PICTURES if kind == "picture" else CLIPS + PICTURES)
    path = folder / f"{seed}-{name}"
    path.write_bytes(damaged((intact / name).read_bytes(), rng))
    whole = ReadOptions(frames=None, multiple=1)
    readers: dict[str, Callable[[], object]] = {
        "clip": lambda: read_clip(path, whole),
        "picture": lambda: read_image(path),
        "mask": lambda: read_masks(MaskRequest(path, 8, (160, 96), whole)),
    }
    try:
        readers[kind]()
        found = "read"
    except VideoError as error:
        wrong = "\n" in str(error) or path.name not in str(error)
        found = f"says {str(error)!r}" if wrong else "refused"
    except Exception as error:
        found = f"raised {type(error).__name__}: {error}"
    path.unlink()
    return found


def work(first: int, last: int, intact: Path) -> None:
    """The child: a line before and after each seed."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, last):
            print(f"{seed} begins", flush=True)
            print(f"{seed} {attempt(seed, intact, Path(folder))}", flush=True)


def watched(first: int, last: int, intact: Path) -> tuple[dict[int, str], str]:
    """What came of each seed until the child ended, died or was silent, and what it wrote to its error output."""
    command = [sys.executable, str(HERE / "mutations.py"), "--work", str(first), str(last), str(intact)]
    lines: queue.Queue[str | None] = queue.Queue()
    found: dict[int, str] = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        listener = threading.Thread(target=lambda: [*map(lines.put, child.stdout or ()), lines.put(None)])
        listener.start()
        try:
            while line := lines.get(timeout=SILENCE):
                seed, _, what = line.strip().partition(" ")
                found[int(seed)] = what
            if child.wait():
                found[max(found, default=first)] = f"ended the process: {child.returncode}"
        except queue.Empty:
            found[max(found, default=first)] = f"hangs for {SILENCE} s"
            child.kill()
        listener.join()
        errors.seek(0)
        return found, errors.read()


def run(count: int, first: int = 0) -> dict[int, str]:
    """What came of each of ``count`` seeds from ``first``."""
    found: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as intact:
        sources(Path(intact))
        at = first
        while at < first + count:
            part, errors = watched(at, first + count, Path(intact))
            found |= part
            at = max(part) + 1
            if errors:
                found[max(part)] += f" with error output {errors[:300]!r}"
    return found


def main() -> int:
    if sys.argv[1] == "--work":
        work(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
        return 0
    found = run(*map(int, sys.argv[1:3]))
    wrong = {seed: what for seed, what in found.items() if what not in GOOD}
    for seed, what in wrong.items():
        print(f"{seed}: {what}")
    print(", ".join(f"{what}: {number}" for what, number in Counter(found.values()).items() if what in GOOD))
    print(f"{len(wrong)} of {len(found)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
