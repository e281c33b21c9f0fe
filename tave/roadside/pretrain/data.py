"""Training pictures: drawn once in chunks, a part of them compressed by a video codec."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tave import regions
from tave.files import FileError, whole_file
from tave.interrupts import follow_parent
from tave.roadside.draw import VERSION, draw, object_layer, over, silhouette, to_bytes, without_object
from tave.roadside.sample import sample_photograph, sample_scene
from tave.roadside.scene import Scene, Subject, caption, motion_of

CHUNK = 500  # pictures per file; a file is drawn by one process, once
EMPTY = 50  # pictures without an object in each file
GREY = 0.5


@dataclass(frozen=True)
class Picture:
    """What a training picture shows; ``box`` is the object's, in pixels (x0, y0, x1, y1), ``yaw`` in degrees."""

    subject: Subject
    place: str
    hour: str
    yaw: float
    box: tuple[int, int, int, int]

    def caption(self, *, place: bool = False, motion: bool = False, hour: bool = False, pattern: bool = False) -> str:
        """Return a caption with these parts; motion and hour need the place."""
        return caption(
            self.subject,
            motion_of(self.yaw) if motion else None,
            self.place if place else None,
            self.hour if hour else "noon",
            pattern=pattern,
        )

    def mirrored(self, width: int) -> Picture:
        """Return the description of the picture mirrored left to right."""
        x0, y0, x1, y1 = self.box
        return replace(self, yaw=(180 - self.yaw) % 360, box=(width - x1, y0, width - x0, y1))


@dataclass(frozen=True)
class TrainingSet:
    """``frames`` ``n H W 3`` uint8, and for each a photograph of the same object elsewhere in ``views`` ``n V V 3``.

    empty: other scenes ``m H W 3`` without an object.
    """

    frames: np.ndarray
    views: np.ndarray
    pictures: list[Picture]
    empty: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)


def to_signed(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Convert ``n H W 3`` uint8 to ``n 3 H W`` float32 in [-1, 1] on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounding box of a mask ``H W``, which must not be empty: x0, y0, x1, y1."""
    top, bottom, left, right = regions.box_of(mask)
    return left, top, right, bottom


def square_crop(frame: np.ndarray, box: tuple[float, ...], size: int, wider: float = 0.25) -> np.ndarray:
    """Cut out a square around ``box``, larger than its long side by the share ``wider``; edges are repeated."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + wider)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    pad = int(np.ceil(side))
    wide = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    window = (cx - side / 2 + pad, cy - side / 2 + pad, cx + side / 2 + pad, cy + side / 2 + pad)
    return np.asarray(Image.fromarray(wide).resize((size, size), Image.Resampling.BICUBIC, box=window))


def draw_chunk(index: int, size: int, view_size: int, seed: int) -> TrainingSet:
    """Draw chunk ``index``, a pure function of the arguments."""
    rng = np.random.default_rng((seed, index))
    frames, views, pictures = [], [], []
    while len(frames) < CHUNK:
        scene = sample_scene(rng)
        moment = int(rng.integers(scene.frames))
        mask = silhouette(scene, moment, size) >= 0.5
        if mask.sum() < 0.006 * size * size:  # outside of the picture, or hidden
            continue
        frames.append(to_bytes(draw(scene, moment, size)))
        views.append(photograph_picture(sample_photograph(rng, scene.subject), view_size, cut=rng.random() < 0.4))
        pictures.append(Picture(scene.subject, scene.place, scene.hour, scene.heading(moment), box_of(mask)))
    coded = CHUNK * 2 // 5
    stack = np.stack(frames)
    stack[:coded] = _through_codec(stack[:coded], int(rng.integers(10, 24)))
    return TrainingSet(stack, np.stack(views), pictures, np.stack([_empty_scene(rng, size) for _ in range(EMPTY)]))


def _empty_scene(rng: np.random.Generator, size: int) -> np.ndarray:
    scene = sample_scene(rng)
    return to_bytes(without_object(scene, int(rng.integers(scene.frames)), size))


def photograph_picture(photo: Scene, size: int, *, cut: bool) -> np.ndarray:
    """Draw a target image ``size size 3`` uint8: with its own background, or ``cut`` out on grey."""
    if not cut:
        return to_bytes(draw(photo, 0, size))
    return to_bytes(over(object_layer(photo, 0, size), np.full((size, size, 3), GREY, np.float32)))


def _through_codec(frames: np.ndarray, crf: int) -> np.ndarray:
    """Compress ``n H W 3`` uint8 as H.264 key frames in yuv420p, the usual format of clips."""
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


@dataclass(frozen=True)
class Drawing:
    """A training set in a folder: ``count`` frames and photographs with sides of ``size`` and ``view_size`` px."""

    folder: Path
    count: int
    size: int
    view_size: int
    seed: int

    def draw(self, workers: int) -> Iterator[int]:
        """Draw what isn't there yet; yields after each chunk."""
        with ProcessPoolExecutor(workers, initializer=follow_parent) as pool:
            yield from pool.map(self.draw_file, range(self.chunks))

    def load(self) -> TrainingSet:
        """Read what was drawn. Raises FileError if a chunk is missing or was drawn with other options."""
        frames, views, empty = (np.concatenate(list(self._stored(name))) for name in ("frames", "views", "empty"))
        return TrainingSet(frames[: self.count], views[: self.count], self.pictures(), empty)

    def pictures(self) -> list[Picture]:
        """Read the descriptions alone; raises as :meth:`load`."""
        described = [each for chunk in self._stored("pictures") for each in json.loads(str(chunk))]
        return [
            Picture(**each | {"subject": Subject(**each["subject"]), "box": tuple(each["box"])})
            for each in described[: self.count]
        ]

    def draw_file(self, index: int) -> int:
        path = self._path(index)
        if not self._drawn(path):
            chunk = draw_chunk(index, self.size, self.view_size, self.seed)
            described = json.dumps([asdict(each) for each in chunk.pictures])
            arrays = {"frames": chunk.frames, "views": chunk.views, "empty": chunk.empty}
            with whole_file(path) as temporary, temporary.open("wb") as sink:
                np.savez(sink, allow_pickle=False, pictures=described, origin=self.origin, **arrays)
        return index

    @property
    def chunks(self) -> int:
        return -(-self.count // CHUNK)

    @property
    def origin(self) -> str:
        """What identifies a drawn chunk, but for its number."""
        return json.dumps([VERSION, self.size, self.view_size, self.seed, EMPTY])

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:04d}.npz"

    def _stored(self, name: str) -> Iterator[np.ndarray]:
        """Yield one array of each chunk."""
        for path in map(self._path, range(self.chunks)):
            if not self._drawn(path):
                raise FileError(f"{path} is missing or of another drawing: add data to stages, which draws it")
            with np.load(path) as stored:
                yield stored[name]

    def _drawn(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with np.load(path) as stored:
            return "origin" in stored and str(stored["origin"]) == self.origin
