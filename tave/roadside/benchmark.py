"""The Roadside benchmark: a fixed list of held-out edits, drawn as files that are read like anybody's.

Each group changes one thing that an edit may stumble over; a case belongs to every group whose rule it meets.
``python -m tave.benchmark`` draws what it needs and runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from tave.cache import key_of as digest
from tave.files import write_json
from tave.roadside.cases import Case, write_case
from tave.roadside.draw import vehicle_layer
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    NAMED_COMBINATIONS,
    PATTERNS,
    PLACES,
    SIZES,
    UNITS,
    VEHICLES,
    Scene,
    Vehicle,
    held_out,
)

SEED = 20_240  # of the whole list
FIRST_SEED = FIRST_HELD_OUT_SEED + 10_000  # of its skylines: beyond those of the named clips
EACH = 6  # cases drawn for each group
INSIDE = 0.75  # least share of both objects inside the picture, in every frame

Pair = tuple[Vehicle, Vehicle, str]  # source, target, place


def _ratio(case: Case) -> float:
    old, new = (float(np.prod(SIZES[vehicle.kind])) for vehicle in (case.source.vehicle, case.target))
    return new / old


# A group is a rule about cases; the order is that of the list, and of the tabs of the leaderboard.
GROUPS: dict[str, Callable[[Case], bool]] = {
    "same_size": lambda case: 0.8 <= _ratio(case) <= 1.25,
    "larger": lambda case: _ratio(case) > 1.25,
    "smaller": lambda case: _ratio(case) < 0.8,
    "silhouette": lambda case: case.target.kind != case.source.vehicle.kind,
    "pattern_only": lambda case: (
        case.target.pattern not in ("plain", case.source.vehicle.pattern)
        and case.target.kind != "bike"  # its body is too thin to show one
        and (case.target.kind, case.target.color) == (case.source.vehicle.kind, case.source.vehicle.color)
    ),
    "moving_camera": lambda case: case.source.pan != 0,
    "occluder": lambda case: case.source.occluder is not None,
    "long_clip": lambda case: case.source.frames > 8,
}


def groups_of(case: Case) -> list[str]:
    """Every group whose rule ``case`` meets."""
    return [name for name, rule in GROUPS.items() if rule(case)]


def cases() -> list[Case]:
    """The whole list: ``EACH`` cases drawn for each group, in that order. The same whoever asks."""
    return list(_cases())


def small() -> list[Case]:
    """One case of each group."""
    return cases()[::EACH]


@cache
def _cases() -> tuple[Case, ...]:
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


def _pairs() -> list[Pair]:
    """Every source, target and place that training has never seen, those of the named clips left out."""
    kept: dict[str, list[Vehicle]] = {place: [] for place in PLACES}
    for kind, color, pattern, place in product(VEHICLES, COLORS, PATTERNS, PLACES):
        vehicle = Vehicle(kind, color, pattern)
        if held_out(vehicle, place) and (kind, color, pattern, place) not in NAMED_COMBINATIONS:
            kept[place].append(vehicle)
    return [(old, new, place) for place in PLACES for old, new in product(kept[place], repeat=2) if old != new]


def _proposed(rng: np.random.Generator, pair: Pair, group: str, name: str, seed: int) -> Case:
    source, target = (_with_accent(rng, vehicle) for vehicle in pair[:2])
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
        occluder=str(rng.choice(("lamp", "tree"))) if group == "occluder" else None,
        occluder_x=float(rng.uniform(28, 36)),
        frames=frames,
    )
    elsewhere = str(rng.choice([place for place in PLACES if place != scene.place]))
    return Case(name, scene, target, elsewhere, int(rng.choice((-1, 1))), alpha=bool(rng.random() < 0.5))


def _with_accent(rng: np.random.Generator, vehicle: Vehicle) -> Vehicle:
    return replace(vehicle, accent=str(rng.choice([color for color in COLORS if color != vehicle.color])))


def _visible(case: Case) -> bool:
    """Whether both objects stay in the picture: they move linearly, so the ends tell."""
    for scene in (case.source, case.ideal):
        for frame in (0, scene.frames - 1):
            inside, whole = (vehicle_layer(scene, frame, 32, margin)[..., 3].sum() for margin in ((0, 0), (32, 32)))
            if inside < INSIDE * whole:
                return False
    return True


def draw_set(folder: str | Path, size: int, which: str = "full", only: Collection[str] = ()) -> Path:
    """Draw the list (``full`` or ``small``; of it ``only`` these, if any are named) into ``folder``; returns ``cases.json``.

    What stands, drawn from the same scene at the same ``size`` in pixels, is not drawn again.
    """
    place = Path(folder)
    chosen = [case for case in {"full": cases, "small": small}[which]() if not only or case.name in only]
    listing = place / "cases.json"
    write_json(listing, {"cases": list(_drawn(chosen, place, size))})
    return listing


def _drawn(chosen: list[Case], place: Path, size: int) -> Iterator[dict[str, object]]:
    for case in chosen:
        here, mark = place / case.name, digest(case, size)
        record = here / "scene.json"  # written last: a case that was cut off is drawn anew
        if not record.is_file() or json.loads(record.read_text())["digest"] != mark:
            write_case(case, here, size)
            write_json(record, {"digest": mark, "size": size, **asdict(case)})
        yield {
            "name": case.name,
            "groups": groups_of(case),
            "path": f"{case.name}/source.mp4",
            "source_prompt": case.source_prompt,
            "target_image": f"{case.name}/target.png",
            "target_prompt": case.target_prompt,
            "frames": case.source.frames,
            "truth": f"{case.name}/truth",
        }
