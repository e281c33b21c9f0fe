"""Random scenes for training and examination, and photographs of an object: other place, light and yaw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tave.roadside.draw import outline_box
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    HOURS,
    LAYOUTS,
    OCCLUDERS,
    PATTERNS,
    PLACES,
    SHOES,
    UNITS,
    VEHICLES,
    Scene,
    Subject,
    held_out,
)

WALKED = ("park", "city", "beach", "forest")  # places of shoes; vehicles drive everywhere but in the park


def places_of(subject: Subject) -> tuple[str, ...]:
    """Return where such an object is shown."""
    return WALKED if subject.walks else PLACES[:-1]


def patterns_of(kind: str) -> tuple[str, ...]:
    """Return the patterns of such objects: a bike's body is too thin to show one."""
    return PATTERNS[:1] if kind == "bike" else PATTERNS


def sample_subject(rng: np.random.Generator) -> Subject:
    """Return a random object, shoes in one of four; its accent differs from its colour. Bikes are plain."""
    kind, color = str(rng.choice(SHOES if rng.random() < 0.25 else VEHICLES)), str(rng.choice(COLORS))
    accent = str(rng.choice([c for c in COLORS if c != color]))
    pattern = str(rng.choice(PATTERNS, p=(0.34, 0.22, 0.22, 0.22)))
    return Subject(kind, color, pattern if pattern in patterns_of(kind) else "plain", accent)


def sample_yaw(rng: np.random.Generator) -> float:
    """Return a yaw in degrees: in half of all cases near a side view, as clips are usually taken, else any."""
    if rng.random() < 0.5:
        return float(rng.choice((0.0, 180.0)) + rng.uniform(-25, 25)) % 360
    return float(rng.uniform(0, 360))


def layout_of(rng: np.random.Generator, yaw: float, turn: float) -> str:
    """Return a road on which an object with this yaw and turn (degrees, degrees a frame) can move."""
    if turn or rng.random() < 0.2:
        return "square"
    return LAYOUTS[0 if abs(np.cos(np.radians(yaw))) > 0.6 else 1]


def centred(scene: Scene, x: float) -> Scene:
    """Return ``scene`` moved so that halfway its object is at ``x`` units of the picture and at the distance ``z``."""
    middle = (scene.frames - 1) // 2
    at, distance = scene.path(middle)
    aside = (x - UNITS / 2 - scene.shift(middle)[0]) * scene.z / scene.lens
    return replace(scene, z=2 * scene.z - distance, x=scene.x + aside - at)


def sample_scene(rng: np.random.Generator, frames: int = 8, *, unseen: bool = False) -> Scene:
    """Return a random scene for training or, if ``unseen``, with a held-out seed and combination at every frame."""
    while True:
        subject, hour = sample_subject(rng), str(rng.choice(HOURS, p=(0.4, 0.2, 0.2, 0.2)))
        place, yaw = str(rng.choice(places_of(subject))), sample_yaw(rng)
        turn = float(rng.uniform(-14, 14)) if rng.random() < 0.25 else 0.0
        yaws = [yaw + turn * i for i in range(frames)]
        if all(held_out(subject, place, hour, each) == unseen for each in yaws):
            break
    scale = float(rng.uniform(0.8, 1.35))
    scene = Scene(
        subject,
        place,
        seed=int(rng.integers(FIRST_HELD_OUT_SEED)) + unseen * FIRST_HELD_OUT_SEED,
        hour=hour,
        sun=float(rng.uniform(0, 360)),
        z=90 / scale,
        yaw=yaw,
        speed=float(rng.uniform(1.5, 3.8)) if subject.walks else float(rng.uniform(0.5, 3.5)),
        turn=turn,
        bob=float(rng.uniform(0.1, 0.4)) if not subject.walks and rng.random() < 0.2 else 0.0,
        step=float(rng.random()) if subject.walks else 0.0,
        pan=float(rng.uniform(-2.5, 2.5)) if rng.random() < 0.3 else 0.0,
        tilt=float(rng.uniform(-0.7, 0.7)) if rng.random() < 0.2 else 0.0,
        eye=float(rng.uniform(11, 15.5)),
        layout=layout_of(rng, yaw, turn),
        occluder=str(rng.choice(OCCLUDERS)) if rng.random() < 0.08 else None,
        occluder_x=float(rng.uniform(8, 56)),
        frames=frames,
    )
    return centred(scene, float(rng.uniform(14, 50)))


# ---- photographs -----------------------------------------------------------------------------------------------------


def photograph(
    subject: Subject,
    place: str,
    seed: int,
    *,
    yaw: float,
    hour: str = "noon",
    sun: float = 240.0,
    crop: float = 0.0,
    lens: float = 220.0,
) -> Scene:
    """Return the scene of a target image: the object large and at rest, by a longer lens than a clip's.

    crop: share of the object's width that lies outside of the picture, on the right (negative: on the left).
    """
    scene = Scene(
        subject, place, seed, hour=hour, sun=sun, yaw=yaw, z=lens, lens=lens, horizon=34.0, eye=12.0, layout="square",
        step=0.12, frames=1,
    )  # fmt: skip
    for _ in range(4):  # the size in the picture isn't quite linear in the distance
        x0, y0, x1, y1 = outline_box(scene, 0)
        larger = min(52 / (x1 - x0), 34 / (y1 - y0))
        scene = replace(scene, z=scene.z / larger)
    x0, y0, x1, y1 = outline_box(scene, 0)
    aside = (x1 - x0) * crop + float(np.sign(crop)) * (UNITS - (x1 - x0)) / 2
    moved = replace(scene, x=scene.x + (UNITS / 2 - (x0 + x1) / 2 + aside) * scene.z / lens)
    return replace(moved, horizon=moved.horizon + 58.0 - y1)


def sample_photograph(rng: np.random.Generator, subject: Subject) -> Scene:
    """Return a random photograph of ``subject`` whose combination is not held out, for training."""
    while True:
        place, hour = str(rng.choice(places_of(subject))), str(rng.choice(HOURS, p=(0.5, 0.17, 0.16, 0.17)))
        yaw = float(rng.uniform(0, 360))
        if not held_out(subject, place, hour, yaw):
            break
    crop = float(rng.choice((-1, 1)) * rng.uniform(0.05, 0.25)) if rng.random() < 0.15 else 0.0
    seed = int(rng.integers(FIRST_HELD_OUT_SEED))
    return photograph(subject, place, seed, yaw=yaw, hour=hour, sun=float(rng.uniform(0, 360)), crop=crop)
