"""Scene -> pixels: background, shadow, object and occluder as separate layers, each known exactly.

Shapes are drawn with hard edges at four times the size and box-filtered. Layers are premultiplied RGBA and the filter
is linear, so compositing the small layers equals filtering the large composite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, radians, sin

import cv2
import numpy as np

from tave.roadside.scene import GAIT, SIDES, UNITS, Placement, Scene, Subject
from tave.roadside.shapes import HUB, SKIN, TYRE, Color, Shape, Wheel, circle, shape_of

VERSION = 2  # of the pictures: with another number, those that were kept are drawn again
SUPERSAMPLE = 4
_BITS = 4  # fractional bits of a corner's position

Point = tuple[float, float]


# ---- light -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Light:
    """The light of an hour: gains of R, G, B from everywhere and from the sun, and the shadow that it casts.

    elevation in degrees; ``strength``: share of the light that a shadow takes; ``reach``: of a shadow in heights of
    the object; ``soft``: its blur in units; ``dark``: whether lamps and windows are lit.
    """

    ambient: tuple[float, float, float]
    direct: tuple[float, float, float]
    elevation: float
    strength: float
    reach: float
    soft: float
    dark: bool = False

    def direction(self, sun: float) -> tuple[float, float, float]:
        """Return the unit vector to the light, X Y Z."""
        across, up = cos(radians(self.elevation)), sin(radians(self.elevation))
        return across * cos(radians(sun)), up, across * sin(radians(sun))


LIGHTS = {
    "noon": Light((0.50, 0.52, 0.56), (0.66, 0.63, 0.58), 50, 0.42, 0.5, 0.5),
    "dusk": Light((0.38, 0.33, 0.42), (0.92, 0.56, 0.28), 22, 0.40, 1.5, 0.8, True),
    "night": Light((0.36, 0.39, 0.55), (0.18, 0.20, 0.27), 50, 0.34, 0.25, 1.2, True),
    "overcast": Light((0.68, 0.72, 0.78), (0.08, 0.08, 0.08), 70, 0.30, 0.12, 1.4),
}
_TINT = {  # of the light by place
    "mountain": (0.97, 1.0, 1.04),
    "desert": (1.08, 1.0, 0.9),
    "city": (1.0, 0.99, 0.98),
    "forest": (0.93, 1.02, 0.92),
    "beach": (1.04, 1.03, 1.02),
    "park": (0.98, 1.02, 0.96),
}


_UP = (0.0, 1.0, 0.0)


def _lit(color: Sequence[float], normal: Sequence[float] | np.ndarray, scene: Scene) -> tuple[int, int, int, int]:
    """Return the colour of a surface with this outward unit ``normal`` in the scene's light, opaque RGBA."""
    light = LIGHTS[scene.hour]
    x, y, z = light.direction(scene.sun)
    facing = max(0.0, normal[0] * x + normal[1] * y + normal[2] * z)
    parts = zip(color, light.ambient, light.direct, _TINT[scene.place], strict=True)
    r, g, b = (min(255, int(c * (ambient + direct * facing) * tint)) for c, ambient, direct, tint in parts)
    return r, g, b, 255


def _on_ground(color: Sequence[float], scene: Scene, factor: float = 1.0) -> Color:
    shade = _lit((color[0] * factor, color[1] * factor, color[2] * factor), _UP, scene)
    return shade[:3]


# ---- camera and canvas -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along Z; ``shift``: of the picture, in units, as it pans and tilts."""

    lens: float
    eye: float
    horizon: float
    shift: Point

    @classmethod
    def of(cls, scene: Scene, frame: int) -> Camera:
        # In steps of a quarter of a pixel at 96 px, so that the background moves by whole supersampled pixels.
        step = UNITS / (96 * SUPERSAMPLE)
        dx, dy = (round(shift / step) * step for shift in scene.shift(frame))
        return cls(scene.lens, scene.eye, scene.horizon, (dx, dy))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the picture positions ``n 2`` of world points ``n 3``, in units."""
        scale = self.lens / np.maximum(points[:, 2], 1.0)
        found = np.empty((len(points), 2))
        found[:, 0] = points[:, 0] * scale + (UNITS / 2 + self.shift[0])
        found[:, 1] = (self.eye - points[:, 1]) * scale + (self.horizon + self.shift[1])
        return found

    def sees(self, normal: np.ndarray, point: np.ndarray) -> bool:
        """Whether the camera is in front of the plane."""
        x, y, z = point
        return normal[1] * (self.eye - y) - normal[0] * x - normal[2] * z > 1e-6


class Canvas:
    """A picture of ``size`` px and ``margin`` px (x, y) around it, ``sharp`` times as fine, drawn on in units."""

    def __init__(
        self,
        size: int,
        margin: tuple[int, int] = (0, 0),
        channels: int = 4,
        sharp: int = SUPERSAMPLE,
        dtype: type = np.uint8,
    ):
        self.margin, self.unit, self.sharp = margin, size * sharp / UNITS, sharp
        high, wide = ((size + 2 * m) * sharp for m in (margin[1], margin[0]))
        self.pixels = np.zeros((high, wide, channels), dtype)

    def polygon(self, points: np.ndarray | Sequence[Point], color: Sequence[int]) -> None:
        """Fill a polygon ``n 2`` given in units."""
        self.fill(self.corners(np.asarray(points, float)), color)

    def corners(self, points: np.ndarray) -> np.ndarray:
        """Return positions ``n 2`` in units as those of :meth:`fill`."""
        shift = np.array(self.margin) * self.sharp - 0.5
        return np.rint((points * self.unit + shift) * (1 << _BITS)).astype(np.int32)

    def fill(self, corners: np.ndarray, color: Sequence[int]) -> None:
        """Fill a polygon given by :meth:`corners`."""
        cv2.fillPoly(self.pixels, [corners], color, shift=_BITS)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Sequence[int]) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def disc(self, x: float, y: float, radius: float, color: Sequence[int], squash: float = 1.0) -> None:
        self.polygon(circle(24, radius) * (1, squash) + np.array([x, y]), color)

    def small(self) -> np.ndarray:
        """Return the picture box-filtered to its size, ``H W c`` float32 in [0, 1]."""
        high, wide = (side // self.sharp for side in self.pixels.shape[:2])
        found = cv2.resize(self.pixels, (wide, high), interpolation=cv2.INTER_AREA)
        return found.reshape(high, wide, -1).astype(np.float32) / 255


def turned(placement: Placement) -> np.ndarray:
    """Return the rotation ``3 3`` from an object's axes (forward, up, to its far side) to the world's."""
    yaw, pitch = radians(placement.yaw), radians(placement.pitch)
    rise = np.array([[cos(pitch), -sin(pitch), 0], [sin(pitch), cos(pitch), 0], [0, 0, 1]])
    return np.array([[cos(yaw), 0, -sin(yaw)], [0, 1, 0], [sin(yaw), 0, cos(yaw)]]) @ rise


def placed(points: np.ndarray, placement: Placement, rotation: np.ndarray) -> np.ndarray:
    """Return points ``n 3`` of an object in the world."""
    return points @ rotation.T + (placement.x, placement.y, placement.z)


# ---- objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """An object as a camera sees it on a canvas; its own coordinates are forward, up, to its far side."""

    canvas: Canvas
    camera: Camera
    placement: Placement
    rotation: np.ndarray

    @classmethod
    def of(cls, canvas: Canvas, camera: Camera, placement: Placement) -> View:
        return cls(canvas, camera, placement, turned(placement))

    def world(self, points: np.ndarray) -> np.ndarray:
        """Return points ``n 3`` of the object in the world."""
        return placed(points, self.placement, self.rotation)

    def corners(self, points: np.ndarray) -> np.ndarray:
        """Return points ``n 3`` of the object as positions ``n 2`` of :meth:`Canvas.fill`."""
        return self.canvas.corners(self.camera.project(self.world(points)))


@dataclass(frozen=True)
class Surface:
    """A part of an object that the camera sees: its polygons, the first of which is its outline.

    face: its number in the shape, -1 for a part of a wheel; normal: outward unit normal ``3`` in the world; a patch is
    a polygon ``n 2`` of :meth:`Canvas.fill`, its colour and whether it is a lamp.
    """

    face: int
    normal: np.ndarray
    patches: list[tuple[np.ndarray, Color, bool]]


_TREAD = np.array([0.0, 0.3, 0.0])  # in place of a tyre's round normal: it gets little of the sun


def _ring(wheel: Wheel, across: float, radius: float, count: int = 18) -> np.ndarray:
    """Return the corners ``count 3`` of a circle about the wheel's axis, ``across`` from the vehicle's middle."""
    return np.column_stack([circle(count, radius) + np.array([wheel.x, wheel.radius]), np.full(count, across)])


@lru_cache
def _tyre(wheel: Wheel, side: float) -> np.ndarray:
    """Return the edges ``n 3`` of the tyre on the side -1 or 1."""
    rings = [_ring(wheel, side * across, wheel.radius) for across in (wheel.outside - wheel.thickness, wheel.outside)]
    return np.concatenate(rings)


@lru_cache
def _outer_face(wheel: Wheel, side: float) -> np.ndarray:
    """Return the corners ``n 3`` of the outer face of the wheel on the side -1 or 1: the tyre's, then the hub's."""
    across = side * wheel.outside
    return np.concatenate([_ring(wheel, across, wheel.radius), _ring(wheel, across, 0.5 * wheel.radius)])


def _tread(view: View, wheel: Wheel, side: float) -> Surface:
    outline = cv2.convexHull(view.corners(_tyre(wheel, side)))[:, 0]
    return Surface(-1, _TREAD, [(outline, TYRE, False)])


def _hubs(view: View, wheel: Wheel, side: float) -> Iterator[Surface]:
    """Yield the outer face of a wheel, if the camera sees it; a bar on the hub shows that the wheel turns."""
    normal, middle = view.rotation @ (0, 0, side), np.array([wheel.x, wheel.radius, side * wheel.outside])
    if not view.camera.sees(normal, view.world(middle[None])[0]):
        return
    angle = -view.placement.way / wheel.radius
    along, up = np.array([cos(angle), sin(angle), 0]), np.array([-sin(angle), cos(angle), 0])
    ends = [(-0.45, -0.12), (0.45, -0.12), (0.45, 0.12), (-0.45, 0.12)]
    bar = np.array([middle + (a * along + b * up) * wheel.radius for a, b in ends])
    rings = view.corners(_outer_face(wheel, side))
    half = len(rings) // 2
    yield Surface(
        -1, normal, [(rings[:half], TYRE, False), (rings[half:], HUB, False), (view.corners(bar), TYRE, False)]
    )


def surfaces(view: View, shape: Shape) -> Iterator[Surface]:
    """Yield what the camera sees of an object, in the order of painting.

    Wheels at the sides: tyres, of which the bodies hide the upper parts, come first, outer faces last. Between them
    come solids and single wheels, from what may be hidden to what hides it.
    """
    world = view.world(shape.corners)
    corners = view.canvas.corners(view.camera.project(world))
    wheels = [(wheel, side) for wheel in shape.wheels if not wheel.single for side in SIDES]
    for wheel, side in wheels:
        yield _tread(view, wheel, side)
    eye = view.rotation.T @ (-view.placement.x, view.camera.eye - view.placement.y, -view.placement.z)
    for number in shape.dividers.order(len(shape.solids) + len(shape.single_wheels), eye[:2]):
        if number >= len(shape.solids):
            wheel = shape.single_wheels[number - len(shape.solids)]
            yield _tread(view, wheel, 1.0)
            for side in SIDES:
                yield from _hubs(view, wheel, side)
            continue
        for face in shape.solids[number].faces:
            normal = view.rotation @ face.normal
            if view.camera.sees(normal, world[face.patches[0].first]):
                patches = [(corners[patch.first : patch.last], patch.color, patch.glows) for patch in face.patches]
                yield Surface(face.number, normal, patches)
    for wheel, side in wheels:
        yield from _hubs(view, wheel, side)


def _paint_shape(canvas: Canvas, shape: Shape, placement: Placement, scene: Scene, camera: Camera) -> None:
    dark = LIGHTS[scene.hour].dark
    for surface in surfaces(View.of(canvas, camera, placement), shape):
        lit = {color: _lit(color, surface.normal, scene) for color in {color for _, color, _ in surface.patches}}
        for corners, color, glows in surface.patches:
            canvas.fill(corners, (*color, 255) if dark and glows else lit[color])


# ---- legs ------------------------------------------------------------------------------------------------------------

_TROUSERS = ((58, 70, 104), (64, 62, 66), (140, 124, 96), (92, 96, 84))
_HEEL, _ANKLE, _HEM, _CALF = -6.2, 2.0, 10.5, 13.0  # of a leg on a shoe: its place along it, and heights
_HIP = 62.0  # height, above the upper edge of the frame


def leg(
    scene: Scene, frame: int, number: int, camera: Camera, above: float = 0.0
) -> Iterator[tuple[np.ndarray, Color]]:
    """Yield the polygons ``n 2`` in units of a leg, from its ankle to the hip, and their colours.

    It doesn't depend on the kind of shoe. above: height on the shoe from which the leg is asked for.
    """
    placement = scene.placements(frame)[number]
    rotation = turned(placement)
    low, hem, calf = placed(np.array([(_HEEL, height, 0) for height in (_ANKLE, _HEM, _CALF)]), placement, rotation)
    (x, z), yaw, side = scene.path(frame), radians(scene.heading(frame)), 0.7 * SIDES[number] * GAIT
    hip = np.array([x - side * sin(yaw), _HIP, z + side * cos(yaw)])
    knee = (calf + hip) / 2 + np.array([cos(yaw), 0, sin(yaw)]) * 2.5
    cloth = _TROUSERS[scene.seed % len(_TROUSERS)]
    for ends, widths, color in (
        ((low, hem), (2.3, 2.5), SKIN),
        ((hem, knee), (3.7, 4.3), cloth),
        ((knee, hip), (4.3, 5.4), cloth),
    ):
        start, end = (float(rotation[:, 1] @ (point - placed(np.zeros(3), placement, rotation))) for point in ends)
        if end <= above:
            continue
        cut = max(0.0, (above - start) / (end - start))  # share of the part that lies below
        points = np.array([ends[0] + (ends[1] - ends[0]) * cut, ends[1]])
        (x0, y0), (x1, y1) = camera.project(points)
        thick = np.array([widths[0] + (widths[1] - widths[0]) * cut, widths[1]])
        r0, r1 = thick * camera.lens / np.maximum(points[:, 2], 1.0)
        yield np.array([(x0 - r0, y0), (x1 - r1, y1), (x1 + r1, y1), (x0 + r0, y0)]), color


def far_to_near(scene: Scene, frame: int) -> list[tuple[int, Placement]]:
    """Return the objects with their numbers, the farthest first.

    A plane along the walker's way separates its feet: that on the camera's side of it is the nearer one.
    """
    numbered, (x, z), yaw = list(enumerate(scene.placements(frame))), scene.path(frame), radians(scene.heading(frame))
    camera = x * sin(yaw) - z * cos(yaw)  # its distance from the plane, to the side of the first foot
    return numbered[::-1] if camera > 0 else numbered


def legs_layer(scene: Scene, frame: int, size: int, margin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the legs of a walker without shoes as premultiplied RGBA ``H W 4``; zero for vehicles."""
    canvas, camera = Canvas(size, margin), Camera.of(scene, frame)
    front = np.array([0.0, 0.2, -1.0]) / np.hypot(0.2, 1.0)
    if scene.subject.walks:
        for number, _ in far_to_near(scene, frame):
            for polygon, color in leg(scene, frame, number, camera):
                canvas.polygon(polygon, _lit(color, front, scene))
    return canvas.small()


def object_layer(
    scene: Scene, frame: int, size: int, margin: tuple[int, int] = (0, 0), only: int | None = None
) -> np.ndarray:
    """Return the object as premultiplied RGBA ``H W 4`` float32 in [0, 1], without what its own legs hide.

    margin: pixels to add (x, y); only: the number of one of its instances, where nearer ones don't hide it.
    """
    canvas, camera = Canvas(size, margin), Camera.of(scene, frame)
    shape = shape_of(scene.subject)
    for number, placement in far_to_near(scene, frame):
        if only is None or number == only:
            _paint_shape(canvas, shape, placement, scene, camera)
        else:  # what hides the one that is asked for
            cut = Canvas(size, margin)
            _paint_shape(cut, shape, placement, scene, camera)
            canvas.pixels[cut.pixels[..., 3] > 0] = 0
        if scene.subject.walks:
            for polygon, _ in leg(scene, frame, number, camera, above=shape.collar):
                canvas.polygon(polygon, (0, 0, 0, 0))
    return canvas.small()


def outline_box(scene: Scene, frame: int) -> tuple[float, float, float, float]:
    """Return the object's bounding box in units, x0 y0 x1 y1, which may lie beyond the picture."""
    camera, shape = Camera.of(scene, frame), shape_of(scene.subject)
    corners = np.concatenate([shape.corners, *(_tyre(wheel, side) for wheel in shape.wheels for side in SIDES)])
    points = np.concatenate([camera.project(placed(corners, p, turned(p))) for p in scene.placements(frame)])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


# ---- shadow ----------------------------------------------------------------------------------------------------------


def shadow_layer(scene: Scene, frame: int, size: int, margin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the share of the light that the object takes from the ground, ``H W`` float32 in [0, 1]."""
    light, camera, shape = LIGHTS[scene.hour], Camera.of(scene, frame), shape_of(scene.subject)
    blur = light.soft * size / UNITS
    reach = int(np.ceil(3 * blur))  # what the blur brings in from beyond the edges
    canvas = Canvas(size, (margin[0] + reach, margin[1] + reach), 1)
    slope = -np.array([cos(radians(scene.sun)), sin(radians(scene.sun))]) * light.reach
    bodies = [solid.corners for solid in shape.solids] + [_tyre(wheel, 1.0) for wheel in shape.single_wheels]
    for placement in scene.placements(frame):
        rotation = turned(placement)
        for corners in bodies:
            points = placed(corners, placement, rotation)
            foot = points * (1, 0, 1)
            fallen = foot.copy()
            fallen[:, [0, 2]] += points[:, 1:2] * slope
            ground = canvas.corners(camera.project(np.concatenate([foot, fallen])))
            canvas.fill(cv2.convexHull(ground)[:, 0], (255,))
    share = cv2.GaussianBlur(canvas.small()[..., 0], (0, 0), blur) * light.strength
    return share[reach : len(share) - reach, reach : share.shape[1] - reach]


# ---- occluder --------------------------------------------------------------------------------------------------------


def occluder_layer(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return what stands in front of the object as premultiplied RGBA ``H W 4``, zero where there is nothing."""
    canvas = Canvas(size)
    if scene.occluder is None:
        return canvas.small()
    dx, dy = Camera.of(scene, frame).shift
    x, front = scene.occluder_x + dx, np.array([0.0, 0.2, -0.98])
    if scene.occluder == "lamp":
        pole = _lit((84, 84, 90), front, scene)
        lamp = (250, 236, 170, 255) if LIGHTS[scene.hour].dark else _lit((250, 236, 170), front, scene)
        canvas.box(x - 0.9, 16 + dy, x + 0.9, 64 + abs(dy), pole)
        canvas.box(x - 0.9, 16 + dy, x + 5, 17.4 + dy, pole)
        canvas.disc(x + 4.6, 18.2 + dy, 1.5, lamp)
    else:
        canvas.box(x - 1.4, 24 + dy, x + 1.4, 64 + abs(dy), _lit((96, 66, 40), front, scene))
        canvas.disc(x, 18 + dy, 9, _lit((44, 104, 46), front, scene))
        canvas.disc(x - 2, 16 + dy, 6, _lit((58, 122, 56), front, scene))
    return canvas.small()


# ---- places ----------------------------------------------------------------------------------------------------------

_SKY = {
    "mountain": ((112, 160, 226), (206, 224, 244)),
    "desert": ((226, 190, 136), (250, 226, 178)),
    "city": ((148, 156, 176), (200, 200, 206)),
    "forest": ((146, 196, 226), (214, 234, 232)),
    "beach": ((82, 172, 236), (192, 228, 250)),
    "park": ((128, 184, 236), (216, 234, 246)),
}
_SKY_OF_HOUR: dict[str, tuple[Color, Color, float]] = {  # colours at the top and the horizon, and their share
    "noon": ((255, 255, 255), (255, 255, 255), 0.0),
    "dusk": ((72, 62, 116), (250, 150, 84), 0.85),
    "night": ((12, 16, 40), (34, 40, 74), 0.95),
    "overcast": ((166, 170, 176), (206, 208, 210), 0.85),
}
_GROUND = {
    "mountain": (110, 126, 94),
    "desert": (214, 172, 108),
    "city": (132, 132, 134),
    "forest": (74, 132, 58),
    "beach": (232, 208, 156),
    "park": (96, 158, 74),
}
_ROAD_COLOR = {"park": (188, 170, 140)}
_ASPHALT, _EDGE, _MARK = (96, 96, 102), (128, 128, 132), (236, 230, 206)
_FAR, _NEAR = 250.0, 62.0  # Z of the edges of a road across


class _Place:
    """Draws the static parts of a scene at frame 0, ``margin`` px beyond the frame on each side."""

    def __init__(self, scene: Scene, size: int, margin: tuple[int, int]):
        self.scene, self.canvas = scene, Canvas(size, margin, 3)
        self.camera = Camera(scene.lens, scene.eye, scene.horizon, (0.0, 0.0))
        self.rng, self.foot = np.random.default_rng(scene.seed), scene.horizon
        across = margin[0] / size * UNITS
        self.span = (-across - 32.0, UNITS + across + 32.0)

    def paint(self) -> np.ndarray:
        self._sky()
        _SKYLINES[self.scene.place](self)
        self._road()
        return self.canvas.pixels

    def lit(self, color: Sequence[float], factor: float = 1.0) -> Color:
        return _on_ground(color, self.scene, factor)

    def _sky(self) -> None:
        canvas = self.canvas
        top, low = (np.array(c, float) for c in _SKY[self.scene.place])
        hour_top, hour_low, share = _SKY_OF_HOUR[self.scene.hour]
        top, low = top * (1 - share) + np.array(hour_top) * share, low * (1 - share) + np.array(hour_low) * share
        foot = round((self.foot * canvas.unit) + canvas.margin[1] * SUPERSAMPLE)
        ramp = np.linspace(0, 1, foot)[:, None] if foot > 0 else np.zeros((0, 1))
        canvas.pixels[:foot] = (top * (1 - ramp) + low * ramp).astype(np.uint8)[:, None]
        canvas.pixels[foot:] = self.lit(_GROUND[self.scene.place])

    def plane(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Fill a polygon on the ground, given by X and Z."""
        self.canvas.polygon(self.camera.project(np.array([(x, 0.0, z) for x, z in points])), color)

    def _road(self) -> None:
        scene = self.scene
        asphalt, edge, mark = (self.lit(_ROAD_COLOR.get(scene.place, c)) for c in (_ASPHALT, _EDGE, _MARK))
        scale = scene.eye / 14.0  # the road's edges stay where they are in the picture
        far, near = _FAR * scale * scene.lens / 90, _NEAR * scale * scene.lens / 90
        wide = 6 * far
        if scene.layout == "square":
            self.plane([(-wide, far * 1.6), (wide, far * 1.6), (wide, 20), (-wide, 20)], asphalt)
            return
        if scene.layout == "across":
            self.plane([(-wide, far * 1.06), (wide, far * 1.06), (wide, near), (-wide, near)], edge)
            self.plane([(-wide, far), (wide, far), (wide, near * 1.01), (-wide, near * 1.01)], asphalt)
            middle, phase = 0.5 * (far + near) * 0.72, float(scene.seed % 12)
            if scene.place != "park":
                for x in np.arange(-240, 240, 12.0) + phase:
                    self.plane(
                        [(x, middle * 1.03), (x + 6, middle * 1.03), (x + 6, middle * 0.97), (x, middle * 0.97)], mark
                    )
            return
        half, z1 = 26.0, 9000.0
        self.plane([(-half * 1.06, z1), (half * 1.06, z1), (half * 1.06, 20), (-half * 1.06, 20)], edge)
        self.plane([(-half, z1), (half, z1), (half, 20), (-half, 20)], asphalt)
        if scene.place != "park":
            for z in np.arange(24, 600, 24.0) + scene.seed % 24:
                self.plane([(-0.8, z + 12), (0.8, z + 12), (0.8, z), (-0.8, z)], mark)


def _mountains(place: _Place) -> None:
    rng, foot = place.rng, place.foot
    for base in ((134, 134, 154), (98, 98, 114)):
        x = place.span[0]
        while x < place.span[1]:
            wide, high = float(rng.uniform(16, 30)), float(rng.uniform(9, 25))
            peak, y = x + wide * float(rng.uniform(0.4, 0.6)), foot - high
            color = place.lit(base, float(rng.uniform(0.9, 1.1)))
            place.canvas.polygon([(x - 4, foot), (peak, y), (x + wide + 4, foot)], color)
            if high > 15:
                left, right = (peak - x + 4) / high, (x + wide + 4 - peak) / high
                snow = [(peak - 4 * left, y + 4), (peak, y), (peak + 4 * right, y + 4), (peak, y + 2.6)]
                place.canvas.polygon(snow, place.lit((244, 246, 250)))
            x += wide * 0.72


def _dunes(place: _Place) -> None:
    rng, canvas, foot = place.rng, place.canvas, place.foot
    x = place.span[0]
    while x < place.span[1]:
        r = float(rng.uniform(9, 17))
        canvas.disc(x, foot + 1, r, place.lit((214, 166, 104), float(rng.uniform(0.92, 1.08))), squash=0.6)
        x += r * 1.3
    canvas.box(place.span[0], foot, place.span[1], foot + 6, place.lit(_GROUND["desert"]))
    green = place.lit((62, 122, 66))
    for x in rng.uniform(*place.span, size=10):
        high, y = float(rng.uniform(5, 9)), foot + 2.4
        canvas.box(x - 0.7, y - high, x + 0.7, y, green)
        canvas.box(x - 2.6, y - high * 0.6, x, y + 1.2 - high * 0.6, green)
        canvas.box(x - 2.6, y - 1 - high * 0.8, x - 1.5, y + 0.4 - high * 0.6, green)
        canvas.box(x, y - high * 0.45, x + 2.6, y + 1.2 - high * 0.45, green)
        canvas.box(x + 1.5, y - 1 - high * 0.7, x + 2.6, y + 0.4 - high * 0.45, green)


def _towers(place: _Place) -> None:
    rng, canvas, foot = place.rng, place.canvas, place.foot
    x = place.span[0]
    dark = LIGHTS[place.scene.hour].dark
    while x < place.span[1]:
        wide, high = float(rng.uniform(7, 13)), float(rng.uniform(11, 32))
        canvas.box(x, foot - high, x + wide, foot, place.lit((100, 100, 114), float(rng.uniform(0.8, 1.2))))
        for wy in np.arange(foot - high + 1.6, foot - 2, 3.2):
            for wx in np.arange(x + 1.3, x + wide - 2, 2.8):
                if rng.random() < 0.55:
                    glass = (240, 214, 120) if dark else place.lit((178, 196, 208))
                    canvas.box(float(wx), float(wy), float(wx) + 1.3, float(wy) + 1.6, glass)
        x += wide + float(rng.uniform(0, 2.4))


def _firs(place: _Place) -> None:
    rng, foot = place.rng, place.foot
    for base, count in (((66, 120, 72), 30), ((34, 92, 48), 24)):
        for x in rng.uniform(*place.span, size=count):
            high, half = float(rng.uniform(9, 20)), float(rng.uniform(2.6, 4.4))
            color = place.lit(base, float(rng.uniform(0.85, 1.15)))
            place.canvas.box(x - 0.5, foot - 1, x + 0.5, foot + 1.4, place.lit((92, 66, 44)))
            for part in range(3):
                y = foot - high * 0.3 * part
                place.canvas.polygon([(x - half + part, y), (x, y - high * 0.42), (x + half - part, y)], color)


def _palms(place: _Place) -> None:
    rng, canvas, foot = place.rng, place.canvas, place.foot
    low, high = place.span
    canvas.box(low, foot - 11, high, foot - 2.5, place.lit((34, 112, 182)))
    canvas.box(low, foot - 2.5, high, foot + 6, place.lit(_GROUND["beach"]))
    for x in rng.uniform(low, high, size=12):
        canvas.box(x - 2.2, foot - 9 + x % 5, x + 2.2, foot - 8.4 + x % 5, place.lit((110, 170, 216)))
    for x in rng.uniform(low, high, size=9):
        tall, lean = float(rng.uniform(12, 20)), float(rng.uniform(-3, 3))
        top, y = (float(x) + lean, foot + 3 - tall), foot + 3
        canvas.polygon([(x - 0.7, y), top, (top[0] + 1, top[1]), (x + 0.8, y)], place.lit((124, 90, 54)))
        for dx, dy in ((-5, 2), (-4.4, -1.6), (0.4, -3.2), (4.8, -1.6), (5.2, 2)):
            tip = (top[0] + dx, top[1] + dy)
            canvas.polygon([top, (top[0] + dx / 2, top[1] + dy / 2 - 1.5), tip], place.lit((38, 130, 62)))


def _hedges(place: _Place) -> None:
    rng, canvas, foot = place.rng, place.canvas, place.foot
    for x in rng.uniform(*place.span, size=16):
        high, r = float(rng.uniform(9, 17)), float(rng.uniform(4, 7))
        canvas.box(x - 0.8, foot - high, x + 0.8, foot + 1, place.lit((104, 76, 50)))
        canvas.disc(x, foot - high, r, place.lit((70, 140, 66), float(rng.uniform(0.8, 1.15))))
    x = place.span[0]
    while x < place.span[1]:
        wide = float(rng.uniform(8, 20))
        canvas.box(x, foot - 3.2, x + wide, foot + 1.2, place.lit((52, 112, 54), float(rng.uniform(0.85, 1.1))))
        x += wide + float(rng.uniform(1, 7))


_SKYLINES = {
    "mountain": _mountains, "desert": _dunes, "city": _towers, "forest": _firs, "beach": _palms, "park": _hedges,
}  # fmt: skip


@lru_cache(maxsize=4)
def _painted(scene: Scene, size: int, margin: tuple[int, int]) -> np.ndarray:
    return _Place(scene, size, margin).paint()


@lru_cache(maxsize=4)
def _cut_out(scene: Scene, size: int, margin: tuple[int, int], x: int, y: int) -> np.ndarray:
    """Return the part of the picture from ``x`` and ``y`` on, in supersampled pixels, at its size."""
    side = size * SUPERSAMPLE
    cut = np.ascontiguousarray(_painted(scene, size, margin)[y : y + side, x : x + side])
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def background(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return sky, skyline, ground and road, without object, shadow, legs and occluder: ``H W 3`` float32 in [0, 1]."""
    last = Camera.of(scene, scene.frames - 1).shift
    margin = tuple(int(np.ceil(abs(shift) * size / UNITS)) + 1 if shift else 0 for shift in last)
    still = replace(  # what the place doesn't depend on, so that its picture is drawn once
        scene, subject=Subject("car", "red"), x=0, z=0, yaw=0, speed=0, turn=0, bob=0, step=0, occluder=None, pan=0,
        tilt=0, occluder_x=0, frames=1, sun=0,
    )  # fmt: skip
    unit = size * SUPERSAMPLE / UNITS
    dx, dy = (round(shift * unit) for shift in Camera.of(scene, frame).shift)
    return _cut_out(still, size, margin, margin[0] * SUPERSAMPLE - dx, margin[1] * SUPERSAMPLE - dy).copy()


# ---- frames ----------------------------------------------------------------------------------------------------------


def over(layer: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Composite a premultiplied ``layer`` ``... 4`` over opaque ``below`` ``... 3``."""
    return layer[..., :3] + below * (1 - layer[..., 3:])


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to uint8."""
    return (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)


def straight(layer: np.ndarray) -> np.ndarray:
    """Convert premultiplied float RGBA to straight uint8 RGBA, as in PNG."""
    alpha = layer[..., 3:]
    return to_bytes(np.concatenate([layer[..., :3] / np.maximum(alpha, 1e-6), alpha], -1))


def without_object(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return a frame without the object, its shadow and the occluder, ``H W 3``: the place, and a walker's legs."""
    ground = background(scene, frame, size)
    return over(legs_layer(scene, frame, size), ground) if scene.subject.walks else ground


def draw(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return a whole frame, ``H W 3`` float32 in [0, 1]."""
    picture = background(scene, frame, size) * (1 - shadow_layer(scene, frame, size)[..., None])
    if scene.subject.walks:
        picture = over(legs_layer(scene, frame, size), picture)
    picture = over(object_layer(scene, frame, size), picture)
    return over(occluder_layer(scene, frame, size), picture) if scene.occluder else picture


def silhouette(scene: Scene, frame: int, size: int, only: int | None = None) -> np.ndarray:
    """Return the share of each pixel that the visible object (or one instance) covers, ``H W`` float32 in [0, 1]."""
    alpha = object_layer(scene, frame, size, only=only)[..., 3]
    return alpha * (1 - occluder_layer(scene, frame, size)[..., 3]) if scene.occluder else alpha
