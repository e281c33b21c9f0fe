"""Edits with a known answer: the named clips, the study clips and the benchmark, and the files of a case.

Editing never reads a case's ``truth/``. ``clips/`` holds the named clips as :func:`write_case` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tave.roadside.draw import background, draw, occluder_layer, silhouette, vehicle_layer
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    NAMED_COMBINATIONS,
    OCCLUDERS,
    PATTERNS,
    PLACES,
    SIZES,
    UNITS,
    VEHICLES,
    Scene,
    Vehicle,
    caption,
    held_out,
    portrait,
)
from tave.roadside2.draw import over, straight, to_bytes
from tave.roadside2.files import drawn_folder, listing_entry, write_files, write_listing

SIZE, FPS = 96, 8.0


@dataclass(frozen=True)
class Case:
    """An edit with a known answer. ``alpha``: whether the target image is cut out, with an alpha channel."""

    name: str
    source: Scene
    target: Vehicle
    image_place: str  # of the target image: another place than the clip's
    image_heading: int = 1
    alpha: bool = False

    @property
    def ideal(self) -> Scene:
        """The scene of the ideal edit: ground line, centre, heading, scale and occluder are the source's."""
        return replace(self.source, vehicle=self.target)

    @property
    def portrait(self) -> Scene:
        """The scene of the target image."""
        return portrait(self.target, self.image_place, self.source.seed + 1, self.image_heading)

    @property
    def source_prompt(self) -> str:
        return caption(self.source.vehicle, self.source.heading, self.source.place)

    @property
    def target_prompt(self) -> str:
        """Like the source prompt it doesn't name the pattern, which the target image alone shows."""
        return caption(self.target, self.source.heading, self.source.place)


# ---- named and study clips -------------------------------------------------------------------------------------------


def _case(name: str, place: str, old: Vehicle, new: Vehicle, image_place: str, number: int, **motion: float) -> Case:
    heading, alpha = 1 if motion["speed"] > 0 else -1, bool(motion.pop("alpha", False))
    scene = Scene(old, place, FIRST_HELD_OUT_SEED + 100 * number, heading=heading, **motion)  # type: ignore[arg-type]
    return Case(name, scene, new, image_place, image_heading=-heading if number % 2 else heading, alpha=alpha)


NAMED: dict[str, Case] = {
    case.name: case
    for case in (
        _case("bus_to_suv", "mountain", Vehicle("bus", "white"), Vehicle("suv", "red"), "desert", 1,
              x=22, speed=2.6, ground=55, scale=1.1),
        _case("car_to_truck", "forest", Vehicle("car", "blue"), Vehicle("truck", "orange"), "city", 2,
              x=42, speed=-2.8, ground=55, scale=1.1, alpha=True),
        _case("van_to_striped_van", "beach", Vehicle("van", "white"), Vehicle("van", "green", "striped", "white"),
              "mountain", 3, x=24, speed=2.2, ground=54, scale=1.25, alpha=True),
        _case("suv_to_bus", "city", Vehicle("suv", "black"), Vehicle("bus", "yellow"), "beach", 4,
              x=40, speed=-2.2, ground=56, scale=1.1),
        _case("truck_to_car", "desert", Vehicle("truck", "red"), Vehicle("car", "purple"), "forest", 5,
              x=23, speed=2.4, ground=55, scale=1.05, bob=0.3),
        _case("car_to_van", "mountain", Vehicle("car", "yellow"), Vehicle("van", "blue"), "city", 6,
              x=24, speed=2.0, ground=54, scale=1.25, pan=1.5),
        _case("bus_to_dotted_bus", "forest", Vehicle("bus", "green"), Vehicle("bus", "blue", "dotted", "yellow"),
              "desert", 7, x=40, speed=-2.2, ground=56, scale=1.15, zoom=0.012),
        _case("van_to_two_tone_suv", "city", Vehicle("van", "orange"), Vehicle("suv", "white", "two-tone", "blue"),
              "forest", 8, x=42, speed=-2.4, ground=55, scale=1.2, alpha=True),
    )
}  # fmt: skip

# Clips on which defaults are chosen. Their combinations and seeds occur in no other case.
STUDY: dict[str, Case] = {
    case.name: case
    for case in (
        _case("truck_to_red_car", "desert", Vehicle("truck", "yellow"), Vehicle("car", "red"), "mountain", 51,
              x=41, speed=-2.4, ground=55, scale=1.1),
        _case("car_to_yellow_van", "beach", Vehicle("car", "red", "dotted", "white"), Vehicle("van", "yellow"),
              "city", 52, x=23, speed=2.5, ground=55, scale=1.2),
        _case("van_to_striped_purple_van", "city", Vehicle("van", "black"),
              Vehicle("van", "purple", "striped", "white"), "forest", 53,
              x=24, speed=2.1, ground=56, scale=1.2, zoom=0.01),
        _case("car_to_striped_suv", "mountain", Vehicle("car", "blue", "two-tone", "yellow"),
              Vehicle("suv", "red", "striped", "black"), "beach", 54, x=40, speed=-2.2, ground=54, scale=1.2, pan=-1.8),
    )
}  # fmt: skip


# ---- benchmark -------------------------------------------------------------------------------------------------------

SEED = 20_240  # of the whole list
FIRST_SEED = FIRST_HELD_OUT_SEED + 10_000  # of its skylines, above those of the named and study clips
EACH = 6  # cases per group
INSIDE = 0.75  # least share of both objects inside the picture, in every frame


def _ratio(case: Case) -> float:
    old, new = (float(np.prod(SIZES[vehicle.kind])) for vehicle in (case.source.vehicle, case.target))
    return new / old


# What an edit may find difficult. A case belongs to every group whose rule it meets.
GROUPS: dict[str, Callable[[Case], bool]] = {
    "same_size": lambda case: 0.8 <= _ratio(case) <= 1.25,
    "larger": lambda case: _ratio(case) > 1.25,
    "smaller": lambda case: _ratio(case) < 0.8,
    "silhouette": lambda case: case.target.kind != case.source.vehicle.kind,
    "pattern_only": lambda case: (
        case.target.pattern not in ("plain", case.source.vehicle.pattern)
        and case.target.kind != "bike"  # its body is too thin to show a pattern
        and (case.target.kind, case.target.color) == (case.source.vehicle.kind, case.source.vehicle.color)
    ),
    "moving_camera": lambda case: case.source.pan != 0,
    "occluder": lambda case: case.source.occluder is not None,
    "long_clip": lambda case: case.source.frames > 8,
}


def groups_of(case: Case) -> list[str]:
    """Return every group whose rule ``case`` meets."""
    return [name for name, rule in GROUPS.items() if rule(case)]


@cache
def benchmark() -> tuple[Case, ...]:
    """Return the benchmark's cases, always the same: ``EACH`` drawn for each group, in the groups' order."""
    rng, made, used = np.random.default_rng(SEED), [], set()
    pairs = _pairs()
    for group, number in product(GROUPS, range(EACH)):
        while True:
            pair = pairs[int(rng.integers(len(pairs)))]
            if pair in used:
                continue
            case = _proposed(rng, pair, group, f"{group}_{number}", FIRST_SEED + 100 * len(made))
            if GROUPS[group](case) and _visible(case):
                break
        used.add(pair)
        made.append(case)
    return tuple(made)


def _pairs() -> list[tuple[Vehicle, Vehicle, str]]:
    """Return every held-out source, target and place, without the named clips' combinations."""
    kept: dict[str, list[Vehicle]] = {place: [] for place in PLACES}
    for kind, color, pattern, place in product(VEHICLES, COLORS, PATTERNS, PLACES):
        vehicle = Vehicle(kind, color, pattern)
        if held_out(vehicle, place) and (kind, color, pattern, place) not in NAMED_COMBINATIONS:
            kept[place].append(vehicle)
    return [(old, new, place) for place in PLACES for old, new in product(kept[place], repeat=2) if old != new]


def _proposed(rng: np.random.Generator, pair: tuple[Vehicle, Vehicle, str], group: str, name: str, seed: int) -> Case:
    source, target = (
        replace(vehicle, accent=str(rng.choice([color for color in COLORS if color != vehicle.color])))
        for vehicle in pair[:2]
    )
    heading, frames = int(rng.choice((-1, 1))), 16 if group == "long_clip" else 8
    speed = heading * float(rng.uniform(1.2, 2.8)) * 8 / frames
    scene = Scene(
        source,
        pair[2],
        seed,
        heading=heading,
        x=UNITS / 2 + float(rng.uniform(-4, 4)) - speed * (frames - 1) / 2,
        speed=speed,
        ground=float(rng.uniform(53, 56.5)),
        scale=float(rng.uniform(0.95, 1.25)),
        zoom=float(rng.uniform(-0.012, 0.012)) if rng.random() < 0.25 else 0.0,
        bob=float(rng.uniform(0.2, 0.4)) if rng.random() < 0.25 else 0.0,
        pan=float(rng.choice((-1, 1)) * rng.uniform(1.0, 2.5)) if group == "moving_camera" else 0.0,
        occluder=str(rng.choice(OCCLUDERS)) if group == "occluder" else None,
        occluder_x=float(rng.uniform(28, 36)),
        frames=frames,
    )
    elsewhere = str(rng.choice([place for place in PLACES if place != scene.place]))
    return Case(name, scene, target, elsewhere, int(rng.choice((-1, 1))), alpha=bool(rng.random() < 0.5))


def _visible(case: Case) -> bool:
    """Whether both objects stay in the picture; they move linearly, so first and last frame decide."""
    for scene in (case.source, case.ideal):
        for frame in (0, scene.frames - 1):
            inside, whole = (vehicle_layer(scene, frame, 32, margin)[..., 3].sum() for margin in ((0, 0), (32, 32)))
            if inside < INSIDE * whole:
                return False
    return True


# ---- pictures and truth ----------------------------------------------------------------------------------------------


def frames_of(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Return all frames of a scene, ``f H W 3`` uint8."""
    return np.stack([to_bytes(draw(scene, i, size)) for i in range(scene.frames)])


def truth_of(case: Case, size: int = SIZE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and facts of ``truth/``, from which an edit is measured.

    ``source``, ``ideal``, ``background`` ``f H W 3`` uint8; ``source_mask``, ``target_mask`` ``f H W`` bool (visible);
    ``target_layer`` RGBA with margins of H/16 and W/8, to compose the ideal clip at small shifts; ``occluder`` RGBA.
    ``target_inside``: share of the target's silhouette inside the picture, per frame; ``track``: see :func:`track_of`;
    ``still_camera``: whether the background stands still.
    """
    ideal, moments = case.ideal, range(case.source.frames)
    margin = size // 8, size // 16
    whole = [vehicle_layer(ideal, i, size, (size, size))[..., 3].sum() for i in moments]
    arrays = {
        "source": frames_of(case.source, size),
        "ideal": frames_of(ideal, size),
        "background": np.stack([to_bytes(background(case.source, i, size)) for i in moments]),
        "source_mask": np.stack([silhouette(case.source, i, size) >= 0.5 for i in moments]),
        "target_mask": np.stack([silhouette(ideal, i, size) >= 0.5 for i in moments]),
        "target_layer": np.stack([straight(vehicle_layer(ideal, i, size, margin)) for i in moments]),
        "occluder": np.stack([straight(occluder_layer(case.source, i, size)) for i in moments]),
    }
    inside = [vehicle_layer(ideal, i, size)[..., 3].sum() / total for i, total in zip(moments, whole, strict=True)]
    described = {
        "source": {**asdict(case.source.vehicle), "place": case.source.place},
        "target": {**asdict(case.target), "place": case.source.place},
        "target_inside": [round(float(share), 4) for share in inside],
        "track": track_of(case.source, size),
        "still_camera": case.source.pan == 0,
    }
    for part in (described["source"], described["target"]):
        part["vehicle"] = part.pop("kind")
    return arrays, described


def track_of(scene: Scene, size: int = SIZE) -> list[list[float]]:
    """Return x and y of the wheels' middle in pixels, and the vehicle's scale, for each frame."""
    poses = [scene.pose(i) for i in range(scene.frames)]
    return [[round(x * size / UNITS, 6), round(y * size / UNITS, 6), round(scale, 6)] for x, y, scale in poses]


def target_image(case: Case, size: int = 2 * SIZE) -> Image.Image:
    """Return the target image: cut out with an alpha channel, or with its own background."""
    layer = vehicle_layer(case.portrait, 0, size)
    if case.alpha:
        return Image.fromarray(straight(layer), "RGBA")
    return Image.fromarray(to_bytes(over(layer, background(case.portrait, 0, size))))


# ---- files -----------------------------------------------------------------------------------------------------------


def write_case(case: Case, folder: Path, size: int = SIZE) -> None:
    """Write ``folder/source.mp4``, ``target.png``, ``truth/truth.npz`` and ``truth/truth.json``."""
    write_files(folder, frames_of(case.source, size), target_image(case, 2 * size), truth_of(case, size), FPS)


def find_case(name: str) -> Case:
    """Return the named, study or benchmark case ``name``; ValueError if there is none."""
    known = NAMED | STUDY
    if name not in known:
        known = known | {case.name: case for case in benchmark()}
    if name not in known:
        raise ValueError(f"there is no drawn case {name}: choose one of {', '.join(known)}")
    return known[name]


def draw_case(case: Case, folder: Path, size: int = SIZE) -> Path:
    """Draw a case into ``folder/NAME``, atomically, unless it is there at this ``size`` (px); return that folder."""
    description = {"size": size, **asdict(case)}
    return drawn_folder(folder, case.name, description, lambda place: write_case(case, place, size))


def draw_set(folder: str | Path, size: int = SIZE, which: str = "full", only: Collection[str] = ()) -> Path:
    """Draw a set of cases into ``folder`` and return its ``cases.json``.

    which: full (the benchmark), small (the first case of each of its groups) or study; only: some of these, by name.
    """
    place = Path(folder)
    cases = STUDY.values() if which == "study" else benchmark()[:: {"full": 1, "small": EACH}[which]]
    chosen = [case for case in cases if not only or case.name in only]
    for case in chosen:
        draw_case(case, place, size)
    entries = [
        listing_entry(case.name, groups_of(case), (case.source_prompt, case.target_prompt), case.source.frames)
        for case in chosen
    ]
    return write_listing(place, entries)
