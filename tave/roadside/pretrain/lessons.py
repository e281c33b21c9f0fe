"""The pictures that pre-training learns from: drawn once, part of them through a codec, kept as memory-mapped arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tave.roadside.draw import background, draw, over, silhouette, to_bytes, vehicle_layer
from tave.roadside.scene import PLACES, Vehicle, portrait, sample_scene

_CHUNK = 500  # pictures drawn by one task; a finished chunk is never drawn again
GREY = 0.5


@dataclass(frozen=True)
class Picture:
    """What a training picture shows; ``box`` is the vehicle's, in pixels (x0, y0, x1, y1)."""

    vehicle: Vehicle
    place: str
    heading: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Lessons:
    """``frames`` ``n H W 3`` uint8, and for each a ``views`` picture ``n V V 3`` of the same vehicle elsewhere."""

    frames: np.ndarray
    views: np.ndarray
    pictures: list[Picture]

    def __len__(self) -> int:
        return len(self.pictures)


def _through_codec(frames: np.ndarray, crf: int) -> np.ndarray:
    """``n H W 3`` uint8 through an intra-only yuv420p H.264 stream, as clips arrive."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": str(crf), "g": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    sink.seek(0)
    with av.open(sink, "r") as coded:
        return np.stack([f.to_ndarray(format="rgb24") for f in coded.decode(video=0)])


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _view(vehicle: Vehicle, rng: np.random.Generator, size: int) -> np.ndarray:
    """The same vehicle as a user would photograph it: large, in any place or cut out on grey."""
    scene = portrait(vehicle, str(rng.choice(PLACES)), int(rng.integers(1_000_000)), int(rng.choice((-1, 1))))
    ground = background(scene, 0, size) if rng.random() < 0.6 else np.full((size, size, 3), GREY, np.float32)
    return to_bytes(over(vehicle_layer(scene, 0, size), ground))


def draw_chunk(index: int, size: int, view_size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[Picture]]:
    """Chunk ``index`` of the lessons: a pure function of its arguments."""
    rng = np.random.default_rng((seed, index))
    frames, views, pictures = [], [], []
    while len(frames) < _CHUNK:
        scene = sample_scene(rng)
        moment = int(rng.integers(scene.frames))
        mask = silhouette(scene, moment, size) >= 0.5
        if mask.sum() < 0.006 * size * size:  # driven out of the picture, or hidden
            continue
        frames.append(to_bytes(draw(scene, moment, size)))
        views.append(_view(scene.vehicle, rng, view_size))
        pictures.append(Picture(scene.vehicle, scene.place, scene.heading, box_of(mask)))
    coded = _CHUNK * 2 // 5
    stack = np.stack(frames)
    stack[:coded] = _through_codec(stack[:coded], int(rng.integers(10, 24)))
    return stack, np.stack(views), pictures


def _draw_into(folder: Path, size: int, view_size: int, seed: int, index: int) -> None:
    path = folder / f"{index:04d}.npz"
    if path.exists():
        return
    frames, views, pictures = draw_chunk(index, size, view_size, seed)
    described = json.dumps([asdict(p) for p in pictures])
    waiting = path.with_suffix(".part")
    with waiting.open("wb") as sink:
        np.savez(sink, frames=frames, views=views, pictures=described)
    waiting.rename(path)


def draw_lessons(folder: Path, count: int, size: int, view_size: int, seed: int, workers: int) -> Iterator[int]:
    """Draw ``count`` pictures into ``folder``, skipping what is there; yields the number that stands after each chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // _CHUNK)
    with ProcessPoolExecutor(workers) as pool:
        task = partial(_draw_into, folder, size, view_size, seed)
        for done, _ in enumerate(pool.map(task, range(chunks)), start=1):
            yield done * _CHUNK


def load_lessons(folder: Path, count: int) -> Lessons:
    """Read the drawn chunks back; ``FileNotFoundError`` names the first one that is missing."""
    parts = []
    for index in range(-(-count // _CHUNK)):
        with np.load(folder / f"{index:04d}.npz") as data:
            parts.append((data["frames"], data["views"], json.loads(str(data["pictures"]))))
    described = [entry for _, _, entries in parts for entry in entries]
    pictures = [Picture(Vehicle(**d["vehicle"]), d["place"], d["heading"], tuple(d["box"])) for d in described]
    return Lessons(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), pictures)


def square_crop(frame: np.ndarray, box: tuple[float, float, float, float], size: int, wider: float = 0.25) -> np.ndarray:
    """The judge's view: a square around ``box`` plus ``wider`` of its long side, edges repeated, resized to ``size``."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + wider)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    pad = int(np.ceil(side))
    wide = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    window = (cx - side / 2 + pad, cy - side / 2 + pad, cx + side / 2 + pad, cy + side / 2 + pad)
    return np.asarray(Image.fromarray(wide).resize((size, size), Image.Resampling.BICUBIC, box=window))
