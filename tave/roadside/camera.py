"""Light, camera and canvas: what a scene's surfaces look like, where they are seen, and the pixels that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import cv2
import numpy as np

from tave.roadside.scene import UNITS, Placement, Scene
from tave.roadside.shapes import Color, circle

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


def lit(color: Sequence[float], normal: Sequence[float] | np.ndarray, scene: Scene) -> tuple[int, int, int, int]:
    """Return the colour of a surface with this outward unit ``normal`` in the scene's light, opaque RGBA."""
    light = LIGHTS[scene.hour]
    x, y, z = light.direction(scene.sun)
    facing = max(0.0, normal[0] * x + normal[1] * y + normal[2] * z)
    parts = zip(color, light.ambient, light.direct, _TINT[scene.place], strict=True)
    r, g, b = (min(255, int(c * (ambient + direct * facing) * tint)) for c, ambient, direct, tint in parts)
    return r, g, b, 255


def lit_ground(color: Sequence[float], scene: Scene, factor: float = 1.0) -> Color:
    """Return the colour of level ground, or of what is drawn flat, in the scene's light, ``factor`` times as bright."""
    shade = lit((color[0] * factor, color[1] * factor, color[2] * factor), _UP, scene)
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
