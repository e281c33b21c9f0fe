"""Memory and time of runs by the length of the clip: anonymous memory of a child process, sampled while it runs.

python -m tests.reliability.long_clips                       # 32, 64, 128 and 256 frames of a drawn clip
python -m tests.reliability.long_clips frames=32,256 out=FOLDER figure=FILE.png inversion.steps=8

Other keys are tave.train's. What the folder has is not measured again. Pages of mapped files don't count: the system
may drop them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
EVERY = 0.05  # seconds between two samples
PLAIN = ["backbone=tiny", "video.width=96", "video.height=96", "tuning.steps=10", "inversion.steps=4"]
PLAIN += ["inversion.refine=0", "inversion.gate=off", "metrics.clip=judge", "logger=none"]
FIELDS = ("RssAnon", "RssFile", "RssShmem")


def drawn(folder: Path, frames: int) -> Path:
    """A drawn clip of ``frames`` frames, in which a bus crosses the picture at whatever speed that takes."""
    from tave.roadside.cases import find_case
    from tave.roadside.files import draw_case
    from tave.roadside.sample import centred

    case = find_case("bus_to_suv")
    speed = 28 / frames  # of 64 units
    scene = centred(replace(case.source, frames=frames, speed=speed, yaw=0.0, turn=0.0, layout="across", bob=0.3), 32)
    return draw_case(replace(case, name=f"bus_{frames}", source=scene), folder)


def sampled(command: list[str], log: Path) -> dict[str, Any]:
    """Run ``command``: its exit code, seconds, and (seconds, KiB of each of :data:`FIELDS`) over time."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    samples, began = [], time.monotonic()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        while process.poll() is None:
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            if FIELDS[0] in lines:
                samples.append([time.monotonic() - began, *(int(lines[field].split()[0]) for field in FIELDS)])
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{log}: the run failed")
    return {"seconds": time.monotonic() - began, "samples": samples}


def measured(out: Path, frames: int, words: list[str]) -> dict[str, Any]:
    """A run of ``frames`` frames: peak of anonymous memory in KiB, and processor seconds of each stage."""
    clip = drawn(out / "clips", frames)
    words = ["video=bus_to_suv", f"video.path={clip / 'source.mp4'}", f"video.frames={frames}", *PLAIN, *words]
    words += [f"video.edits.suv.target_image={clip / 'target.png'}", "video.edits.suv.truth=null"]  # as footage
    run = out / f"run_{frames}"
    words += [f"hydra.run.dir={run}", f"cache={out / f'cache_{frames}'}"]
    before = os.times()
    found = sampled([sys.executable, "-m", "tave.train", *words], out / f"run_{frames}.log")
    after = os.times()
    stages = json.loads((run / "metrics.json").read_text())["stages"]
    samples = np.array(found.pop("samples"))
    np.savez_compressed(out / f"samples_{frames}.npz", samples=samples)
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "frames": frames,
        "peak_anonymous_kib": int(samples[:, 1].max()),
        "peak_file_kib": int(samples[:, 2].max()),
        "processor_seconds": round(processor, 2),
        "stages": {name: spent["seconds"] for name, spent in stages.items()},
        **found,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Growth of memory, its slope, and how far time is from linear, over all lengths."""
    frames, memory, seconds = (
        np.array([row[key] for row in rows], float) for key in ("frames", "peak_anonymous_kib", "processor_seconds")
    )
    slope, line = np.polyfit(frames, memory, 1)[0], np.polyfit(frames, seconds, 1)
    off = np.abs(np.polyval(line, frames) / seconds - 1).max()
    return (
        f"memory: {memory[-1] / memory[0] - 1:+.1%} from {rows[0]['frames']} to {rows[-1]['frames']} frames, "
        f"{slope:.1f} KiB a frame\ntime: {line[0]:.2f} s a frame, {off:.0%} from a straight line at most"
    )


def draw(out: Path, rows: list[dict[str, Any]], path: Path) -> None:
    """Anonymous memory over each run, and processor time by length, as a picture with a palette."""
    import io

    from matplotlib import pyplot
    from PIL import Image

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 2))
    for row in rows:
        samples = np.load(out / f"samples_{row['frames']}.npz")["samples"]
        share = np.linspace(0, 1, 400)
        memory = np.interp(share, samples[:, 0] / samples[-1, 0], samples[:, 1]) / 1024
        left.plot(share, memory, label=f"{row['frames']} frames", linewidth=1)
    left.set(xlabel="share of the run's time", ylabel="anonymous memory, MiB", ylim=(0, None))
    left.legend()
    right.plot([row["frames"] for row in rows], [row["processor_seconds"] for row in rows], "o-")
    right.set(xlabel="frames", ylabel="processor time, s", ylim=(0, None), xlim=(0, None))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    out, figure = Path(given.pop("out", "outputs/long_clips")).absolute(), given.pop("figure", None)
    counts = [int(count) for count in given.pop("frames", "32,64,128,256").split(",")]
    out.mkdir(parents=True, exist_ok=True)
    table = out / "long_clips.json"
    rows = json.loads(table.read_text()) if table.is_file() else []
    for count in set(counts) - {row["frames"] for row in rows}:
        rows.append(measured(out, count, [f"{key}={value}" for key, value in given.items()]))
        rows.sort(key=lambda row: row["frames"])
        table.write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        print(f"{row['frames']} frames: {row['peak_anonymous_kib'] / 1024:.0f} MiB, {row['processor_seconds']:.0f} s")
    print(summary(rows))
    if figure:
        draw(out, rows, Path(figure))


if __name__ == "__main__":
    main()
