"""Scenes of the drawn world: what is shown, where, in which light and how it moves; captions; what training never sees.

World coordinates: X to the right, Y up from the ground, Z away from the camera, in units that measure 1/64 of the
frame's width at a scale of 1 (at the distance ``lens``). Yaw 0 faces right, 90 away from the camera, 270 towards it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import cos, pi, radians, sin

VEHICLES = ("car", "suv", "bus", "truck", "van", "bike")
SHOES = ("sneaker", "boot", "sandal")
KINDS = (*VEHICLES, *SHOES)
COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "gray")
PATTERNS = ("plain", "striped", "dotted", "two-tone")
HOURS = ("noon", "dusk", "night", "overcast")
PLACES = ("mountain", "desert", "city", "forest", "beach", "park")
LAYOUTS = ("across", "ahead", "square")  # of the road, as the camera sees it
OCCLUDERS = ("lamp", "tree")
UNITS = 64.0
SECTORS = 8  # ranges of yaw of 45 degrees, the first from -22.5 to 22.5

_WHERE = {
    "mountain": "on a mountain road",
    "desert": "on a desert road",
    "city": "on a city street",
    "forest": "on a forest road",
    "beach": "on a beach road",
    "park": "in a park",
}
_WHEN = {"noon": "", "dusk": " at dusk", "night": " at night", "overcast": " on an overcast day"}
MOTIONS = ("right", "away", "left", "toward the camera")  # by quarter of yaw, the first from -45 to 45


@dataclass(frozen=True)
class Subject:
    """The appearance of an object. ``accent`` is the pattern's second colour; a plain object doesn't show it."""

    kind: str
    color: str
    pattern: str = "plain"
    accent: str = "white"

    @property
    def walks(self) -> bool:
        """Whether it is a pair of shoes."""
        return self.kind in SHOES


@dataclass(frozen=True)
class Placement:
    """Where one rigid object stands: its origin in the world, yaw and pitch (toe up) in degrees, way rolled so far."""

    x: float
    y: float
    z: float
    yaw: float
    pitch: float = 0.0
    way: float = 0.0


# A walker's cycle: half of it a foot stands, half of it swings. Lengths in units.
REACH, LIFT, GAIT = 7.0, 3.2, 4.9  # of a foot to the front, of a swinging foot, and of each foot to its side
STRIDE = 4 * REACH  # the walker's way in one cycle
SIDES = (1.0, -1.0)  # of the shoes, by their numbers: left and right
_TOE = 11.2  # from a shoe's origin to its tip: a foot that points down is lifted by what keeps the tip above the ground


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows. Positions are those of frame 0; speed and turn don't change."""

    subject: Subject
    place: str
    seed: int  # of the skyline
    hour: str = "noon"
    sun: float = 240.0  # direction to the light, degrees: 0 right, 90 behind the object, 270 behind the camera
    x: float = 0.0
    z: float = 90.0
    yaw: float = 0.0
    speed: float = 0.0  # along the yaw, units a frame
    turn: float = 0.0  # degrees a frame
    bob: float = 0.0  # amplitude of the vertical bounce
    step: float = 0.0  # of a walker's cycle at frame 0, in [0, 1)
    pan: float = 0.0  # of the picture, units a frame: a camera that turns to the right
    tilt: float = 0.0  # of the picture, units a frame: a camera that turns up
    lens: float = 90.0  # focal length
    eye: float = 14.0  # height of the camera
    horizon: float = 40.0  # its y in the picture at frame 0
    layout: str = "across"
    occluder: str | None = None
    occluder_x: float = 40.0  # in the picture at frame 0
    frames: int = 8

    def shift(self, frame: float) -> tuple[float, float]:
        """Return how far the picture has moved since frame 0, in units, as the camera pans and tilts."""
        return -self.pan * frame, self.tilt * frame

    def heading(self, frame: float) -> float:
        """Return the yaw in degrees, in [0, 360)."""
        return (self.yaw + self.turn * frame) % 360

    def path(self, frame: float) -> tuple[float, float]:
        """Return X and Z of the object's middle: the exact arc of constant speed and turn."""
        start, end = radians(self.yaw), radians(self.yaw + self.turn * frame)
        if abs(end - start) < 1e-9:
            way = self.speed * frame
            return self.x + way * cos(start), self.z + way * sin(start)
        radius = self.speed * frame / (end - start)
        return self.x + radius * (sin(end) - sin(start)), self.z - radius * (cos(end) - cos(start))

    def placements(self, frame: int) -> list[Placement]:
        """Return the vehicle, or the left and the right shoe."""
        if self.subject.walks:
            return [self._foot(frame, number) for number in range(len(SIDES))]
        x, z = self.path(frame)
        return [Placement(x, self.bob * (1 + sin(1.7 * frame)), z, self.heading(frame), 0.0, self.speed * frame)]

    def _foot(self, frame: int, number: int) -> Placement:
        """Return a shoe: it stands where the walker passes beside it, and swings from there to where it stands next."""
        cycle = (self.step + 0.5 * number + self.speed * frame / STRIDE) % 1.0
        x, z, yaw = self._footprint(frame, STRIDE * (0.25 - cycle), SIDES[number])
        if cycle < 0.5:
            return Placement(x, 0.0, z, yaw % 360)
        swing = 2 * cycle - 1
        share = (1 + 2 * swing - cos(pi * swing)) / 4  # of the step; seen from the walker the foot swings as a pendulum
        next_x, next_z, next_yaw = self._footprint(frame, STRIDE * (1.25 - cycle), SIDES[number])
        pitch = (14 * swing - 28 * (1 - swing)) * sin(pi * swing)
        return Placement(
            x + (next_x - x) * share,
            max(LIFT * sin(pi * swing), -_TOE * sin(radians(pitch))),
            z + (next_z - z) * share,
            (yaw + (next_yaw - yaw) * share) % 360,
            pitch,
        )

    def _footprint(self, frame: int, way: float, side: float) -> tuple[float, float, float]:
        """Return X, Z and yaw (degrees, not wrapped) of a foot beside the walker, ``way`` units after ``frame``."""
        if self.speed:
            moment = frame + way / self.speed
            (x, z), yaw = self.path(moment), self.yaw + self.turn * moment
        else:  # as if it went straight on
            yaw = self.yaw + self.turn * frame
            x, z = self.x + way * cos(radians(yaw)), self.z + way * sin(radians(yaw))
        return x - side * GAIT * sin(radians(yaw)), z + side * GAIT * cos(radians(yaw)), yaw

    @property
    def motion(self) -> str:
        """Return the motion's words for a caption."""
        if abs(self.turn) * (self.frames - 1) > 30:
            return "turning"
        return motion_of(self.heading((self.frames - 1) / 2))


def motion_of(yaw: float) -> str:
    """Return where an object at this yaw (degrees) heads in the picture."""
    return MOTIONS[int(((yaw + 45) % 360) // 90)]


def caption(
    subject: Subject, motion: str | None = None, place: str | None = None, hour: str = "noon", *, pattern: bool = False
) -> str:
    """Return ``a red suv``; with ``place`` also where, when and how it moves, with ``pattern`` also its pattern."""
    name = f"{subject.color} {subject.kind}" + "s" * subject.walks
    if pattern and subject.pattern == "plain":
        name = f"plain {name}"
    elif pattern:
        name = f"{subject.color} and {subject.accent} {subject.pattern} {subject.kind}" + "s" * subject.walks
    if not subject.walks:
        name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if place is None:
        return name
    verb = "walking" if subject.walks else "driving"
    does = "" if motion is None else " turning" if motion == "turning" else f" {verb} {motion}"
    return f"{name}{does} {_WHERE[place]}{_WHEN[hour]}"


def scene_caption(scene: Scene) -> str:
    """Return the prompt of a clip, which doesn't name the pattern.

    Nor that the object turns: captions of the training describe single pictures, so that no network learns that word.
    """
    return caption(scene.subject, None if scene.motion == "turning" else scene.motion, scene.place, scene.hour)


def vocabulary() -> list[str]:
    """Return every word of the captions, in a fixed order."""
    words = [
        "a", "an", "and", "plain", "driving", "walking", "turning", "left", "right", "away", "toward", "the", "camera",
        "on", "in", "at", "road", "street", "day", "with", "image", "of",
    ]  # fmt: skip
    kinds = [kind + "s" * (kind in SHOES) for kind in KINDS]
    return [*words, *kinds, *COLORS, *PLACES, *PATTERNS[1:], *HOURS[1:]]


# ---- hold-out --------------------------------------------------------------------------------------------------------

# Training scenes use skyline seeds below this; named, study and benchmark cases use seeds above it.
FIRST_HELD_OUT_SEED = 1_000_000


# (kind, colour, pattern, place) of the named clips, sources and targets; a test compares them with cases.py.
NAMED_COMBINATIONS = frozenset(
    {
        ("bus", "white", "plain", "mountain"),
        ("suv", "red", "plain", "mountain"),
        ("car", "blue", "plain", "forest"),
        ("truck", "orange", "plain", "forest"),
        ("sneaker", "gray", "plain", "park"),
        ("boot", "red", "plain", "park"),
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
    }
)


def sector(yaw: float) -> int:
    """Return the range of a yaw in degrees, 0 to SECTORS - 1."""
    width = 360 / SECTORS
    return int(((yaw + width / 2) % 360) // width)


def _one_in_ten(*parts: object) -> bool:
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()[0] < 26


def never_seen(subject: Subject, place: str) -> bool:
    """Whether (kind, colour, pattern, place) is out of training in every light and at every yaw.

    These are the combinations of the named clips, and one in ten of the others.
    """
    parts = subject.kind, subject.color, subject.pattern, place
    return parts in NAMED_COMBINATIONS or _one_in_ten(*parts)


def held_out(subject: Subject, place: str, hour: str, yaw: float) -> bool:
    """Whether training never shows this: :func:`never_seen`, or one in ten of all combinations with hour and yaw.

    A yaw and that of the mirrored picture are held out together, since trainings mirror their pictures. Training scenes
    meet neither at any frame; named, study and benchmark cases are :func:`never_seen`.
    """
    parts = subject.kind, subject.color, subject.pattern, place, hour, min(sector(yaw), sector(180 - yaw))
    return never_seen(subject, place) or _one_in_ten(*parts)
