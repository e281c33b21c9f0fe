"""What is known of a drawn edit: the ideal clip, every mask, true motion, and the object at other yaws.

Editing never reads it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tave.roadside.camera import LIGHTS, Camera, Canvas, placed, turned
from tave.roadside.cases import SIZE, Case, frames_of, share_inside
from tave.roadside.draw import (
    View,
    far_to_near,
    leg,
    legs_layer,
    object_layer,
    occluder_layer,
    shadow_layer,
    silhouette,
    straight,
    surfaces,
    to_bytes,
    without_object,
)
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


def _with_shadow(scene: Scene, frame: int, size: int, margin: tuple[int, int]) -> np.ndarray:
    """Return the object over its shadow, where legs don't hide that, as premultiplied RGBA."""
    layer, shade = object_layer(scene, frame, size, margin), shadow_layer(scene, frame, size, margin)
    shade = shade * (1 - legs_layer(scene, frame, size, margin)[..., 3])
    alpha = layer[..., 3] + shade * (1 - layer[..., 3])
    return np.dstack([layer[..., :3], alpha])


def shadow_mask(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return where the object's shadow is seen on the ground, at least half as dark as it gets: ``H W`` bool."""
    free = (1 - silhouette(scene, frame, size)) * (1 - legs_layer(scene, frame, size)[..., 3])
    if scene.occluder:
        free = free * (1 - occluder_layer(scene, frame, size)[..., 3])
    return (shadow_layer(scene, frame, size) >= 0.5 * LIGHTS[scene.hour].strength) & (free >= 0.5)


def instance_masks(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the visible mask of each instance, ``k H W`` bool; a pixel belongs to the one that covers most of it."""
    shares = np.stack([silhouette(scene, frame, size, number) for number in range(len(scene.placements(frame)))])
    owner = shares.argmax(0) == np.arange(len(shares))[:, None, None]
    return owner & (silhouette(scene, frame, size) >= 0.5)


def truth_of(case: Case, size: int = SIZE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and facts of ``truth/``, from which an edit is measured.

    ``source``, ``ideal``, ``background`` (of the ideal clip, without object, shadow and occluder) ``f H W 3`` uint8;
    visible ``source_mask``, ``target_mask``, ``source_shadow``, ``target_shadow`` ``f H W`` bool; ``source_instances``,
    ``target_instances`` ``k f H W`` bool; ``target_layer`` RGBA, object and shadow, with margins of H/16 and W/8, to
    compose the ideal clip at small shifts; ``occluder`` RGBA; ``source_motion``, ``target_motion`` ``f-1 2 H W``
    float16 and ``source_counted``, ``target_counted`` ``f-1 H W`` bool, see :func:`true_motion`; ``target_yaws``
    ``f 24 H W`` bool, see :func:`other_yaws`; ``photo_mask`` ``2H 2W`` uint8, alpha of the object in the target image.
    ``target_inside``: share of the target's silhouette inside the picture, per frame; ``still_camera``: whether the
    background stands still.
    """
    ideal, moments = case.ideal, range(case.source.frames)
    margin = size // 8, size // 16
    arrays = {
        "background": np.stack([to_bytes(without_object(ideal, i, size)) for i in moments]),
        "target_layer": np.stack([straight(_with_shadow(ideal, i, size, margin)) for i in moments]),
        "occluder": np.stack([straight(occluder_layer(case.source, i, size)) for i in moments]),
        "target_yaws": np.stack([other_yaws(ideal, i, size) for i in moments]),
        "photo_mask": to_bytes(object_layer(case.photo, 0, 2 * size)[..., 3]),
        "source": frames_of(case.source, size),
        "ideal": frames_of(ideal, size),
    }
    for name, scene in (("source", case.source), ("target", ideal)):
        arrays[f"{name}_mask"] = np.stack([silhouette(scene, i, size) >= 0.5 for i in moments])
        arrays[f"{name}_shadow"] = np.stack([shadow_mask(scene, i, size) for i in moments])
        arrays[f"{name}_instances"] = np.stack([instance_masks(scene, i, size) for i in moments], 1)
        flows, counted = zip(*(true_motion(scene, i, size) for i in moments[1:]), strict=True)
        arrays[f"{name}_motion"] = np.stack(flows).astype(np.float16)
        arrays[f"{name}_counted"] = np.stack(counted)
    described = {
        "source": {**asdict(case.source.subject), "place": case.source.place},
        "target": {**asdict(case.target), "place": case.source.place},
        "target_inside": [round(share_inside(ideal, i, size), 4) for i in moments],
        "yaw": [round(case.source.heading(i), 3) for i in moments],
        "hour": case.source.hour,
        "photograph": {"yaw": case.photo.yaw, "hour": case.photo.hour, "place": case.photo.place},
        "still_camera": (case.source.pan, case.source.tilt) == (0, 0),
    }
    for part in (described["source"], described["target"]):
        part["vehicle"] = part.pop("kind")
    return arrays, described
