"""The solids of the drawn world: vehicles and shoes as flat coloured polygons in space.

An object faces along +x, y points up from the ground it stands on, w across to its far side when it faces right.
Lengths are in units of 1/64 of the frame's width at scale 1. A solid is convex, so that its visible faces don't hide
each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import pi

import numpy as np

from tave.roadside.scene import Subject

RGB = {
    "red": (206, 34, 38),
    "blue": (42, 84, 204),
    "green": (38, 148, 66),
    "yellow": (242, 204, 36),
    "white": (240, 240, 240),
    "black": (44, 44, 50),
    "orange": (246, 134, 28),
    "purple": (134, 54, 172),
    "gray": (136, 138, 142),
}
GLASS, TYRE, HUB, SOLE, SKIN = (150, 190, 214), (30, 30, 32), (176, 176, 180), (226, 222, 212), (218, 168, 136)
HEADLAMP, REAR_LAMP = (255, 244, 190), (224, 36, 30)

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Patch:
    """A convex polygon of one colour, ``glows``: a lamp that is lit in the dark; its corners are ``first:last`` of the
    shape's."""

    first: int
    last: int
    color: Color
    glows: bool = False


@dataclass(frozen=True)
class Face:
    """A plane part of a surface: its number in the shape, outward unit normal ``3`` and patches, its outline first."""

    number: int
    normal: np.ndarray
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Solid:
    """A convex body: its faces that can be seen, and all its corners ``n 3``."""

    faces: tuple[Face, ...]
    corners: np.ndarray


@dataclass(frozen=True)
class Wheel:
    """A wheel on each side, or a ``single`` one in the middle: place along the vehicle, radius, and the distances of
    its outer face from the vehicle's middle and from its inner face."""

    x: float
    radius: float
    outside: float
    thickness: float = 1.8
    single: bool = False


@dataclass(frozen=True)
class Dividers:
    """Lines in the plane of x and y that separate the profiles of an object's parts, by pairs.

    pairs: numbers of the parts, ``k`` times two; the second lies in front of the line, where ``normals @ (x, y)``
    exceeds ``offsets`` (``k 2`` and ``k``).
    """

    pairs: tuple[tuple[int, int], ...]
    normals: np.ndarray
    offsets: np.ndarray

    def order(self, parts: int, eye: np.ndarray) -> list[int]:
        """Return the numbers of all ``parts``, what may be hidden before what hides it, seen from ``eye`` (x, y)."""
        under: list[set[int]] = [set() for _ in range(parts)]  # what is to be painted before each part
        for (one, other), front in zip(self.pairs, self.normals @ eye > self.offsets, strict=True):
            under[other if front else one].add(one if front else other)
        found, waiting = [], list(range(parts))
        while waiting:
            free = (part for part in waiting if under[part].isdisjoint(waiting))
            found.append(next(free, waiting[0]))
            waiting.remove(found[-1])
        return found


@dataclass(frozen=True)
class Shape:
    """An object: the corners ``n 3`` of all patches, solids, wheels, and the height at which a leg enters (0: none).

    dividers: of its solids, which are numbered first, and its single wheels.
    """

    corners: np.ndarray
    solids: tuple[Solid, ...]
    dividers: Dividers
    wheels: tuple[Wheel, ...] = ()
    collar: float = 0.0

    @property
    def faces(self) -> list[Face]:
        """All faces of the solids, by their numbers."""
        return [face for solid in self.solids for face in solid.faces]

    @property
    def single_wheels(self) -> list[Wheel]:
        return [wheel for wheel in self.wheels if wheel.single]


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Body:
    """A convex side profile swept from -width to +width. Decals: (edge, u0, u1, v0, v1, colour), u along the edge.

    rests: it stands on another body, so that its underside, the profile's last edge, can't be seen. The profiles of an
    object's bodies and single wheels don't overlap.
    """

    profile: tuple[Point, ...]
    width: float
    rests: bool = False
    windows: tuple[tuple[Point, ...], ...] = ()  # on both sides
    decals: tuple[tuple[int, float, float, float, float, Color], ...] = ()
    color: Color | None = None  # of its own; else the object's colour and pattern


def _lamps(edge: int, color: Color, low: float, high: float, inset: float = 0.08) -> tuple:
    return (
        (edge, low, high, inset, inset + 0.2, color),
        (edge, low, high, 0.8 - inset, 1 - inset, color),
    )


def _row(x0: float, step: float, count: int, low: float, high: float, wide: float) -> tuple[tuple[Point, ...], ...]:
    edges = [x0 + step * i for i in range(count)]
    return tuple(((x, low), (x, high), (x + wide, high), (x + wide, low)) for x in edges)


# Profiles run clockwise as seen with the object facing right: from the rear's foot up, along the top, down the front.
_BODIES: dict[str, tuple[_Body, ...]] = {
    "car": (
        _Body(((-10, 1.4), (-10, 3.9), (-9.2, 4.8), (5.5, 4.9), (9.2, 4.2), (10, 3.2), (10, 1.4)), 4.2,
              decals=(*_lamps(0, REAR_LAMP, 0.4, 0.95), *_lamps(5, HEADLAMP, 0.1, 0.65))),
        _Body(((-7.4, 4.8), (-4.8, 7.6), (2.4, 7.6), (5.5, 4.9)), 3.6, rests=True,
              windows=(((-6.2, 5.0), (-4.4, 7.0), (-1.4, 7.0), (-1.4, 5.0)),
                       ((-0.7, 5.0), (-0.7, 7.0), (2.0, 7.0), (4.3, 5.0))),
              decals=((0, 0.12, 0.9, 0.1, 0.9, GLASS), (2, 0.1, 0.88, 0.1, 0.9, GLASS))),
    ),
    "suv": (
        _Body(((-10.5, 1.9), (-10.5, 6.6), (8.8, 6.6), (10.5, 5.6), (10.5, 1.9)), 4.8,
              decals=(*_lamps(0, REAR_LAMP, 0.55, 0.9, 0.04), *_lamps(3, HEADLAMP, 0.1, 0.45))),
        _Body(((-10.4, 6.6), (-9.6, 11), (3.6, 11), (6.4, 6.6)), 4.4, rests=True,
              windows=(((-9.2, 7.0), (-8.7, 10.1), (-4.6, 10.1), (-4.6, 7.0)),
                       ((-3.8, 7.0), (-3.8, 10.1), (-0.2, 10.1), (-0.2, 7.0)),
                       ((0.6, 7.0), (0.6, 10.1), (3.2, 10.1), (5.1, 7.0))),
              decals=((0, 0.15, 0.85, 0.1, 0.9, GLASS), (2, 0.15, 0.88, 0.08, 0.92, GLASS))),
    ),
    "bus": (
        _Body(((-16, 1.9), (-16, 14), (-15.2, 15), (15, 15), (15.8, 14), (16, 9), (16, 1.9)), 5.6,
              windows=(*_row(-14.4, 4.5, 6, 8.6, 13.2, 3.6), ((12.8, 7), (12.8, 13.2), (15.2, 13.2), (15.4, 7))),
              decals=((0, 0.55, 0.95, 0.15, 0.85, GLASS), *_lamps(0, REAR_LAMP, 0.12, 0.3),
                      (4, 0.05, 1.0, 0.07, 0.93, GLASS), *_lamps(5, HEADLAMP, 0.6, 0.85))),
    ),
    "truck": (
        _Body(((-16, 1.9), (-16, 3), (7.4, 3), (7.4, 1.9)), 4.6, color=(64, 64, 70)),
        _Body(((-16.5, 3), (-16.5, 14), (6.4, 14), (6.4, 3)), 5.4, rests=True,
              decals=_lamps(0, REAR_LAMP, 0.02, 0.12)),
        _Body(((7.4, 1.9), (7.4, 11.4), (12.6, 11.4), (16, 6.6), (16.5, 5.6), (16.5, 1.9)), 5.0, rests=True,
              windows=(((9.4, 7.0), (9.4, 10.4), (12.2, 10.4), (14.4, 7.0)),),
              decals=((2, 0.1, 0.92, 0.08, 0.92, GLASS), *_lamps(4, HEADLAMP, 0.15, 0.45))),
    ),
    "van": (
        _Body(((-12, 1.7), (-12, 11.4), (-11.2, 12), (4.4, 12), (9, 7.4), (9, 1.7)), 4.8,
              windows=(((2.4, 7.6), (2.4, 10.9), (4.0, 10.9), (7.4, 7.6)),),
              decals=((0, 0.55, 0.92, 0.12, 0.88, GLASS), *_lamps(0, REAR_LAMP, 0.15, 0.35),
                      (3, 0.1, 0.9, 0.08, 0.92, GLASS))),
        _Body(((9, 1.7), (9, 7.3), (11.6, 6.3), (12, 5.2), (12, 1.7)), 4.7,
              decals=_lamps(3, HEADLAMP, 0.1, 0.45)),
    ),
    "bike": (
        # between the wheels and above them: no body reaches into a wheel, so that there is an order of painting
        _Body(((-1.4, 2.2), (-3.0, 5.8), (3.0, 5.8), (1.4, 2.2)), 1.3),
        _Body(((-7.2, 5.9), (-6.4, 7.4), (-1.6, 6.8), (-1.6, 5.8)), 1.1, rests=True, color=(52, 48, 50)),
        _Body(((-1.6, 5.8), (-1.2, 7.2), (2.6, 8.0), (3.6, 5.8)), 1.4, rests=True),
        _Body(((3.2, 7.4), (3.6, 9.0), (5.0, 8.6), (5.6, 6.8)), 2.4, rests=True,
              decals=((2, 0.2, 0.9, 0.3, 0.7, HEADLAMP),)),
    ),
    "sneaker": (
        _Body(((-10, 0), (-10, 1.8), (10.4, 1.8), (11.4, 1.2), (10.6, 0)), 3.8, color=SOLE),
        _Body(((-9.8, 1.8), (-9.4, 4.6), (4.0, 5.0), (8.6, 4.0), (10.6, 2.6), (10.6, 1.8)), 3.5, rests=True),
        _Body(((-9.4, 4.6), (-9.0, 8.6), (-2.6, 8.0), (3.6, 5.0)), 3.1, rests=True,
              decals=((2, 0.1, 0.85, 0.28, 0.72, SOLE),)),
    ),
    "boot": (
        _Body(((-10, 0), (-10, 1.6), (10.4, 1.6), (11, 0)), 4.0, color=(70, 52, 40)),
        _Body(((-9.8, 1.6), (-9.4, 6.0), (3.0, 6.0), (8.6, 5.0), (10.6, 3.2), (10.8, 1.6)), 3.7, rests=True),
        _Body(((-9.4, 6.0), (-9.2, 16.0), (-1.2, 16.0), (0.6, 6.0)), 3.5, rests=True),
    ),
    "sandal": (
        _Body(((-10, 0), (-10, 1.5), (11, 1.5), (11.2, 0)), 3.8),
        _Body(((-9.4, 1.5), (-9.3, 5.4), (-5.6, 5.4), (-4.0, 1.5)), 3.2, rests=True),
        _Body(((-4.0, 1.5), (-5.2, 4.4), (-1, 4.4), (1.75, 4.0), (1.6, 1.5)), 2.9, rests=True, color=SKIN),
        _Body(((1.6, 1.5), (1.8, 4.6), (6.4, 3.9), (6.8, 1.5)), 3.3, rests=True),
        _Body(((6.8, 1.5), (6.5, 3.3), (9.6, 2.8), (10.2, 1.5)), 2.9, rests=True, color=SKIN),
    ),
}  # fmt: skip
_WHEELS: dict[str, tuple[Wheel, ...]] = {
    "car": (Wheel(-6, 2.1, 4.3), Wheel(6, 2.1, 4.3)),
    "suv": (Wheel(-6.4, 2.6, 4.9), Wheel(6.4, 2.6, 4.9)),
    "bus": (Wheel(-9.5, 2.7, 5.7), Wheel(10, 2.7, 5.7)),
    "truck": (Wheel(-12.6, 2.6, 5.5), Wheel(-7, 2.6, 5.5), Wheel(11.6, 2.6, 5.2)),
    "van": (Wheel(-7.2, 2.5, 4.9), Wheel(7.0, 2.5, 4.9)),
    "bike": (Wheel(-4.9, 2.9, 0.7, 1.4, single=True), Wheel(4.9, 2.9, 0.7, 1.4, single=True)),
}
_WAISTS = {"boot": 5.0, "sandal": 1.1}  # height of a two-tone object's accent colour; of others a share of their height
_COLLARS = {"sneaker": 8.3, "boot": 16.0, "sandal": 5.3}
# Length and height at scale 1; they differ widely, so that edits change size and shape.
SIZES = {
    kind: (
        max(x for body in bodies for x, _ in body.profile) - min(x for body in bodies for x, _ in body.profile),
        max(y for body in bodies for _, y in body.profile),
    )
    for kind, bodies in _BODIES.items()
}
# Periods of the patterns, width of a stripe and radius of a dot; the autoencoder can resolve them. Most of a face keeps
# the body's colour: at equal shares nobody could say which of the two colours is the object's.
_STRIPE, _BAND, _DOT, _RADIUS = 4.8, 1.7, 3.6, 1.05


# ---- building --------------------------------------------------------------------------------------------------------


def clip_convex(polygon: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return the part of a convex ``polygon`` ``n 2`` inside a convex ``region`` ``m 2``; it may be empty."""
    turn = 1.0 if _area(region) > 0 else -1.0
    for start, end in zip(region, np.roll(region, -1, axis=0), strict=True):
        if len(polygon) == 0:
            break
        edge = (end - start) * turn
        inside = edge[0] * (polygon[:, 1] - start[1]) - edge[1] * (polygon[:, 0] - start[0])
        kept: list[np.ndarray] = []
        for i, here in enumerate(inside):
            before = inside[i - 1]
            if (here >= 0) != (before >= 0):
                kept.append(polygon[i - 1] + (polygon[i] - polygon[i - 1]) * (before / (before - here)))
            if here >= 0:
                kept.append(polygon[i])
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def _pattern(subject: Subject, outline: np.ndarray, waist: float, *, upright: bool) -> Iterator[np.ndarray]:
    """Yield the polygons ``n 2`` in the accent colour on a face with ``outline`` ``n 2``.

    waist: height up to which a two-tone object has its accent colour; upright: the face's second axis is the height.
    """
    low, high = outline.min(0), outline.max(0)
    if subject.pattern == "two-tone" and upright:
        yield np.array([(low[0], low[1]), (high[0], low[1]), (high[0], waist), (low[0], waist)])
    elif subject.pattern == "striped":
        for left in np.arange(_STRIPE * np.floor(low[0] / _STRIPE), high[0], _STRIPE):
            right = left + _BAND
            yield np.array([(left, low[1]), (right, low[1]), (right, high[1]), (left, high[1])])
    elif subject.pattern == "dotted":
        disc = circle(10, _RADIUS)
        rise = 0.75 * _DOT
        for row in range(int(np.floor((low[1] - 1.4) / rise)), int(np.ceil((high[1] - 1.4) / rise)) + 1):
            shift = (row % 2) * _DOT / 2
            for column in range(int(np.floor((low[0] - shift) / _DOT)), int(np.ceil((high[0] - shift) / _DOT)) + 1):
                yield disc + np.array([column * _DOT + shift, 1.4 + row * rise])


@dataclass(frozen=True)
class _Plane:
    """An outline ``n 2`` in a face's own coordinates, and the affine map to space: ``base + a * across + b * up``."""

    outline: np.ndarray
    base: np.ndarray
    across: np.ndarray
    up: np.ndarray
    upright: bool

    def place(self, points: np.ndarray) -> np.ndarray:
        return self.base + points[:, :1] * self.across + points[:, 1:] * self.up


def _sides(body: _Body) -> list[tuple[np.ndarray, _Plane]]:
    across, up = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    outline = np.array(body.profile, float)
    return [
        (np.array([0, 0, side]), _Plane(outline, np.array([0, 0, side * body.width]), across, up, True))
        for side in (-1.0, 1.0)
    ]


def _rims(body: _Body) -> list[tuple[np.ndarray, _Plane]]:
    """Return the faces that the profile's edges sweep, in the profile's order."""
    found, count = [], len(body.profile)
    for i, (x0, y0) in enumerate(body.profile):
        x1, y1 = body.profile[(i + 1) % count]
        dx, dy = x1 - x0, y1 - y0
        normal = np.array([-dy, dx, 0.0]) / np.hypot(dx, dy)
        w = body.width
        if abs(dx) > abs(dy):  # lies: first axis along the object, second across it
            slope = dy / dx
            base, across, up = np.array([0, y0 - slope * x0, 0]), np.array([1, slope, 0]), np.array([0, 0, 1.0])
            outline = np.array([(x0, -w), (x1, -w), (x1, w), (x0, w)])
        else:  # stands: first axis across the object, second its height
            slope = dx / dy
            base, across, up = np.array([x0 - slope * y0, 0, 0]), np.array([0, 0, 1.0]), np.array([slope, 1, 0])
            outline = np.array([(-w, y0), (-w, y1), (w, y1), (w, y0)])
        found.append((normal, _Plane(outline, base, across, up, abs(dx) <= abs(dy))))
    return found


def _faces(body: _Body, subject: Subject, waist: float) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, Color]]]]:
    """Yield the normal ``3`` and the coloured polygons ``n 3`` of each face that can be seen, its outline first."""
    paint, accent = body.color or RGB[subject.color], RGB[subject.accent]
    sides, rims = _sides(body), _rims(body)
    if body.rests:
        rims.pop()
    for index, (normal, plane) in enumerate([*sides, *rims]):
        polygons = [(plane.place(plane.outline), paint)]
        if body.color is None:
            for polygon in _pattern(subject, plane.outline, waist, upright=plane.upright):
                if len(cut := clip_convex(polygon, plane.outline)) > 2:
                    polygons.append((plane.place(cut), accent))
        if index < len(sides):
            polygons += [(plane.place(np.array(window, float)), GLASS) for window in body.windows]
        for edge, u0, u1, v0, v1, color in body.decals:
            if index == len(sides) + edge:
                start, end = (np.array((*body.profile[(edge + k) % len(body.profile)], 0.0)) for k in (0, 1))
                corners = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
                points = [start + u * (end - start) + (0, 0, (2 * v - 1) * body.width) for u, v in corners]
                polygons.append((np.array(points), color))
        yield normal, polygons


@lru_cache(maxsize=512)
def shape_of(subject: Subject) -> Shape:
    """Return the object's polygons."""
    waist = _WAISTS.get(subject.kind, 0.45 * SIZES[subject.kind][1])
    corners: list[np.ndarray] = []
    solids, count, number = [], 0, 0
    for body in _BODIES[subject.kind]:
        faces = []
        for normal, polygons in _faces(body, subject, waist):
            patches = []
            for points, color in polygons:
                patches.append(Patch(count, count + len(points), color, color in (HEADLAMP, REAR_LAMP)))
                corners.append(points)
                count += len(points)
            faces.append(Face(number, normal, tuple(patches)))
            number += 1
        ends = np.array([(x, y, side * body.width) for side in (-1, 1) for x, y in body.profile])
        solids.append(Solid(tuple(faces), ends))
    wheels, collar = _WHEELS.get(subject.kind, ()), _COLLARS.get(subject.kind, 0.0)
    return Shape(np.concatenate(corners), tuple(solids), _dividers(subject.kind), wheels, collar)


@lru_cache
def _dividers(kind: str) -> Dividers:
    """Return for each pair of parts the edge of either profile that separates them best."""
    profiles = [np.array(body.profile, float) for body in _BODIES[kind]]
    for wheel in _WHEELS.get(kind, ()):
        if wheel.single:
            profiles.append(circle(18, wheel.radius)[::-1] + np.array([wheel.x, wheel.radius]))
    pairs, normals, offsets = [], [], []
    for pair in combinations(range(len(profiles)), 2):
        found = [(*_parting(profiles[one], profiles[other]), (one, other)) for one, other in (pair, pair[::-1])]
        _, normal, offset, parted = max(found, key=lambda each: each[0])
        pairs.append(parted)
        normals.append(normal)
        offsets.append(offset)
    return Dividers(tuple(pairs), np.array(normals).reshape(-1, 2), np.array(offsets))


def _parting(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Return the edge of the clockwise polygon ``one`` ``n 2`` beyond which ``other`` ``m 2`` lies farthest.

    Returns how far the nearest corner of ``other`` lies beyond it, and the line's outward unit normal ``2`` and offset.
    """
    along = np.roll(one, -1, axis=0) - one
    normals = np.column_stack([-along[:, 1], along[:, 0]]) / np.hypot(*along.T)[:, None]
    offsets = (normals * one).sum(1)
    beyond = (normals @ other.T).min(1) - offsets
    best = int(beyond.argmax())
    return float(beyond[best]), normals[best], float(offsets[best])


@lru_cache
def circle(count: int, radius: float = 1.0) -> np.ndarray:
    """Return the corners ``count 2`` of a regular polygon."""
    angles = np.linspace(0, 2 * pi, count + 1)[:-1]
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius
