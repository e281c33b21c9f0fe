"""A phone's clip through the whole program: drawn with a known answer, edited by a command, and measured.

    python -m tests.phone FOLDER --width 1920 --seconds 12

The clip has 30 frames/s, stereo sound and a rotation tag: its pictures are stored as a phone that is held upright
stores them. A white bus drives slowly on a mountain road; the edit makes it a red SUV. Prints what was measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np

from tave.config import ReadOptions
from tave.files import read_json
from tave.roadside.cases import NAMED, target_image
from tave.roadside.draw import object_layer, over, shadow_layer, to_bytes
from tave.roadside.places import background
from tave.roadside.sample import centred
from tave.roadside.scene import UNITS

RATE, PATH, TOP = 30, 8.0, 18.0  # frames/s; units that the bus drives; y of the picture's upper edge
CASE = NAMED["bus_to_suv"]
NOISE = 1.5  # standard deviation of the sensor's noise, 8-bit levels
BITS = 17e6 / (1920 * 1080)  # a phone's bits/s for each pixel


class Drawn:
    """The clip and its ideal edit, `height x width`, with the true masks."""

    def __init__(self, width: int, seconds: float) -> None:
        self.size = width, width * 9 // 16
        self.count = round(seconds * RATE)
        parked = replace(CASE.source, yaw=0.0, turn=0.0, speed=0.0, z=2 * CASE.source.lens, layout="across", frames=1)
        source, square = centred(parked, 28.0), width // 2
        scenes = {"source": source, "ideal": replace(source, subject=CASE.target)}
        self._ground = self._view(background(source, 0, square))
        self._objects = {name: self._view(object_layer(scene, 0, square)) for name, scene in scenes.items()}
        self._shadows = {name: self._view(shadow_layer(scene, 0, square)) for name, scene in scenes.items()}

    def _view(self, square: np.ndarray) -> np.ndarray:
        width, height = self.size
        whole = cv2.resize(square, (width, width), interpolation=cv2.INTER_LINEAR)
        top = round(TOP / UNITS * width)
        return whole[top : top + height]

    def _moved(self, layer: np.ndarray, index: int) -> np.ndarray:
        way = PATH / UNITS * self.size[0] * index / max(1, self.count - 1)
        return cv2.warpAffine(layer, np.array([[1.0, 0, way], [0, 1, 0]]), self.size)

    def layer(self, name: str, index: int) -> np.ndarray:
        """The object alone, premultiplied `H W 4` in [0, 1]."""
        return self._moved(self._objects[name], index)

    def frames(self, name: str = "source") -> Iterator[np.ndarray]:
        """`H W 3` uint8, with a sensor's noise."""
        rng = np.random.default_rng(0)
        for index in range(self.count):
            shade = self._moved(self._shadows[name], index)[..., None]
            clean = over(self.layer(name, index), self._ground * (1 - shade))
            noise = rng.normal(0, NOISE / 255, (*clean.shape[:2], 1)).astype(np.float32)
            yield to_bytes(clean + noise)

    def union(self, index: int) -> np.ndarray:
        """The pixels of the old and the new object, `H W` bool."""
        return np.maximum(*(self.layer(name, index)[..., 3] for name in ("source", "ideal"))) >= 0.5


def write_phone_clip(path: Path, drawn: Drawn) -> None:
    """H.264, BT.709, 4:2:0, turned by 90 degrees, with stereo AAC."""
    width, height = drawn.size
    with av.open(str(path), "w") as file:
        stream = cast(av.VideoStream, file.add_stream("libx264", rate=RATE))
        stream.width, stream.height, stream.pix_fmt = height, width, "yuv420p"
        stream.bit_rate, stream.options = round(BITS * width * height), {"preset": "veryfast"}
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        stream.set_display_rotation(-90)
        sound = cast(av.AudioStream, file.add_stream("aac", rate=48_000, layout="stereo"))
        for picture in drawn.frames():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture)), "rgb24")
            file.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1, interpolation="BICUBIC")))
        file.mux(stream.encode(None))
        for part in range(drawn.count):
            at = (np.arange(48_000 // RATE) + part * (48_000 // RATE)) / 48_000
            tones = np.stack([np.sin(2 * np.pi * 440 * at), np.sin(2 * np.pi * 660 * at)]).astype(np.float32) * 0.3
            samples = av.AudioFrame.from_ndarray(tones, "fltp", "stereo")
            samples.sample_rate, samples.pts = 48_000, part * (48_000 // RATE)
            samples.time_base = Fraction(1, 48_000)
            file.mux(sound.encode(samples))
        file.mux(sound.encode(None))


def edit(folder: Path, words: list[str]) -> tuple[Path, float, int]:
    """Run the command of a user; returns the edit's folder, seconds, and the peak of its memory in MiB."""
    command = [sys.executable, "-m", "tave.train", "video=custom", f"video.path={folder / 'phone.mp4'}"]
    command += [f"video.source_prompt={CASE.source_prompt}", f"video.target_prompt={CASE.target_prompt}"]
    command += [f"video.target_image={folder / 'target.png'}", f"hydra.run.dir={folder / 'run'}"]
    began = time.monotonic()
    subprocess.run([*command, f"cache={folder / 'cache'}", *words], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return next((folder / "run/edits").glob("[!.]*")), time.monotonic() - began, peak


# ---- what came of it -------------------------------------------------------------------------------------------------


def facts(path: Path) -> dict[str, Any]:
    """What has to be the same in both files."""
    with av.open(str(path)) as file:
        stream, tone = file.streams.video[0], file.streams.audio[0]
        found = {"size": (stream.width, stream.height), "rate": stream.average_rate, "format": stream.pix_fmt}
        found |= {"seconds": round(float(stream.duration * stream.time_base), 3), "channels": tone.channels}  # type: ignore[operator]
        times = []
        for frame in file.decode(stream):
            times.append(frame.pts * frame.time_base)  # type: ignore[operator]
            matrix = frame.side_data.get("DISPLAYMATRIX")
        found |= {"times": times, "matrix": bytes(matrix or b"")}
    with av.open(str(path)) as file:
        return found | {"sound": [(packet.pts, bytes(packet)) for packet in file.demux(audio=0) if packet.size]}


def measure(folder: Path, made: Path, drawn: Drawn) -> dict[str, Any]:
    """Background and mask against the truth; the file against its source."""
    from tave.video import Footage, open_clip
    from tave.video.paste import Placing, open_footage
    from tave.video.view import View

    record, whole = read_json(made / "edit.json"), ReadOptions(multiple=1)
    view = View(*record["crop"])
    source, result = folder / "phone.mp4", made / "edited.mp4"
    with open_footage(Footage(source, whole, view)) as opened:
        shown = replace(opened.stored, size=opened.stored.shown, turn=type(opened.stored.turn)())
    placing = Placing(shown, view, tuple(record["network_size"]))
    with np.load(made / "soft_mask.npz") as stored:
        opacity, cells = stored["alpha"].astype(np.float32) / 255, stored["mask"]
    decibels, area, truth, covered = [], 0, 0, 0
    with open_clip(source, whole) as (_, before), open_clip(result, whole) as (_, after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            apart = placing.opacity(opacity[index]) == 0
            error = (one.pixels[apart].astype(np.float32) - other.pixels[apart]) ** 2
            decibels.append(float(10 * np.log10(255**2 / max(1e-9, float(error.mean())))))
            union = drawn.union(index)
            tall, wide = opacity.shape[1:]
            mask = placing.opacity(
                cv2.resize(cells[index], (wide, tall), interpolation=cv2.INTER_NEAREST).astype(np.float32)
            )
            area, truth, covered = (
                area + (mask > 0.5).sum(),
                truth + union.sum(),
                covered + (union & (mask > 0.5)).sum(),
            )
    return {
        "background, worst frame, dB": round(min(decibels), 2),
        "file / source": round(result.stat().st_size / source.stat().st_size, 3),
        "mask area / true union": round(float(area / truth), 3),
        "true union in the mask": round(float(covered / truth), 3),
        "crop": [round(side) for side in view],
    }


def run(folder: Path, width: int, seconds: float, words: list[str]) -> dict[str, Any]:
    """Draw, edit, measure. Asserts that the edited clip is the source's in size, shape, times and sound."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(width, seconds)
    write_phone_clip(folder / "phone.mp4", drawn)
    target_image(CASE, 192).save(folder / "target.png")
    made, took, peak = edit(folder, words)
    one, other = facts(folder / "phone.mp4"), facts(made / "edited.mp4")
    assert one == other, {key: (one[key], other[key]) for key in one if one[key] != other[key]}
    return measure(folder, made, drawn) | {"minutes": round(took / 60, 1), "peak memory, MiB": peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("words", nargs="*", help="further options of tave.train")
    given = parser.parse_intermixed_args()
    print(json.dumps(run(given.folder, given.width, given.seconds, given.words), indent=2))
