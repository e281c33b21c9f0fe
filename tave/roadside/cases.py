"""The named clips: which scene becomes which, and the files that a case is made of (clip, target image, truth).

``python -m tave.roadside.cases FOLDER`` draws them anew. The truth is for metrics alone: editing never reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tave.roadside.draw import background, draw, occluder_layer, over, silhouette, to_bytes, vehicle_layer
from tave.roadside.scene import FIRST_HELD_OUT_SEED, PLACES, UNITS, Scene, Vehicle, caption, portrait, with_vehicle
from tave.video import write_video
from tave.video.frames import from_pixels

SIZE, FPS = 96, 8.0
# The clips of conf/experiment: a smaller target, a larger one, one that only its pattern tells, a moving camera; none cut out.
STUDIED = ("bus_to_suv", "suv_to_bus", "bus_to_dotted_bus", "car_to_van")


@dataclass(frozen=True)
class Case:
    """An edit with a known answer. ``alpha``: whether the target image comes cut out, as from a shop's page."""

    name: str
    source: Scene
    target: Vehicle
    image_place: str  # where the target was photographed: another place than the clip's
    image_heading: int = 1
    alpha: bool = False

    @property
    def ideal(self) -> Scene:
        return with_vehicle(self.source, self.target)

    @property
    def portrait(self) -> Scene:
        return portrait(self.target, self.image_place, self.source.seed + 1, self.image_heading)

    @property
    def source_prompt(self) -> str:
        return caption(self.source.vehicle, self.source.heading, self.source.place)

    @property
    def target_prompt(self) -> str:
        """Like the source prompt it doesn't name the pattern: only the target image can say it."""
        return caption(self.target, self.source.heading, self.source.place)


def _case(
    name: str,
    place: str,
    source: Vehicle,
    target: Vehicle,
    image_place: str,
    number: int,
    *,
    alpha: bool = False,
    **motion: float,
) -> Case:
    heading = 1 if motion["speed"] > 0 else -1
    scene = Scene(source, place, FIRST_HELD_OUT_SEED + 100 * number, heading=heading, **motion)  # type: ignore[arg-type]
    return Case(name, scene, target, image_place, image_heading=-heading if number % 2 else heading, alpha=alpha)


NAMED: dict[str, Case] = {
    case.name: case
    for case in (
        _case(
            "bus_to_suv", "mountain", Vehicle("bus", "white"), Vehicle("suv", "red"), "desert", 1,
            x=22, speed=2.6, ground=55, scale=1.1,
        ),
        _case(
            "car_to_truck", "forest", Vehicle("car", "blue"), Vehicle("truck", "orange"), "city", 2,
            x=42, speed=-2.8, ground=55, scale=1.1, alpha=True,
        ),
        _case(
            "van_to_striped_van", "beach", Vehicle("van", "white"), Vehicle("van", "green", "striped", "white"), "mountain", 3,
            x=24, speed=2.2, ground=54, scale=1.25, alpha=True,
        ),
        _case(
            "suv_to_bus", "city", Vehicle("suv", "black"), Vehicle("bus", "yellow"), "beach", 4,
            x=40, speed=-2.2, ground=56, scale=1.1,
        ),
        _case(
            "truck_to_car", "desert", Vehicle("truck", "red"), Vehicle("car", "purple"), "forest", 5,
            x=23, speed=2.4, ground=55, scale=1.05, bob=0.3,
        ),
        _case(
            "car_to_van", "mountain", Vehicle("car", "yellow"), Vehicle("van", "blue"), "city", 6,
            x=24, speed=2.0, ground=54, scale=1.25, pan=1.5,
        ),
        _case(
            "bus_to_dotted_bus", "forest", Vehicle("bus", "green"), Vehicle("bus", "blue", "dotted", "yellow"), "desert", 7,
            x=40, speed=-2.2, ground=56, scale=1.15, zoom=0.012,
        ),
        _case(
            "van_to_two_tone_suv", "city", Vehicle("van", "orange"), Vehicle("suv", "white", "two-tone", "blue"), "forest", 8,
            x=42, speed=-2.4, ground=55, scale=1.2, alpha=True,
        ),
    )
}  # fmt: skip

# Clips to choose defaults on: like the named ones, and neither their combinations and seeds nor the benchmark's.
STUDY: dict[str, Case] = {
    case.name: case
    for case in (
        _case(
            "truck_to_red_car", "desert", Vehicle("truck", "yellow"), Vehicle("car", "red"), "mountain", 51,
            x=41, speed=-2.4, ground=55, scale=1.1,
        ),
        _case(
            "car_to_yellow_van", "beach", Vehicle("car", "red", "dotted", "white"), Vehicle("van", "yellow"), "city", 52,
            x=23, speed=2.5, ground=55, scale=1.2,
        ),
        _case(
            "van_to_striped_purple_van", "city", Vehicle("van", "black"), Vehicle("van", "purple", "striped", "white"),
            "forest", 53, x=24, speed=2.1, ground=56, scale=1.2, zoom=0.01,
        ),
        _case(
            "car_to_striped_suv", "mountain", Vehicle("car", "blue", "two-tone", "yellow"),
            Vehicle("suv", "red", "striped", "black"), "beach", 54, x=40, speed=-2.2, ground=54, scale=1.2, pan=-1.8,
        ),
    )
}  # fmt: skip


def frames_of(scene: Scene, size: int = SIZE) -> np.ndarray:
    """All frames of a scene, ``f H W 3`` uint8."""
    return np.stack([to_bytes(draw(scene, i, size)) for i in range(scene.frames)])


def _straight(layer: np.ndarray) -> np.ndarray:
    """Premultiplied float RGBA -> straight uint8 RGBA, as PNG and the metrics hold it."""
    alpha = layer[..., 3:]
    return to_bytes(np.concatenate([layer[..., :3] / np.maximum(alpha, 1e-6), alpha], -1))


def truth_of(case: Case, size: int = SIZE) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays and facts of ``truth/``: everything that a metric may ask about the right answer.

    ``source``, ``ideal``, ``background`` ``f H W 3`` uint8; ``source_mask``, ``target_mask`` ``f H W`` bool (visible);
    ``target_layer`` RGBA with margins of H/16 and W/8, so that the ideal clip can be put together at any small shift;
    ``occluder`` RGBA. ``target_inside``: share of the target's silhouette that lies inside the picture, per frame.
    ``track``: x and y of the wheels' middle in pixels and the scale, per frame; ``still_camera``: the background stays.
    """
    ideal, moments = case.ideal, range(case.source.frames)
    margin = size // 8, size // 16
    layers = [vehicle_layer(ideal, i, size, margin) for i in moments]
    whole = [vehicle_layer(ideal, i, size, (size, size))[..., 3].sum() for i in moments]
    arrays = {
        "source": frames_of(case.source, size),
        "ideal": frames_of(ideal, size),
        "background": np.stack([to_bytes(background(case.source, i, size)) for i in moments]),
        "source_mask": np.stack([silhouette(case.source, i, size) >= 0.5 for i in moments]),
        "target_mask": np.stack([silhouette(ideal, i, size) >= 0.5 for i in moments]),
        "target_layer": np.stack([_straight(layer) for layer in layers]),
        "occluder": np.stack([_straight(occluder_layer(case.source, i, size)) for i in moments]),
    }
    inside = [float(vehicle_layer(ideal, i, size)[..., 3].sum() / total) for i, total in zip(moments, whole, strict=True)]
    described = {
        "source": {**asdict(case.source.vehicle), "place": case.source.place},
        "target": {**asdict(case.target), "place": case.source.place},
        "target_inside": [round(share, 4) for share in inside],
        "track": track_of(case.source, size),
        "still_camera": case.source.pan == 0,
    }
    for part in (described["source"], described["target"]):
        part["vehicle"] = part.pop("kind")  # type: ignore[union-attr]
    return arrays, described


def track_of(scene: Scene, size: int = SIZE) -> list[list[float]]:
    """For each frame where the vehicle stands, x and y in pixels, and its scale: the clip's true motion."""
    poses = [scene.pose(i) for i in range(scene.frames)]
    return [[round(x * size / UNITS, 6), round(y * size / UNITS, 6), round(scale, 6)] for x, y, scale in poses]


def target_image(case: Case, size: int = SIZE) -> Image.Image:
    """The photograph of the target: cut out with an alpha channel, or standing in its own place."""
    layer = vehicle_layer(case.portrait, 0, size)
    if case.alpha:
        return Image.fromarray(_straight(layer), "RGBA")
    return Image.fromarray(to_bytes(over(layer, background(case.portrait, 0, size))))


def photographed(case: Case, place: str) -> Image.Image:
    """The target image, had it been taken in another place."""
    return target_image(replace(case, image_place=place), 2 * SIZE)


def target_matte(case: Case) -> Image.Image:
    """The target's silhouette in its image, as a user would draw it."""
    return Image.fromarray(to_bytes(vehicle_layer(case.portrait, 0, 2 * SIZE)[..., 3]), "L")


def third_place(case: Case) -> str:
    """The first that is neither the clip's nor the target image's."""
    return next(place for place in PLACES if place not in (case.source.place, case.image_place))


def write_case(case: Case, folder: Path, size: int = SIZE) -> None:
    """``folder``: source.mp4, target.png, truth/truth.npz, truth/truth.json."""
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    frames = from_pixels(frames_of(case.source, size))
    write_video(folder / "source.mp4", frames, FPS, crf=8)
    target_image(case, 2 * size).save(folder / "target.png")
    arrays, described = truth_of(case, size)
    np.savez_compressed(folder / "truth" / "truth.npz", **arrays)  # type: ignore[arg-type]
    (folder / "truth" / "truth.json").write_text(json.dumps(described, indent=2) + "\n")


def find_case(name: str) -> Case:
    """Return the named, study or benchmark case of this name; ValueError if there is none."""
    from tave.roadside.benchmark import cases

    known = NAMED | STUDY | {case.name: case for case in cases()}
    if name not in known:
        raise ValueError(f"no drawn case is called {name}: choose one of {', '.join(known)}")
    return known[name]


def draw_case(name: str, folder: Path, size: int = SIZE) -> Path:
    """Return ``folder/name`` with the files of the case, drawn unless it holds them already; whole or not at all."""
    case, target = find_case(name), folder / name
    record = json.dumps({"size": size, **asdict(case)}, indent=2)
    scene = target / "scene.json"
    if scene.is_file() and scene.read_text(encoding="utf-8") == record:
        return target
    temporary = folder / f".{name}.{os.getpid()}"
    write_case(case, temporary, size)
    (temporary / scene.name).write_text(record, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    try:
        temporary.rename(target)
    except OSError:  # another process has drawn the same case at the same time
        shutil.rmtree(temporary)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tave.roadside.cases", description="Draw the named clips.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "clips")
    folder = parser.parse_args().folder
    for name, case in NAMED.items():
        write_case(case, folder / name)
    for name in STUDIED:
        case = NAMED[name]
        photographed(case, case.source.place).save(folder / name / "target_same_place.png")
        photographed(case, third_place(case)).save(folder / name / "target_third_place.png")
        target_matte(case).save(folder / name / "target_matte.png")


if __name__ == "__main__":
    main()
