"""What is known of a drawn clip: true motion of every visible point, and how the object would look at other yaws."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from tave.roadside2.draw import Camera, by_distance, leg, placed, silhouette, turned, visible_faces
from tave.roadside2.scene import REACH, UNITS, Placement, Scene
from tave.roadside2.shapes import Face, shape_of

YAW_STEP = 15  # degrees between the silhouettes of :func:`other_yaws`


def _faces(scene: Scene, frame: int, size: int) -> tuple[np.ndarray, list[tuple[Placement, Face, np.ndarray]]]:
    """Return for each pixel ``H W`` the number of the face that is seen, -1 for none, and the faces.

    A face's number is its place in the list; the last item of an entry is the world's normal. Wheels have no number.
    """
    camera, shape, unit = Camera.of(scene, frame), shape_of(scene.subject), size / UNITS
    numbers, found = np.full((size, size), -1, np.int32), []

    def fill(points: np.ndarray, number: int) -> None:
        cv2.fillPoly(numbers, [np.rint((points * unit - 0.5) * 16).astype(np.int32)], (number,), shift=4)

    for _, placement in by_distance(scene, frame):
        if scene.subject.walks:
            for polygon, _ in leg(scene, frame, placement, camera):
                fill(polygon, -1)
        for face, normal, world in visible_faces(shape, placement, camera):
            outline = face.patches[0]
            fill(camera.project(world[outline.first : outline.last]), len(found))
            found.append((placement, face, normal))
        for wheel in shape.wheels:
            for side in (-wheel.outside, wheel.outside):
                middle = placed(np.array([[wheel.x, wheel.radius, side]]), placement, turned(placement))
                x, y = camera.project(middle)[0]
                radius = wheel.radius * camera.lens / max(1.0, float(middle[0, 2]))
                fill(
                    np.array(
                        [
                            (x - radius, y - radius),
                            (x + radius, y - radius),
                            (x + radius, y + radius),
                            (x - radius, y + radius),
                        ]
                    ),
                    -1,
                )
    return numbers, found


def true_motion(scene: Scene, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the object's points of ``frame`` were in the frame before.

    Returns the flow ``2 H W`` float32 in pixels (the point at p was at p + flow), 0 where it doesn't count, and whether
    it counts, ``H W`` bool: a point of a flat face, seen in both frames, in front of which nothing passes. Wheels and
    legs don't count.
    """
    now, before = Camera.of(scene, frame), Camera.of(scene, frame - 1)
    numbers, faces = _faces(scene, frame, size)
    earlier, known = _faces(scene, frame - 1, size)
    numbered = dict(enumerate(scene.placements(frame)))
    old = dict(enumerate(scene.placements(frame - 1)))
    flow, counts = np.zeros((2, size, size), np.float32), np.zeros((size, size), bool)
    unit, origin = size / UNITS, np.array([0.0, scene.eye, 0.0])
    shown = silhouette(scene, frame, size) > 0.98
    shown_before = silhouette(scene, frame - 1, size) > 0.98
    for number, (placement, face, normal) in enumerate(faces):
        rows, columns = np.nonzero((numbers == number) & shown)
        if len(rows) == 0:
            continue
        instance = next(key for key, each in numbered.items() if each == placement)
        u, v = (columns + 0.5) / unit, (rows + 0.5) / unit
        rays = np.stack(
            [
                (u - UNITS / 2 - now.shift[0]) / now.lens,
                -(v - now.horizon - now.shift[1]) / now.lens,
                np.ones_like(u),
            ],
            1,
        )
        rotation, corner = turned(placement), shape_of(scene.subject).corners[face.patches[0].first]
        plane = normal @ (placed(corner[None], placement, rotation)[0] - origin)
        world = origin + rays * (plane / (rays @ normal))[:, None]
        own = (world - (placement.x, placement.y, placement.z)) @ rotation
        was = old[instance]
        there = before.project(placed(own, was, turned(was))) * unit - 0.5
        x, y = np.rint(there).astype(int).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        x, y = x.clip(0, size - 1), y.clip(0, size - 1)
        same = {i for i, (place, other, _) in enumerate(known) if other is face and place == was}
        counts[rows, columns] = inside & np.isin(earlier[y, x], list(same)) & shown_before[y, x]
        flow[:, rows, columns] = there.T - np.stack([columns, rows])
    return np.where(counts, flow, 0), counts  # of a face seen edge on, what doesn't count may be huge


def other_yaws(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the object's masks ``360 / YAW_STEP H W`` bool, were it turned by 0, 15, 30, ... degrees from its yaw."""
    x, z = scene.path(frame)
    held = replace(scene, x=x, z=z, speed=0.0, turn=0.0, step=(scene.step + scene.speed * frame / (4 * REACH)) % 1.0)
    yaws = scene.heading(frame) + np.arange(0, 360, YAW_STEP)
    return np.stack([silhouette(replace(held, yaw=float(yaw)), frame, size) >= 0.5 for yaw in yaws])
