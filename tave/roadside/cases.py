"""Edits with a known answer: the named clips, the study clips and the benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from tave.roadside.draw import draw, object_layer, straight, to_bytes
from tave.roadside.sample import centred, layout_of, patterns_of, photograph, places_of
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    HOURS,
    KINDS,
    NAMED_COMBINATIONS,
    OCCLUDERS,
    PATTERNS,
    UNITS,
    Scene,
    Subject,
    never_seen,
    scene_caption,
)
from tave.roadside.shapes import SIZES

SIZE, FPS = 96, 8.0
# Degrees between the yaws of the photograph and of the object in any frame, at least; and with the photograph mirrored.
LEAST_VIEW_CHANGE, LEAST_MIRRORED = 50.0, 25.0


@dataclass(frozen=True)
class Case:
    """An edit with a known answer. ``photo``: the scene of the target image; ``alpha``: whether that is cut out."""

    name: str
    source: Scene
    photo: Scene
    alpha: bool = False

    @property
    def target(self) -> Subject:
        return self.photo.subject

    @property
    def ideal(self) -> Scene:
        """The scene of the ideal edit: place, path, yaw, light, camera and occluder are the source's."""
        return replace(self.source, subject=self.target)

    @property
    def source_prompt(self) -> str:
        return scene_caption(self.source)

    @property
    def target_prompt(self) -> str:
        """Like the source prompt it doesn't name the pattern, which the target image alone shows."""
        return scene_caption(self.ideal)


def yaw_difference(scene: Scene, yaw: float) -> float:
    """Return the least difference in degrees, 0 to 180, between ``yaw`` and the object's over the clip."""
    each = (abs((scene.heading(i) - yaw + 180) % 360 - 180) for i in range(scene.frames))
    return min(each)


# ---- named and study clips -------------------------------------------------------------------------------------------


def _case(
    name: str, number: int, old: Subject, new: Subject, place: str, photo: tuple[str, str, float], x: float = 32,
    scale: float = 1.1, alpha: bool = False, crop: float = 0.0, **scene: Any,
) -> Case:  # fmt: skip
    """Return a case. photo: place, hour and yaw of the target image; x, scale: of the object halfway through the clip.

    number: of the case, for the skylines' seeds; scene: other fields of the clip's scene.
    """
    seed = FIRST_HELD_OUT_SEED + 100 * number
    clip = centred(Scene(old, place, seed, z=90 / scale, **scene), x)
    where, hour, yaw = photo
    return Case(name, clip, photograph(new, where, seed + 1, yaw=yaw, hour=hour, sun=250.0, crop=crop), alpha)


NAMED: dict[str, Case] = {
    case.name: case
    for case in (
        _case("bus_to_suv", 1, Subject("bus", "white"), Subject("suv", "red"), "mountain",
              ("desert", "overcast", 250.0), yaw=20, turn=-7, speed=2.2, sun=250, layout="square"),
        _case("car_to_truck", 2, Subject("car", "blue"), Subject("truck", "orange"), "forest",
              ("city", "overcast", 20.0), yaw=248, speed=2.5, scale=1.15, sun=300, layout="ahead", alpha=True),
        _case("sneakers_to_boots", 3, Subject("sneaker", "gray"), Subject("boot", "red"), "park",
              ("city", "overcast", 215.0), yaw=0, speed=3.2, scale=1.15, step=0.1, sun=220),
        _case("van_to_striped_van", 4, Subject("van", "white"), Subject("van", "green", "striped", "white"), "beach",
              ("mountain", "dusk", 130.0), yaw=8, speed=2.0, scale=1.3, sun=200, alpha=True),
        _case("suv_to_bus", 5, Subject("suv", "black"), Subject("bus", "yellow"), "city", ("beach", "noon", 70.0),
              hour="night", yaw=172, speed=2.2, scale=1.1, sun=260),
        _case("truck_to_car", 6, Subject("truck", "red"), Subject("car", "purple"), "desert", ("forest", "dusk", 75.0),
              hour="overcast", yaw=150, turn=8, speed=2.0, scale=1.1, sun=240, layout="square"),
        _case("car_to_van", 7, Subject("car", "yellow"), Subject("van", "blue"), "mountain", ("city", "noon", 290.0),
              hour="dusk", yaw=12, speed=2.4, scale=1.25, pan=1.2, tilt=0.35, sun=215),
        _case("bus_to_dotted_bus", 8, Subject("bus", "green"), Subject("bus", "blue", "dotted", "yellow"), "forest",
              ("desert", "noon", 300.0), hour="overcast", yaw=205, speed=2.0, scale=1.15, occluder="lamp",
              occluder_x=30),
    )
}  # fmt: skip

# Clips on which defaults are chosen. Their combinations and seeds occur in no other case.
STUDY: dict[str, Case] = {
    case.name: case
    for case in (
        _case("truck_to_plain_suv", 51, Subject("truck", "blue"), Subject("suv", "white"), "desert",
              ("mountain", "overcast", 290.0), yaw=25, turn=5, speed=2.0, layout="square", sun=230),
        _case("suv_to_dotted_suv", 52, Subject("suv", "white"), Subject("suv", "purple", "dotted", "white"), "beach",
              ("city", "overcast", 75.0), yaw=184, speed=2.2, scale=1.2, sun=300, crop=0.15),
        _case("van_to_bike", 53, Subject("van", "black"), Subject("bike", "gray"), "city",
              ("forest", "noon", 110.0), hour="night", yaw=0, speed=2.0, scale=1.25, sun=250),
        _case("boots_to_sandals", 54, Subject("boot", "blue"), Subject("sandal", "black"), "park",
              ("beach", "dusk", 60.0), yaw=180, speed=3.0, scale=1.15, step=0.4, sun=200),
    )
}  # fmt: skip


# ---- benchmark -------------------------------------------------------------------------------------------------------

SEED = 20_262  # of the whole list
FIRST_SEED = FIRST_HELD_OUT_SEED + 10_000  # of its skylines, above those of the named and study clips
INSIDE = 0.75  # least share of both objects inside the picture, in every frame


def _ratio(case: Case) -> float:
    old, new = (math.prod(SIZES[subject.kind]) for subject in (case.source.subject, case.target))
    return new / old


def _turned(case: Case) -> float:
    return abs(case.source.turn) * (case.source.frames - 1)


# What an edit may find difficult: the rule, and how many cases are drawn for it. A case belongs to every group whose
# rule it meets.
GROUPS: dict[str, tuple[Callable[[Case], bool], int]] = {
    "same_size": (lambda case: 0.8 <= _ratio(case) <= 1.25, 4),
    "larger": (lambda case: _ratio(case) > 1.25, 4),
    "smaller": (lambda case: _ratio(case) < 0.8, 4),
    "silhouette": (lambda case: case.target.kind != case.source.subject.kind, 4),
    "pattern_only": (
        lambda case: (
            case.target.pattern not in ("plain", case.source.subject.pattern)
            and (case.target.kind, case.target.color) == (case.source.subject.kind, case.source.subject.color)
        ),
        4,
    ),
    "moving_camera": (lambda case: (case.source.pan, case.source.tilt) != (0, 0), 4),
    "occluder": (lambda case: case.source.occluder is not None, 4),
    "instances": (lambda case: case.source.subject.walks, 4),
    "long_clip": (lambda case: case.source.frames > 8, 4),
    "turning": (lambda case: _turned(case) >= 40 and _shows(case), 12),
    "other_light": (lambda case: _daylight(case.source) != _daylight(case.photo) and _shows(case), 12),
}


def _shows(case: Case) -> bool:
    """Whether a figure over both objects can show a wrong view or light.

    Of a smaller target it would measure the road behind the old object; a plain black or gray one looks like the road,
    and much the same from every side and in every light.
    """
    dull = case.target.pattern == "plain" and case.target.color in ("black", "gray")
    return _ratio(case) >= 0.8 and not dull


def _daylight(scene: Scene) -> bool:
    return scene.hour in ("noon", "overcast")


def groups_of(case: Case) -> list[str]:
    """Return every group whose rule ``case`` meets."""
    return [name for name, (rule, _) in GROUPS.items() if rule(case)]


@cache
def benchmark() -> tuple[Case, ...]:
    """Return the benchmark's 60 cases, always the same, in the groups' order."""
    rng, made, used = np.random.default_rng(SEED), [], set()
    pairs = _pairs()
    for group, (rule, count) in GROUPS.items():
        for number in range(count):
            while True:
                pair = pairs[int(rng.integers(len(pairs)))]
                if pair in used:
                    continue
                case = _proposed(rng, pair, group, f"{group}_{number}", FIRST_SEED + 100 * len(made))
                if case is not None and rule(case) and _visible(case):
                    break
            used.add(pair)
            made.append(case)
    return tuple(made)


def small_benchmark() -> tuple[Case, ...]:
    """Return twelve of the cases: the first of each group, and the second of ``turning``."""
    first = {f"{group}_0" for group in GROUPS} | {"turning_1"}
    return tuple(case for case in benchmark() if case.name in first)


def _pairs() -> list[tuple[Subject, Subject, str]]:
    """Return every unseen source, target and place, without the combinations of named and study clips."""
    taken = {
        (subject.kind, subject.color, subject.pattern, case.source.place)
        for case in STUDY.values()
        for subject in (case.source.subject, case.target)
    }
    kept: dict[str, list[Subject]] = {}
    for kind, color, pattern in product(KINDS, COLORS, PATTERNS):
        subject = Subject(kind, color, pattern)
        if pattern not in patterns_of(kind):
            continue
        for place in places_of(subject):
            if never_seen(subject, place) and (kind, color, pattern, place) not in NAMED_COMBINATIONS | taken:
                kept.setdefault(place, []).append(subject)
    return [
        (old, new, place)
        for place, subjects in kept.items()
        for old, new in product(subjects, repeat=2)
        if old != new and old.walks == new.walks
    ]


def _proposed(
    rng: np.random.Generator, pair: tuple[Subject, Subject, str], group: str, name: str, seed: int
) -> Case | None:
    """Return a random case; None if the photograph's view is too near to the clip's."""
    source, target = (
        replace(subject, accent=str(rng.choice([color for color in COLORS if color != subject.color])))
        for subject in pair[:2]
    )
    frames = 24 if group == "long_clip" else 8  # more than one window of the default length
    turn = float(rng.choice((-1, 1)) * rng.uniform(8, 14)) if group == "turning" else 0.0
    side = group != "turning" and rng.random() < 0.6
    yaw = float(rng.choice((0, 180)) + rng.uniform(-20, 20)) % 360 if side else float(rng.uniform(0, 360))
    hour = str(rng.choice(HOURS, p=(0.55, 0.1, 0.1, 0.25)))
    photo_hour = str(rng.choice(HOURS, p=(0.6, 0.05, 0.05, 0.3)))
    if group == "other_light":
        hour, photo_hour = rng.permutation([str(rng.choice(("dusk", "night"))), str(rng.choice(("noon", "overcast")))])
    speed = float(rng.uniform(2.4, 3.4)) if source.walks else float(rng.uniform(1.2, 2.8))
    camera = group == "moving_camera"
    clip = Scene(
        source,
        pair[2],
        seed,
        hour=str(hour),
        sun=float(rng.uniform(180, 360)),  # in front of what the camera sees
        z=90 / float(rng.uniform(0.95, 1.3)),
        yaw=yaw,
        speed=speed * 8 / frames,
        turn=turn,
        bob=float(rng.uniform(0.1, 0.3)) if not source.walks and rng.random() < 0.2 else 0.0,
        step=float(rng.random()) if source.walks else 0.0,
        pan=float(rng.choice((-1, 1)) * rng.uniform(0.8, 2.0)) if camera else 0.0,
        tilt=float(rng.choice((-1, 1)) * rng.uniform(0.2, 0.6)) if camera else 0.0,
        layout=layout_of(rng, yaw, turn),
        occluder=str(rng.choice(OCCLUDERS)) if group == "occluder" else None,
        occluder_x=float(rng.uniform(26, 38)),
        frames=frames,
    )
    clip = centred(clip, UNITS / 2 + float(rng.uniform(-5, 5)))
    view = float(rng.uniform(0, 360))
    if yaw_difference(clip, view) < LEAST_VIEW_CHANGE or yaw_difference(clip, 180 - view) < LEAST_MIRRORED:
        return None
    elsewhere = str(rng.choice([place for place in places_of(target) if place != clip.place]))
    crop = float(rng.choice((-1, 1)) * rng.uniform(0.08, 0.2)) if rng.random() < 0.15 else 0.0
    photo = photograph(
        target, elsewhere, seed + 1, yaw=view, hour=str(photo_hour), sun=float(rng.uniform(180, 360)), crop=crop
    )
    return Case(name, clip, photo, alpha=bool(rng.random() < 0.5))


def _visible(case: Case) -> bool:
    """Whether both objects stay in the picture."""
    for scene in (case.source, case.ideal):
        for frame in range(scene.frames):
            if share_inside(scene, frame, 32) < INSIDE:
                return False
    return True


def share_inside(scene: Scene, frame: int, size: int) -> float:
    """Return the share of the object's silhouette that lies inside the picture; 0 far beyond it."""
    inside, whole = (float(object_layer(scene, frame, size, each)[..., 3].sum()) for each in ((0, 0), (size, size)))
    return inside / whole if whole else 0.0


# ---- pictures --------------------------------------------------------------------------------------------------------


def frames_of(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Return all frames of a scene, ``f H W 3`` uint8."""
    return np.stack([to_bytes(draw(scene, i, size)) for i in range(scene.frames)])


def target_image(case: Case, size: int = 2 * SIZE) -> Image.Image:
    """Return the target image: cut out with an alpha channel, or with its own background."""
    if case.alpha:
        return Image.fromarray(straight(object_layer(case.photo, 0, size)), "RGBA")
    return Image.fromarray(to_bytes(draw(case.photo, 0, size)))


def find_case(name: str) -> Case:
    """Return the named, study or benchmark case ``name``; ValueError if there is none."""
    known = NAMED | STUDY
    if name not in known:
        known = known | {case.name: case for case in benchmark()}
    if name not in known:
        raise ValueError(f"there is no drawn case {name}: choose one of {', '.join(known)}")
    return known[name]
