"""Memory and time of runs by the length of the clip: anonymous memory of a child process, sampled while it runs.

python -m tests.reliability.long_clips                       # 32, 64, 128 and 256 frames of a drawn clip
python -m tests.reliability.long_clips frames=32,256 out=FOLDER backbone=roadside inversion.steps=8

What isn't one of the keys below is passed to tave.train. Pages of mapped files don't count: the system may drop them.
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
PLAIN += ["inversion.refine=0", "inversion.gate=off", "metrics.enabled=false", "logger=none"]
FIELDS = ("RssAnon", "RssFile", "RssShmem")


def drawn(folder: Path, frames: int) -> Path:
    """A drawn clip of ``frames`` frames, in which a bus crosses the picture at whatever speed that takes."""
    from tave.roadside.cases import draw_case, find_case

    case = find_case("bus_to_suv")
    speed = 28 / frames  # of 64 units
    scene = replace(case.source, frames=frames, speed=speed, x=18.0, bob=0.3)
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
    words += [f"video.edits.suv.target_image={clip / 'target.png'}", f"video.edits.suv.truth={clip / 'truth'}"]
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


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    out = Path(given.pop("out", "outputs/long_clips")).absolute()
    counts = [int(count) for count in given.pop("frames", "32,64,128,256").split(",")]
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in counts:
        rows.append(measured(out, count, [f"{key}={value}" for key, value in given.items()]))
        (out / "long_clips.json").write_text(json.dumps(rows, indent=2) + "\n")
        row = rows[-1]
        print(
            f"{count} frames: {row['peak_anonymous_kib'] / 1024:.0f} MiB, {row['processor_seconds']:.0f} s", flush=True
        )
    if len(rows) > 1:
        x, memory, seconds = (np.array([row[key] for row in rows], float) for key in
                              ("frames", "peak_anonymous_kib", "processor_seconds"))  # fmt: skip
        slope, (per_frame, _) = np.polyfit(x, memory, 1)[0], np.polyfit(x, seconds, 1)
        print(
            f"memory: {memory[-1] / memory[0] - 1:+.1%} from {counts[0]} to {counts[-1]} frames, {slope:.1f} KiB each"
        )
        print(f"time: {per_frame:.2f} s a frame")


if __name__ == "__main__":
    main()
