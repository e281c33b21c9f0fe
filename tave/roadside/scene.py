"""Scenes of the drawn world: vehicles, places and motion, their captions, and the combinations held out of training.

Lengths are in units of 1/64 of the frame's width, so that a scene can be drawn at any size; y grows downwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

VEHICLES = ("car", "suv", "bus", "truck", "van", "bike")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple")
PATTERNS = ("plain", "striped", "dotted", "two-tone")
PLACES = ("mountain", "desert", "city", "forest", "beach")
OCCLUDERS = ("lamp", "tree")
UNITS = 64.0

# Length and height of each vehicle at scale 1, in units; they differ widely, so that edits change size and shape.
SIZES = {
    "car": (20.0, 7.6),
    "suv": (21.0, 11.0),
    "bus": (32.0, 15.0),
    "truck": (33.0, 14.0),
    "van": (24.0, 12.0),
    "bike": (15.0, 9.0),
}
_ROADS = {
    "mountain": "on a mountain road",
    "desert": "on a desert road",
    "city": "on a city street",
    "forest": "on a forest road",
    "beach": "on a beach road",
}


@dataclass(frozen=True)
class Vehicle:
    """The appearance of a vehicle. ``accent`` is the pattern's second colour; a plain vehicle doesn't show it."""

    kind: str
    color: str
    pattern: str = "plain"
    accent: str = "white"


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows. Positions are those of frame 0 and change linearly."""

    vehicle: Vehicle
    place: str
    seed: int  # of the skyline
    heading: int = 1  # 1: right, -1: left
    x: float = 32.0  # centre of the vehicle
    speed: float = 0.0  # in the picture, units per frame
    ground: float = 54.0  # y of the wheels' bottom
    scale: float = 1.0
    zoom: float = 0.0  # change of scale per frame
    bob: float = 0.0  # amplitude of the vertical bounce
    pan: float = 0.0  # of the camera, units per frame; far layers move less
    occluder: str | None = None
    occluder_x: float = 40.0
    frames: int = 8

    def pose(self, frame: int) -> tuple[float, float, float]:
        """Return centre x, ground y and scale of the vehicle in ``frame``."""
        bounce = self.bob * float(np.sin(1.7 * frame))
        return self.x + self.speed * frame, self.ground + bounce, self.scale + self.zoom * frame


def caption(vehicle: Vehicle, heading: int = 1, place: str | None = None, *, pattern: bool = False) -> str:
    """Return ``a red suv``; with ``place`` also where it drives, with ``pattern`` also its pattern."""
    name = f"{vehicle.color} {vehicle.kind}"
    if pattern and vehicle.pattern == "plain":
        name = f"plain {name}"
    elif pattern:
        name = f"{vehicle.color} and {vehicle.accent} {vehicle.pattern} {vehicle.kind}"
    article = "an" if name[0] in "aeiou" else "a"
    if place is None:
        return f"{article} {name}"
    return f"{article} {name} driving {'right' if heading > 0 else 'left'} {_ROADS[place]}"


def vocabulary() -> list[str]:
    """Return every word of the captions, in a fixed order."""
    words = ["a", "an", "and", "plain", "driving", "left", "right", "on", "road", "street", "with", "image", "of"]
    return [*words, *VEHICLES, *COLORS, *PLACES, *PATTERNS[1:]]


# ---- hold-out --------------------------------------------------------------------------------------------------------

# Training scenes use skyline seeds below this; named, study and benchmark cases use seeds above it.
FIRST_HELD_OUT_SEED = 1_000_000

# (vehicle, colour, pattern, place) of the named clips, sources and targets; a test compares them with cases.py.
NAMED_COMBINATIONS = frozenset(
    {
        ("bus", "white", "plain", "mountain"),
        ("suv", "red", "plain", "mountain"),
        ("car", "blue", "plain", "forest"),
        ("truck", "orange", "plain", "forest"),
        ("van", "white", "plain", "beach"),
        ("van", "green", "striped", "beach"),
        ("suv", "black", "plain", "city"),
        ("bus", "yellow", "plain", "city"),
        ("truck", "red", "plain", "desert"),
        ("car", "purple", "plain", "desert"),
        ("car", "yellow", "plain", "mountain"),
        ("van", "blue", "plain", "mountain"),
        ("bus", "green", "plain", "forest"),
        ("bus", "blue", "dotted", "forest"),
        ("van", "orange", "plain", "city"),
        ("suv", "white", "two-tone", "city"),
    }
)


def held_out(vehicle: Vehicle, place: str) -> bool:
    """Whether the combination is never used in training: those of the named clips and one in ten others."""
    combination = (vehicle.kind, vehicle.color, vehicle.pattern, place)
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return combination in NAMED_COMBINATIONS or digest[0] < 26


# ---- random scenes ---------------------------------------------------------------------------------------------------


def sample_vehicle(rng: np.random.Generator) -> Vehicle:
    """Return a random vehicle; its accent differs from its colour."""
    color = str(rng.choice(COLORS))
    accent = str(rng.choice([c for c in COLORS if c != color]))
    pattern = str(rng.choice(PATTERNS, p=(0.34, 0.22, 0.22, 0.22)))
    return Vehicle(str(rng.choice(VEHICLES)), color, pattern, accent)


def sample_scene(rng: np.random.Generator, frames: int = 8, *, unseen: bool = False) -> Scene:
    """Return a random scene for training or, if ``unseen``, one with held-out combination and seed."""
    while True:
        vehicle, place = sample_vehicle(rng), str(rng.choice(PLACES))
        if held_out(vehicle, place) == unseen:
            break
    heading = int(rng.choice((-1, 1)))
    speed = heading * float(rng.uniform(0.5, 3.5))
    scale = float(rng.uniform(0.8, 1.3))
    reach = min(26.0, SIZES[vehicle.kind][0] * scale / 2)
    middle = float(rng.uniform(reach - 6, UNITS - reach + 6))
    return Scene(
        vehicle,
        place,
        seed=int(rng.integers(FIRST_HELD_OUT_SEED)) + unseen * FIRST_HELD_OUT_SEED,
        heading=heading,
        x=middle - speed * (frames - 1) / 2,
        speed=speed,
        ground=float(rng.uniform(50.5, 57.0)),
        scale=scale,
        zoom=float(rng.uniform(-0.02, 0.02)) if rng.random() < 0.4 else 0.0,
        bob=float(rng.uniform(0.2, 0.6)) if rng.random() < 0.3 else 0.0,
        pan=float(rng.uniform(-3, 3)) if rng.random() < 0.35 else 0.0,
        occluder=str(rng.choice(OCCLUDERS)) if rng.random() < 0.08 else None,
        occluder_x=float(rng.uniform(8, 56)),
        frames=frames,
    )


def portrait(vehicle: Vehicle, place: str, seed: int, heading: int = 1) -> Scene:
    """Return the scene of a target image: the vehicle large and at rest in ``place``."""
    length, height = SIZES[vehicle.kind]
    scale = min(50.0 / length, 30.0 / height)
    return Scene(vehicle, place, seed, heading=heading, ground=55.0, scale=scale, frames=1)
