"""The places of the drawn world: sky, skyline, ground and road, the same for a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from tave.roadside.camera import LIGHTS, SUPERSAMPLE, Camera, Canvas, lit_ground
from tave.roadside.scene import UNITS, Scene, Subject
from tave.roadside.shapes import Color

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
        return lit_ground(color, self.scene, factor)

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
