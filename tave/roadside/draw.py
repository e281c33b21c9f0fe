"""Scene -> pixels: background, vehicle and occluder as separate layers, each known exactly.

Shapes are drawn with hard edges at four times the size and box-filtered. Layers are premultiplied RGBA and the filter
is linear, so compositing the small layers equals filtering the large composite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from tave.roadside.scene import UNITS, Scene, Vehicle
from tave.roadside2.draw import over

SUPERSAMPLE = 4
RGB = {
    "red": (206, 34, 38),
    "blue": (42, 84, 204),
    "green": (38, 148, 66),
    "yellow": (242, 204, 36),
    "white": (240, 240, 240),
    "black": (38, 38, 44),
    "orange": (246, 134, 28),
    "purple": (134, 54, 172),
}
_GLASS, _TYRE, _HUB = (170, 208, 228), (26, 26, 28), (176, 176, 180)
_SKY = {
    "mountain": ((112, 160, 226), (206, 224, 244)),
    "desert": ((238, 196, 132), (250, 226, 178)),
    "city": ((148, 148, 164), (196, 192, 198)),
    "forest": ((156, 206, 226), (214, 234, 232)),
    "beach": ((82, 172, 236), (192, 228, 250)),
}
_GROUND = {
    "mountain": (110, 126, 94),
    "desert": (214, 172, 108),
    "city": (132, 132, 134),
    "forest": (74, 132, 58),
    "beach": (232, 208, 156),
}
_HORIZON = 40.0  # y of the skyline's foot
_ROAD = (45.0, 60.0)  # y of the road's edges

Point = tuple[float, float]


class _Pen:
    """Draws shapes given in units, after a ``shift`` in units; ``unit`` is their size in pixels."""

    def __init__(self, image: Image.Image, unit: float, shift: Point = (0.0, 0.0)):
        self._draw, self._unit, self._shift = ImageDraw.Draw(image), unit, shift

    def _xy(self, points: Sequence[Point]) -> list[Point]:
        (dx, dy), u = self._shift, self._unit
        return [((x + dx) * u, (y + dy) * u) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: object) -> None:
        self._draw.polygon(self._xy(points), fill=fill)  # type: ignore[arg-type]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: object) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def disc(self, x: float, y: float, r: float, fill: object, squash: float = 1.0) -> None:
        (x0, y0), (x1, y1) = self._xy([(x - r, y - r * squash), (x + r, y + r * squash)])
        self._draw.ellipse((x0, y0, x1, y1), fill=fill)  # type: ignore[arg-type]


# ---- vehicles: facing right, x from the centre, y up from the wheels' bottom -----------------------------------------

# Body polygons (painted with the pattern), windows, wheels (x, radius), lamps (x, y).
_BODIES: dict[str, list[list[Point]]] = {
    "car": [
        [(-10, 1.4), (-10, 3.8), (-9.2, 4.7), (-6.5, 5.0), (6, 4.9), (9.2, 4.2), (10, 3.2), (10, 1.4)],
        [(-7, 4.6), (-4.6, 7.6), (2.4, 7.6), (6, 4.6)],
    ],
    "suv": [
        [(-10.5, 1.9), (-10.5, 6.6), (9.2, 6.6), (10.5, 5.6), (10.5, 1.9)],
        [(-10.4, 6.2), (-9.6, 11), (3.6, 11), (6.4, 6.2)],
    ],
    "bus": [[(-16, 1.9), (-16, 14), (-15.2, 15), (15, 15), (15.8, 14), (16, 9), (16, 1.9)]],
    "truck": [
        [(-16.5, 3), (-16.5, 14), (6.4, 14), (6.4, 3)],
        [(7.4, 1.9), (7.4, 11.4), (12.6, 11.4), (16, 6.6), (16.5, 5.6), (16.5, 1.9)],
        [(-16, 1.9), (-16, 3.2), (8, 3.2), (8, 1.9)],
    ],
    "van": [[(-12, 1.7), (-12, 11.4), (-11.2, 12), (4.4, 12), (9, 7.4), (11.6, 6.4), (12, 5.2), (12, 1.7)]],
    "bike": [
        [(-7.2, 5.2), (-5.8, 7), (-1.6, 6), (1.6, 7.4), (3.4, 9), (5, 8.4), (4.6, 5.6), (2.2, 2.2), (-2.6, 2.2)],
    ],
}  # fmt: skip
_WINDOWS: dict[str, list[list[Point]]] = {
    "car": [[(-5.8, 5.0), (-4.2, 7.0), (-1.4, 7.0), (-1.4, 5.0)], [(-0.7, 5.0), (-0.7, 7.0), (2.0, 7.0), (4.3, 5.0)]],
    "suv": [
        [(-9.2, 6.9), (-8.7, 10.1), (-4.6, 10.1), (-4.6, 6.9)],
        [(-3.8, 6.9), (-3.8, 10.1), (-0.2, 10.1), (-0.2, 6.9)],
        [(0.6, 6.9), (0.6, 10.1), (3.2, 10.1), (5.0, 6.9)],
    ],
    "bus": [[(x, 9), (x, 13.2), (x + 3.6, 13.2), (x + 3.6, 9)] for x in (-14.4, -9.9, -5.4, -0.9, 3.6, 8.1)]
    + [[(12.8, 7), (12.8, 13.2), (15.2, 13.2), (15.5, 9), (15.5, 7)]],
    "truck": [[(9.4, 7.0), (9.4, 10.4), (12.2, 10.4), (14.4, 7.0)]],
    "van": [[(2.4, 7.6), (2.4, 10.9), (4.0, 10.9), (7.4, 7.6)]],
    "bike": [[(3.6, 8.0), (4.6, 10.0), (5.4, 9.6), (5.0, 7.8)]],
}
_WHEELS: dict[str, list[Point]] = {
    "car": [(-6, 2), (6, 2)], "suv": [(-6.4, 2.6), (6.4, 2.6)], "bus": [(-9.5, 2.7), (10, 2.7)],
    "truck": [(-12.6, 2.6), (-7, 2.6), (11.6, 2.6)], "van": [(-7.2, 2.5), (7.4, 2.5)],
    "bike": [(-4.7, 2.8), (4.7, 2.8)],
}  # fmt: skip
_LAMPS: dict[str, Point] = {
    "car": (9.4, 3.6), "suv": (9.8, 5.2), "bus": (15.4, 3.6), "truck": (15.8, 4.6), "van": (11.2, 5),
    "bike": (5.2, 7.2),
}  # fmt: skip
_STRIPE, _DOT = 4.4, 3.6  # periods in units; the autoencoder can still resolve them


def _paint(vehicle: Vehicle, size: tuple[int, int], to_canvas, unit: float) -> Image.Image:
    """Return the body's paint on the whole canvas, of which the body's silhouette is used."""
    paint = Image.new("RGB", size, RGB[vehicle.color])
    pen, accent = _Pen(paint, unit), RGB[vehicle.accent]
    height = max(y for body in _BODIES[vehicle.kind] for _, y in body)
    if vehicle.pattern == "two-tone":
        pen.polygon(to_canvas([(-20, 0), (-20, 0.45 * height), (20, 0.45 * height), (20, 0)]), accent)
    elif vehicle.pattern == "striped":
        for x in np.arange(-20, 20, _STRIPE):
            x0, x1 = float(x), float(x) + _STRIPE / 2
            pen.polygon(to_canvas([(x0, 0), (x0, 18), (x1, 18), (x1, 0)]), accent)
    elif vehicle.pattern == "dotted":
        turn = np.linspace(0, 2 * np.pi, 13)[:-1]
        for row in range(6):
            for x in np.arange(-19, 19, _DOT):
                cx, cy = float(x) + (row % 2) * _DOT / 2, 1.4 + row * _DOT * 0.75
                pen.polygon(to_canvas([(cx + 1.05 * np.cos(a), cy + 1.05 * np.sin(a)) for a in turn]), accent)
    return paint


def vehicle_layer(scene: Scene, frame: int, size: int, margin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the vehicle as premultiplied RGBA ``H W 4`` float32 in [0, 1]; ``margin``: pixels to add (x, y)."""
    big = (size + 2 * margin[0]) * SUPERSAMPLE, (size + 2 * margin[1]) * SUPERSAMPLE
    unit = size * SUPERSAMPLE / UNITS
    shift = margin[0] * UNITS / size, margin[1] * UNITS / size
    x, ground, scale = scene.pose(frame)
    kind = scene.vehicle.kind

    def to_canvas(points: Sequence[Point]) -> list[Point]:
        return [(x + shift[0] + scene.heading * scale * px, ground + shift[1] - scale * py) for px, py in points]

    body = Image.new("L", big, 0)
    for polygon in _BODIES[kind]:
        _Pen(body, unit).polygon(to_canvas(polygon), 255)
    rgb, alpha = _paint(scene.vehicle, big, to_canvas, unit), body.copy()
    pen, solid = _Pen(rgb, unit), _Pen(alpha, unit)
    for polygon in _WINDOWS[kind]:
        pen.polygon(to_canvas(polygon), _GLASS)
        solid.polygon(to_canvas(polygon), 255)
    (lamp_x, lamp_y) = to_canvas([_LAMPS[kind]])[0]
    pen.disc(lamp_x, lamp_y, 0.55 * scale, (255, 244, 190))
    for wheel_x, radius in _WHEELS[kind]:
        cx, cy = to_canvas([(wheel_x, radius)])[0]
        pen.disc(cx, cy, radius * scale, _TYRE)
        pen.disc(cx, cy, radius * scale * 0.45, _HUB)
        solid.disc(cx, cy, radius * scale, 255)
    return _shrink(rgb, alpha)


def occluder_layer(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return what stands in front of the vehicle as premultiplied RGBA ``H W 4``, zero where there is nothing."""
    if scene.occluder is None:
        return np.zeros((size, size, 4), np.float32)
    big, unit = size * SUPERSAMPLE, size * SUPERSAMPLE / UNITS
    rgb, alpha = Image.new("RGB", (big, big)), Image.new("L", (big, big), 0)
    x = scene.occluder_x - 1.2 * scene.pan * frame
    for image, pole, top in ((rgb, (74, 74, 80), (250, 236, 170)), (alpha, 255, 255)):
        pen = _Pen(image, unit)
        if scene.occluder == "lamp":
            pen.box(x - 0.9, 18, x + 0.9, 62, pole)
            pen.box(x - 0.9, 18, x + 5, 19.4, pole)
            pen.disc(x + 4.6, 20.2, 1.5, top)
        else:
            pen.box(x - 1.4, 26, x + 1.4, 62, (96, 66, 40) if image is rgb else 255)
            pen.disc(x, 20, 9, (44, 104, 46) if image is rgb else 255)
    return _shrink(rgb, alpha)


def _shrink(rgb: Image.Image, alpha: Image.Image) -> np.ndarray:
    flat = Image.composite(rgb, Image.new("RGB", rgb.size), alpha)  # hard edges: this is the premultiplied colour
    small = (rgb.width // SUPERSAMPLE, rgb.height // SUPERSAMPLE)
    parts = [np.asarray(image.resize(small, Image.Resampling.BOX)) for image in (flat, alpha)]
    return np.dstack(parts).astype(np.float32) / 255


# ---- places ----------------------------------------------------------------------------------------------------------


def background(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return sky, skyline, ground and road without vehicle and occluder: ``H W 3`` float32 in [0, 1]."""
    big, unit = size * SUPERSAMPLE, size * SUPERSAMPLE / UNITS
    top, bottom = (np.array(c, np.float32) for c in _SKY[scene.place])
    ramp = np.linspace(0, 1, round(_HORIZON * unit), dtype=np.float32)[:, None]
    sky = (top * (1 - ramp) + bottom * ramp).astype(np.uint8)[:, None].repeat(big, 1)
    image = Image.new("RGB", (big, big), _GROUND[scene.place])
    image.paste(Image.fromarray(sky), (0, 0))
    moved = scene.pan * frame
    _SKYLINES[scene.place](image, unit, np.random.default_rng(scene.seed), moved)
    pen = _Pen(image, unit)
    pen.box(-1, _ROAD[0], 65, _ROAD[1], (86, 86, 92))
    pen.box(-1, _ROAD[0], 65, _ROAD[0] + 0.6, (120, 120, 124))
    phase = (scene.seed % 8) - moved % 8.0
    for x in np.arange(-16, 80, 8.0):
        pen.box(float(x) + phase, 52.2, float(x) + phase + 4, 53.1, (232, 226, 200))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)).astype(np.float32) / 255


def _shade(color: Sequence[int], factor: float) -> tuple[int, ...]:
    return tuple(int(min(255, c * factor)) for c in color)


# Skylines span three frame widths, for a panning camera.
_SPAN = (-64.0, 128.0)


def _mountains(image: Image.Image, unit: float, rng: np.random.Generator, moved: float) -> None:
    for depth, base in ((0.2, (134, 134, 154)), (0.35, (98, 98, 114))):
        pen, x = _Pen(image, unit, (-moved * depth, 0)), _SPAN[0]
        while x < _SPAN[1]:
            wide, high = float(rng.uniform(16, 30)), float(rng.uniform(9, 25))
            peak = x + wide * float(rng.uniform(0.4, 0.6))
            y = _HORIZON - high
            color = _shade(base, float(rng.uniform(0.9, 1.1)))
            pen.polygon([(x - 4, _HORIZON), (peak, y), (x + wide + 4, _HORIZON)], color)
            if high > 15:
                left, right = (peak - x + 4) / high, (x + wide + 4 - peak) / high
                snow = [(peak - 4 * left, y + 4), (peak, y), (peak + 4 * right, y + 4), (peak, y + 2.6)]
                pen.polygon(snow, (244, 246, 250))
            x += wide * 0.72


def _dunes(image: Image.Image, unit: float, rng: np.random.Generator, moved: float) -> None:
    pen, x = _Pen(image, unit, (-moved * 0.3, 0)), _SPAN[0]
    while x < _SPAN[1]:
        r = float(rng.uniform(9, 17))
        pen.disc(x, _HORIZON + 1, r, _shade((214, 166, 104), float(rng.uniform(0.92, 1.08))), squash=0.6)
        x += r * 1.3
    pen.box(_SPAN[0], _HORIZON, _SPAN[1], 46, _GROUND["desert"])
    near = _Pen(image, unit, (-moved * 0.6, 0))
    for x in rng.uniform(*_SPAN, size=8):
        high = float(rng.uniform(5, 9))
        green = (62, 122, 66)
        near.box(x - 0.7, 43 - high, x + 0.7, 43, green)
        near.box(x - 2.6, 43 - high * 0.6, x, 44.2 - high * 0.6, green)
        near.box(x - 2.6, 42 - high * 0.8, x - 1.5, 43.4 - high * 0.6, green)
        near.box(x, 43 - high * 0.45, x + 2.6, 44.2 - high * 0.45, green)
        near.box(x + 1.5, 42 - high * 0.7, x + 2.6, 43.4 - high * 0.45, green)


def _towers(image: Image.Image, unit: float, rng: np.random.Generator, moved: float) -> None:
    pen, x = _Pen(image, unit, (-moved * 0.35, 0)), _SPAN[0]
    while x < _SPAN[1]:
        wide, high = float(rng.uniform(7, 13)), float(rng.uniform(11, 32))
        pen.box(x, _HORIZON - high, x + wide, _HORIZON, _shade((92, 92, 106), float(rng.uniform(0.8, 1.2))))
        for wy in np.arange(_HORIZON - high + 1.6, _HORIZON - 2, 3.2):
            for wx in np.arange(x + 1.3, x + wide - 2, 2.8):
                if rng.random() < 0.55:
                    pen.box(float(wx), float(wy), float(wx) + 1.3, float(wy) + 1.6, (240, 214, 120))
        x += wide + float(rng.uniform(0, 2.4))


def _firs(image: Image.Image, unit: float, rng: np.random.Generator, moved: float) -> None:
    for depth, base, count in ((0.3, (66, 120, 72), 34), (0.5, (34, 92, 48), 26)):
        pen = _Pen(image, unit, (-moved * depth, 0))
        for x in rng.uniform(*_SPAN, size=count):
            high, half = float(rng.uniform(9, 20)), float(rng.uniform(2.6, 4.4))
            color = _shade(base, float(rng.uniform(0.85, 1.15)))
            pen.box(x - 0.5, _HORIZON - 1, x + 0.5, _HORIZON + 1.4, (92, 66, 44))
            for part in range(3):
                foot = _HORIZON - high * 0.3 * part
                pen.polygon([(x - half + part, foot), (x, foot - high * 0.42), (x + half - part, foot)], color)


def _palms(image: Image.Image, unit: float, rng: np.random.Generator, moved: float) -> None:
    sea = _Pen(image, unit)
    sea.box(-1, 29, 65, 37.5, (34, 112, 182))
    sea.box(-1, 37.5, 65, 46, _GROUND["beach"])
    for x in rng.uniform(*_SPAN, size=9):
        sea.box(x - 2.2 - moved * 0.15, 31 + x % 5, x + 2.2 - moved * 0.15, 31.6 + x % 5, (110, 170, 216))
    pen = _Pen(image, unit, (-moved * 0.55, 0))
    for x in rng.uniform(*_SPAN, size=9):
        high, lean = float(rng.uniform(12, 20)), float(rng.uniform(-3, 3))
        top = (float(x) + lean, 43 - high)
        pen.polygon([(x - 0.7, 43), top, (top[0] + 1, top[1]), (x + 0.8, 43)], (124, 90, 54))
        for dx, dy in ((-5, 2), (-4.4, -1.6), (0.4, -3.2), (4.8, -1.6), (5.2, 2)):
            tip = (top[0] + dx, top[1] + dy)
            pen.polygon([top, (top[0] + dx / 2, top[1] + dy / 2 - 1.5), tip], (38, 130, 62))


_SKYLINES = {"mountain": _mountains, "desert": _dunes, "city": _towers, "forest": _firs, "beach": _palms}


# ---- frames ----------------------------------------------------------------------------------------------------------


def draw(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return a whole frame, ``H W 3`` float32 in [0, 1]."""
    picture = over(vehicle_layer(scene, frame, size), background(scene, frame, size))
    return over(occluder_layer(scene, frame, size), picture) if scene.occluder else picture


def silhouette(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the share of each pixel that the visible vehicle covers, ``H W`` float32 in [0, 1]."""
    alpha = vehicle_layer(scene, frame, size)[..., 3]
    return alpha * (1 - occluder_layer(scene, frame, size)[..., 3]) if scene.occluder else alpha
