"""Scene -> pixels: background, shadow, object and occluder as separate layers, each known exactly.

Shapes are drawn with hard edges at four times the size and box-filtered. Layers are premultiplied RGBA and the filter
is linear, so compositing the small layers equals filtering the large composite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import cos, radians, sin

import cv2
import numpy as np

from tave.roadside.camera import LIGHTS, Camera, Canvas, lit, placed, turned
from tave.roadside.places import background
from tave.roadside.scene import GAIT, SIDES, UNITS, Placement, Scene
from tave.roadside.shapes import HUB, SKIN, TYRE, Color, Shape, Wheel, circle, shape_of

VERSION = 3  # of the pictures: with another number, those that were kept are drawn again


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
def tyre(wheel: Wheel, side: float) -> np.ndarray:
    """Return the edges ``n 3`` of the tyre on the side -1 or 1."""
    rings = [_ring(wheel, side * across, wheel.radius) for across in (wheel.outside - wheel.thickness, wheel.outside)]
    return np.concatenate(rings)


@lru_cache
def _outer_face(wheel: Wheel, side: float) -> np.ndarray:
    """Return the corners ``n 3`` of the outer face of the wheel on the side -1 or 1: the tyre's, then the hub's."""
    across = side * wheel.outside
    return np.concatenate([_ring(wheel, across, wheel.radius), _ring(wheel, across, 0.5 * wheel.radius)])


def _tread(view: View, wheel: Wheel, side: float) -> Surface:
    outline = cv2.convexHull(view.corners(tyre(wheel, side)))[:, 0]
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
        shades = {color: lit(color, surface.normal, scene) for color in {color for _, color, _ in surface.patches}}
        for corners, color, glows in surface.patches:
            canvas.fill(corners, (*color, 255) if dark and glows else shades[color])


# ---- legs ------------------------------------------------------------------------------------------------------------

_TROUSERS = ((58, 70, 104), (64, 62, 66), (140, 124, 96), (92, 96, 84))
_HEEL, _ANKLE, _HEM, _CALF = -6.2, 2.0, 10.5, 13.0  # of a leg on a shoe: its place along it, and heights
_HIP, _WAIST = 62.0, 100.0  # heights; a hip is seen from afar, a waist never is


def leg(
    scene: Scene, frame: int, number: int, camera: Camera, above: float = 0.0
) -> Iterator[tuple[np.ndarray, Color]]:
    """Yield the polygons ``n 2`` in units of a leg, from its ankle to the waist, and their colours.

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
        ((hip, np.array([hip[0], _WAIST, hip[2]])), (5.4, 5.4), cloth),
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
                canvas.polygon(polygon, lit(color, front, scene))
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
    corners = np.concatenate([shape.corners, *(tyre(wheel, side) for wheel in shape.wheels for side in SIDES)])
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
    bodies = [solid.corners for solid in shape.solids] + [tyre(wheel, 1.0) for wheel in shape.single_wheels]
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
        pole = lit((84, 84, 90), front, scene)
        lamp = (250, 236, 170, 255) if LIGHTS[scene.hour].dark else lit((250, 236, 170), front, scene)
        canvas.box(x - 0.9, 16 + dy, x + 0.9, 64 + abs(dy), pole)
        canvas.box(x - 0.9, 16 + dy, x + 5, 17.4 + dy, pole)
        canvas.disc(x + 4.6, 18.2 + dy, 1.5, lamp)
    else:
        canvas.box(x - 1.4, 24 + dy, x + 1.4, 64 + abs(dy), lit((96, 66, 40), front, scene))
        canvas.disc(x, 18 + dy, 9, lit((44, 104, 46), front, scene))
        canvas.disc(x - 2, 16 + dy, 6, lit((58, 122, 56), front, scene))
    return canvas.small()


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
