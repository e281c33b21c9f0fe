"""The drawn world as data: what a frame shows, what it is called, and what training never sees.

Lengths are in units of 1/64 of the frame's width, so one scene can be drawn at any size; y grows downwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

VEHICLES = ("car", "suv", "bus", "truck", "van", "bike")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple")
PATTERNS = ("plain", "striped", "dotted", "two-tone")
PLACES = ("mountain", "desert", "city", "forest", "beach")
OCCLUDERS = ("lamp", "tree")
UNITS = 64.0

# Length and height of each vehicle at scale 1, in units. The spread is the point: edits must change size and shape.
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
_TWO_COLORED = {"striped": "striped", "dotted": "dotted", "two-tone": "two-tone"}


@dataclass(frozen=True)
class Vehicle:
    """A vehicle's looks; ``accent`` is the pattern's second colour and is not seen on a plain one."""

    kind: str
    color: str
    pattern: str = "plain"
    accent: str = "white"


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows. Positions are those of frame 0; per-frame values are linear in the frame."""

    vehicle: Vehicle
    place: str
    seed: int  # draws the skyline, nothing else
    heading: int = 1  # 1 drives right, -1 left
    x: float = 32.0  # centre of the vehicle
    speed: float = 0.0  # units a frame on the screen, signed
    ground: float = 54.0  # the wheels' line
    scale: float = 1.0
    zoom: float = 0.0  # scale gained a frame
    bob: float = 0.0  # amplitude of the vertical bounce
    pan: float = 0.0  # camera, units a frame; far layers move less
    occluder: str | None = None
    occluder_x: float = 40.0
    frames: int = 8

    def pose(self, frame: int) -> tuple[float, float, float]:
        """Centre x, ground y and scale of the vehicle at ``frame``."""
        bounce = self.bob * float(np.sin(1.7 * frame))
        return self.x + self.speed * frame, self.ground + bounce, self.scale + self.zoom * frame


def with_vehicle(scene: Scene, vehicle: Vehicle) -> Scene:
    """The same drive with another vehicle: same ground line, centre, heading, scale track and occluder."""
    return replace(scene, vehicle=vehicle)


def caption(vehicle: Vehicle, heading: int = 1, place: str | None = None, *, pattern: bool = False) -> str:
    """``a red suv``; with ``place`` also where it drives; with ``pattern`` also what only long captions name."""
    name = f"{vehicle.color} {vehicle.kind}"
    if pattern and vehicle.pattern == "plain":
        name = f"plain {name}"
    elif pattern:
        name = f"{vehicle.color} and {vehicle.accent} {_TWO_COLORED[vehicle.pattern]} {vehicle.kind}"
    article = "an" if name[0] in "aeiou" else "a"
    if place is None:
        return f"{article} {name}"
    return f"{article} {name} driving {'right' if heading > 0 else 'left'} {_ROADS[place]}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    words = ["a", "an", "and", "plain", "driving", "left", "right", "on", "road", "street", "with", "image", "of"]
    return [*words, *VEHICLES, *COLORS, *PLACES, "striped", "dotted", "two-tone"]


# --- hold-out ---------------------------------------------------------------------------------------------------

# Scenes of training draw their skyline from seeds below this line, benchmark and named clips from above it.
FIRST_HELD_OUT_SEED = 1_000_000

# (vehicle, colour, pattern, place) of the named clips, sources and targets alike; the tests compare with cases.py.
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
    """Whether this (vehicle, colour, pattern, place) is kept from training: the named ones and one in ten others."""
    combination = (vehicle.kind, vehicle.color, vehicle.pattern, place)
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return combination in NAMED_COMBINATIONS or digest[0] < 26


# --- drawing lots -----------------------------------------------------------------------------------------------


def sample_vehicle(rng: np.random.Generator) -> Vehicle:
    """A vehicle with uniform kind, colour and pattern, and an accent that differs from the colour."""
    color = str(rng.choice(COLORS))
    accent = str(rng.choice([c for c in COLORS if c != color]))
    pattern = str(rng.choice(PATTERNS, p=(0.34, 0.22, 0.22, 0.22)))
    return Vehicle(str(rng.choice(VEHICLES)), color, pattern, accent)


def sample_scene(rng: np.random.Generator, frames: int = 8, *, examining: bool = False) -> Scene:
    """A training scene: never a held-out combination, never a held-out seed. ``examining``: always both."""
    while True:
        vehicle, place = sample_vehicle(rng), str(rng.choice(PLACES))
        if held_out(vehicle, place) == examining:
            break
    heading = int(rng.choice((-1, 1)))
    speed = heading * float(rng.uniform(0.5, 3.5))
    scale = float(rng.uniform(0.8, 1.3))
    reach = min(26.0, SIZES[vehicle.kind][0] * scale / 2)
    middle = float(rng.uniform(reach - 6, UNITS - reach + 6))
    return Scene(
        vehicle,
        place,
        seed=int(rng.integers(FIRST_HELD_OUT_SEED)) + examining * FIRST_HELD_OUT_SEED,
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
    """The target image's scene: the object alone and large, standing in ``place``."""
    length, height = SIZES[vehicle.kind]
    scale = min(50.0 / length, 30.0 / height)
    return Scene(vehicle, place, seed, heading=heading, ground=55.0, scale=scale, frames=1)
