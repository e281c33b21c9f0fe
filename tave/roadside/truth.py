"""What is known of a drawn clip: true motion of every visible point, and how the object would look at other yaws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tave.roadside.draw import Camera, Canvas, View, far_to_near, leg, placed, silhouette, surfaces, turned
from tave.roadside.scene import UNITS, Placement, Scene
from tave.roadside.shapes import Face, shape_of

YAW_STEP = 15  # degrees between the silhouettes of :func:`other_yaws`
_WHOLE = 0.98  # share of a pixel that the object covers where its motion counts


def _faces_seen(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the number of the face that each pixel shows, ``H W`` int, -1 for none.

    It is the face's number in the shape, plus the number of faces for the second instance. Wheels and legs have none.
    """
    camera, shape, canvas = Camera.of(scene, frame), shape_of(scene.subject), Canvas(size, (0, 0), 1, 1, np.int32)
    canvas.pixels[:] = -1
    for number, placement in far_to_near(scene, frame):
        for surface in surfaces(View.of(canvas, camera, placement), shape):
            seen = -1 if surface.face < 0 else surface.face + number * len(shape.faces)
            canvas.fill(surface.patches[0][0], (seen,))
        if scene.subject.walks:
            for polygon, _ in leg(scene, frame, number, camera, above=shape.collar):
                canvas.polygon(polygon, (-1,))
    return canvas.pixels[..., 0]


def _on_face(
    scene: Scene, frame: int, size: int, placement: Placement, face: Face, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``pixels`` ``n 2`` (x, y) whose rays meet ``face``, and where: the object's coordinates ``n 3``.

    A pixel on a face's edge may lie beyond the horizon of its plane.
    """
    camera, rotation = Camera.of(scene, frame), turned(placement)
    across, down = ((pixels + 0.5) * UNITS / size - (UNITS / 2, scene.horizon) - camera.shift).T / camera.lens
    rays, eye = np.stack([across, -down, np.ones_like(across)], 1), np.array([0.0, scene.eye, 0.0])
    normal, corner = rotation @ face.normal, shape_of(scene.subject).corners[face.patches[0].first]
    met = rays @ normal < -1e-6
    pixels, rays = pixels[met], rays[met]
    depth = normal @ (placed(corner, placement, rotation) - eye) / (rays @ normal)
    return pixels, (eye + rays * depth[:, None] - (placement.x, placement.y, placement.z)) @ rotation


def true_motion(scene: Scene, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the object's points of ``frame`` were in the frame before.

    Returns the flow ``2 H W`` float32 in pixels (the point at p was at p + flow), and whether it counts, ``H W`` bool:
    a point of a flat face, seen in both frames, in front of which nothing passes. Wheels and legs don't count; where a
    flow doesn't count it is 0.
    """
    faces, camera = shape_of(scene.subject).faces, Camera.of(scene, frame - 1)
    seen, earlier = (_faces_seen(scene, i, size) for i in (frame, frame - 1))
    seen[silhouette(scene, frame, size) <= _WHOLE] = -1
    earlier[silhouette(scene, frame - 1, size) <= _WHOLE] = -1
    flow, counts = np.zeros((2, size, size), np.float32), np.zeros((size, size), bool)
    for number in np.unique(seen[seen >= 0]):
        instance, face = divmod(int(number), len(faces))
        pixels = np.argwhere(seen == number)[:, ::-1]
        pixels, own = _on_face(scene, frame, size, scene.placements(frame)[instance], faces[face], pixels)
        was = scene.placements(frame - 1)[instance]
        there = camera.project(placed(own, was, turned(was))) * size / UNITS - 0.5
        inside = ((there >= -0.5) & (there < size - 0.5)).all(1)
        pixels, there = pixels[inside], there[inside]
        x, y = np.rint(there).astype(int).clip(0, size - 1).T
        kept = earlier[y, x] == number
        columns, rows = pixels[kept].T
        counts[rows, columns] = True
        flow[:, rows, columns] = (there - pixels)[kept].T
    return flow, counts


def other_yaws(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the object's masks ``360 / YAW_STEP H W`` bool, were it turned by 0, 15, 30, ... degrees from its yaw."""
    masks = [silhouette(_turned_by(scene, frame, angle), frame, size) >= 0.5 for angle in range(0, 360, YAW_STEP)]
    return np.stack(masks)


def _turned_by(scene: Scene, frame: int, angle: float) -> Scene:
    """Return the scene whose path is turned by ``angle`` degrees about where the object is at ``frame``."""
    changed = replace(scene, yaw=scene.yaw + angle)
    (x, z), (far_x, far_z) = scene.path(frame), changed.path(frame)
    return replace(changed, x=scene.x + x - far_x, z=scene.z + z - far_z)
