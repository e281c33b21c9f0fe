"""Measure the trained networks on held-out scenes, against the target values of the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tave.backbone import Backbone
from tave.correction import Background, Correction
from tave.denoiser import Denoiser
from tave.encoders import Condition, decode, encode, encode_text, image_embedding, noise_embedding
from tave.inversion import Trajectory
from tave.regions import pieces_with, without_specks
from tave.roadside.draw import draw, legs_layer, outline_box, silhouette, to_bytes, without_object
from tave.roadside.pretrain.data import box_of, photograph_picture, square_crop, to_signed
from tave.roadside.pretrain.networks import JUDGE_SIZE, VISION_SIZE, Embed
from tave.roadside.sample import patterns_of, photograph, places_of, sample_scene
from tave.roadside.scene import COLORS, HOURS, KINDS, PATTERNS, UNITS, Scene, Subject, caption, scene_caption
from tave.roadside.scene import held_out as never_trained
from tave.sampling import sample
from tave.schedule import Schedule, add_noise
from tave.video.frames import to_pixels

ATTRIBUTES = {"vehicle": "kind", "color": "color", "pattern": "pattern"}  # the judge's -> those of a Subject
SHOWN = {"vehicle": "shape", "color": "colour", "pattern": "pattern"}  # and their names in the card
HOLE = (0.42, 0.7)  # height and width of the hole that the UNet fills, as shares of the picture
CHANGED = 0.22  # of the mean level of the empty scene: a pixel that differs as much from it shows an object
LEAST = 0.25  # of the largest piece: a smaller one is a speck (a pair of shoes is two pieces)
STEPS, GUIDANCE = 25, 3.0  # of the UNet's samples
TARGETS = {
    "held-out frames": {},
    "text only": {"vehicle": 90.0, "color": 95.0},
    "text and image": {"pattern": 80.0},
    "image only": {"vehicle": 80.0, "color": 90.0},
}


@dataclass(frozen=True)
class Mark:
    """A line of the model card: what was measured, its unit, and the target value, if there is one."""

    part: str
    figure: float
    target: float | None = None
    unit: str = "%"

    @property
    def line(self) -> str:
        target = "" if self.target is None else f"{self.target:g} {self.unit}"
        passed = "" if self.target is None else "yes" if self.figure >= self.target else "no"
        return f"| {self.part} | {self.figure:.1f} {self.unit} | {target} | {passed} |"


@dataclass(frozen=True)
class HeldOut:
    """Held-out scenes, their frames ``n H W 3`` uint8 and silhouettes ``n H W`` bool.

    photos: target images ``n V V 3`` uint8 of the same objects, held out too, in other places, any light, any side.
    """

    scenes: list[Scene]
    frames: np.ndarray
    masks: np.ndarray
    photos: np.ndarray

    def truth(self, attribute: str) -> list[str]:
        return [getattr(scene.subject, ATTRIBUTES[attribute]) for scene in self.scenes]


def held_out_frames(count: int, size: int, seed: int = 7) -> HeldOut:
    """Draw ``count`` frames of held-out combinations and seeds, the whole object inside the picture."""
    rng, scenes = np.random.default_rng(seed), []
    while len(scenes) < count:
        scene = sample_scene(rng, unseen=True)
        x0, _, x1, y1 = outline_box(scene, scene.frames // 2)
        if scene.occluder is None and x0 > 1 and x1 < UNITS - 1 and y1 < UNITS - 1:
            scenes.append(scene)
    return held_out(scenes, size, seed)


def held_out(scenes: list[Scene], size: int, seed: int = 7) -> HeldOut:
    """Draw each scene's middle frame, and a photograph of its object."""
    rng, moments = np.random.default_rng((seed, 1)), [(scene, scene.frames // 2) for scene in scenes]
    frames = np.stack([to_bytes(draw(scene, moment, size)) for scene, moment in moments])
    masks = np.stack([silhouette(scene, moment, size) >= 0.5 for scene, moment in moments])
    return HeldOut(scenes, frames, masks, np.stack([_photo(scene, rng) for scene in scenes]))


def _photo(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    photo = photograph_of(scene, rng)
    return photograph_picture(photo, VISION_SIZE, cut=False)


def photograph_of(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a photograph of the scene's object in another place, whose combination and seed are held out."""
    places = [place for place in places_of(scene.subject) if place != scene.place]
    for _ in range(10_000):
        place, hour, yaw = str(rng.choice(places)), str(rng.choice(HOURS)), float(rng.uniform(0, 360))
        if never_trained(scene.subject, place, hour, yaw):
            sun = float(rng.uniform(0, 360))
            return photograph(scene.subject, place, scene.seed + 1, yaw=yaw, hour=hour, sun=sun)
    raise ValueError(f"no photograph of {scene.subject} is held out: give fewer exam_frames or exam_samples")


def captions_by_class() -> dict[str, dict[str, list[str]]]:
    """Return the captions of each of the judge's classes, in the words of the training."""
    short = {(kind, color): caption(Subject(kind, color)) for kind in KINDS for color in COLORS}
    patterned: dict[str, list[str]] = {}
    for pattern in PATTERNS:
        kinds = [kind for kind in KINDS if pattern in patterns_of(kind)]
        subjects = [Subject(k, c, pattern, a) for k in kinds for c in COLORS for a in COLORS if a != c]
        patterned[pattern] = list(dict.fromkeys(caption(subject, pattern=True) for subject in subjects))
    return {
        "vehicle": {kind: [short[kind, color] for color in COLORS] for kind in KINDS},
        "color": {color: [short[kind, color] for kind in KINDS] for color in COLORS},
        "pattern": patterned,
    }


@torch.no_grad()
def classify(pictures: Tensor, embed: Embed, classes: Mapping[str, list[str]]) -> list[str]:
    """Return the class of the closest caption for each of ``n 3 V V``."""
    texts = [text for group in classes.values() for text in group]
    owner = [name for name, group in classes.items() for _ in group]
    images, words = embed(pictures, texts)
    best = (F.normalize(images, dim=-1) @ F.normalize(words, dim=-1).T).argmax(1)
    return [owner[int(i)] for i in best]


def share(found: list[str], truth: list[str]) -> float:
    """Return the percentage of equal entries."""
    return 100 * float(np.mean([a == b for a, b in zip(found, truth, strict=True)]))


def examine_autoencoder(backbone: Backbone, sheet: HeldOut) -> list[Mark]:
    frames = to_signed(sheet.frames)
    error = (decode(backbone.vae, encode(backbone.vae, frames)) - frames).square() / 4
    inside = torch.from_numpy(sheet.masks)[:, None].expand_as(error)
    whole, within = (float(-10 * torch.log10(each.mean())) for each in (error, error[inside]))
    return [
        Mark("autoencoder, whole frames", whole, 30, "dB"),
        Mark("autoencoder, inside the object", within, 26, "dB"),
    ]


def examine_clip(embed: Embed, sheet: HeldOut, size: int) -> list[Mark]:
    """Measure shape and colour in whole frames and in photographs from every side."""
    frames = [square_crop(frame, (0, 0, frame.shape[1], frame.shape[0]), size, 0.0) for frame in sheet.frames]
    classes, marks = captions_by_class(), []
    for name, pictures in (("whole frames", np.stack(frames)), ("photographs", sheet.photos)):
        for kind in ("vehicle", "color"):
            found = classify(to_signed(pictures), embed, classes[kind])
            marks.append(Mark(f"CLIP, {name}: {SHOWN[kind]}", share(found, sheet.truth(kind)), 95))
    return marks


def examine_judge(judge: Embed, sheet: HeldOut) -> list[Mark]:
    crops = [square_crop(f, box_of(m), JUDGE_SIZE) for f, m in zip(sheet.frames, sheet.masks, strict=True)]
    seen = to_signed(np.stack(crops))
    return [
        Mark(f"judge: {SHOWN[kind]}", share(classify(seen, judge, classes), sheet.truth(kind)), 95)
        for kind, classes in captions_by_class().items()
    ]


# ---- UNet ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holes:
    """Held-out scenes without their object, and holes of one size where it is sampled.

    empty: ``n 3 H W`` in [-1, 1], decoded; latents ``n 1 c h w``; cells ``n 1 1 h w``, 1 = hole; legs ``n H W`` bool,
    beside the true object, which aren't part of what the judge is shown.
    """

    empty: Tensor
    latents: Tensor
    cells: Tensor
    legs: Tensor


def holes(backbone: Backbone, sheet: HeldOut) -> Holes:
    """Return the held-out roads with a hole in the object's place, standing on its ground line."""
    size, cells = sheet.frames.shape[1], backbone.unet.config["sample_size"]
    roads = [to_bytes(without_object(scene, scene.frames // 2, size)) for scene in sheet.scenes]
    latents = encode(backbone.vae, to_signed(np.stack(roads)))
    hole = torch.zeros(len(roads), 1, 1, cells, cells)
    high, wide = (round(share * cells) for share in HOLE)
    for one, mask in zip(hole, sheet.masks, strict=True):
        x0, _, x1, y1 = (edge * cells / size for edge in box_of(mask))
        bottom = min(cells, math.ceil(y1) + 1)
        left = min(max(0, round((x0 + x1 - wide) / 2)), cells - wide)
        one[0, 0, bottom - high : bottom, left : left + wide] = 1
    legs = np.stack([legs_layer(scene, scene.frames // 2, size)[..., 3] > 0 for scene in sheet.scenes]) & ~sheet.masks
    return Holes(decode(backbone.vae, latents), latents.transpose(0, 1), hole, torch.from_numpy(legs))


def recognised(frames: np.ndarray, into: Holes, judge: Embed, classes: Mapping[str, list[str]]) -> list[str]:
    """Return the judge's class of what differs from the empty scene in each hole, else "nothing".

    Specks don't count, and neither do pieces wholly in the upper half of a hole: objects stand on the ground, and a
    skyline that the UNet invents behind one is rarely the true one. True frames under the same rule give the ceiling.
    """
    pictures = to_signed(frames)
    inside = F.interpolate(into.cells[:, 0], pictures.shape[-2:], mode="nearest-exact")[:, 0]
    level = (into.empty + 1).mean(dim=(1, 2, 3))[:, None, None]
    changed = ((pictures - into.empty).abs().mean(1) > CHANGED * level).float() * inside * ~into.legs
    # most of a pixel's neighbourhood has to differ: the autoencoder's artefacts are thin
    solid = (F.avg_pool2d(changed[:, None], 3, 1, 1)[:, 0] > 0.5).numpy()
    hole = (inside > 0).numpy()
    lower = hole.cumsum(1) > hole.sum(1, keepdims=True) / 2
    standing = [pieces_with(mask[None], below[None]) for mask, below in zip(solid, lower, strict=True)]
    found = {i: without_specks(mask, LEAST)[0] for i, mask in enumerate(standing) if mask.any()}
    if not found:
        return ["nothing"] * len(frames)
    crops = np.stack([square_crop(frames[i], box_of(mask), JUDGE_SIZE) for i, mask in found.items()])
    names = dict(zip(found, classify(to_signed(crops), judge, classes), strict=True))
    return [names.get(i, "nothing") for i in range(len(frames))]


def sample_into(backbone: Backbone, condition: Condition, into: Holes, steps: int = STEPS) -> np.ndarray:
    """Sample a picture into each hole, ``b H W 3`` uint8; the rest is kept at the road's latents."""
    schedule = Schedule.from_scheduler(backbone.scheduler, steps)
    noise = torch.randn(into.latents.transpose(0, 1).shape, generator=torch.Generator().manual_seed(3)).transpose(0, 1)
    noised = [add_noise(into.latents, noise, alpha) for alpha in schedule.alphas[1:]]
    kept: list[Correction] = [Background(into.cells, Trajectory(torch.stack([into.latents, *noised])))]
    denoiser = Denoiser(backbone.unet, backbone.scheduler)
    made = sample(denoiser, schedule, noise, condition, guidance_scale=GUIDANCE, corrections=kept)
    return to_pixels(decode(backbone.vae, made.transpose(0, 1)))


def conditions_for(backbone: Backbone, sheet: HeldOut, *, text: bool, image: bool) -> Condition:
    """Return the scenes' captions (or none) and photographs (or none) as a condition; no caption names a pattern."""
    prompts = [scene_caption(s) if text else "" for s in sheet.scenes]
    embeds = image_embedding(backbone, to_signed(sheet.photos))
    noise = torch.randn(1, embeds.shape[1], generator=torch.Generator().manual_seed(5))
    vectors = noise_embedding(backbone, embeds, 0, noise)[:, None]
    null = encode_text(backbone, [""]).expand(len(prompts), -1, -1)
    return Condition(encode_text(backbone, prompts), vectors if image else torch.zeros_like(vectors), null)


def examine_unet(backbone: Backbone, judge: Embed, sheet: HeldOut) -> tuple[list[Mark], dict[str, np.ndarray]]:
    """Measure what is sampled for text, for text and image, and for the image alone.

    Also returns the pictures of each row of a sheet, which begin with one of each kind of object.
    """
    classes, into = captions_by_class(), holes(backbone, sheet)
    pictures, marks = {"held-out frames": sheet.frames}, []
    photos = [square_crop(photo, (0, 0, *photo.shape[:2]), sheet.frames.shape[1], 0.0) for photo in sheet.photos]
    kinds = sheet.truth("vehicle")
    first = sorted(range(len(kinds)), key=lambda i: kinds[:i].count(kinds[i]))  # one of each kind, then another of each
    for name in ("text only", "text and image", "image only"):
        condition = conditions_for(backbone, sheet, text="text" in name, image="image" in name)
        pictures[name] = sample_into(backbone, condition, into)
    for name, shown in pictures.items():
        for kind in ATTRIBUTES:
            right = share(recognised(shown, into, judge, classes[kind]), sheet.truth(kind))
            marks.append(Mark(f"UNet, {name}: {SHOWN[kind]}", right, TARGETS[name].get(kind)))
    return marks, {name: each[first] for name, each in ({"photographs": np.stack(photos)} | pictures).items()}


def picture_sheet(pictures: Mapping[str, np.ndarray], columns: int = 12) -> Image.Image:
    """Return one row per kind with its first pictures."""
    return Image.fromarray(np.concatenate([np.concatenate(list(each[:columns]), 1) for each in pictures.values()]))


def card(marks: list[Mark], facts: Mapping[str, str]) -> str:
    """Return the model card in Markdown."""
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    lines = "\n".join(mark.line for mark in marks)
    return f"""# Roadside backbone and judge

Trained on drawn pictures by `python -m tave.roadside.pretrain`; the licence is that of the code. The backbone knows six
vehicles and three kinds of shoes, in six places and four lights, from every side, and nothing else. The judge is only
used to measure. docs/drawn_world.md says how the shipped weights were trained and what was tried for values they miss.

{listed}

Measured by the same command on held-out combinations and skylines. The UNet fills a hole in an empty scene, as an edit
does, from pure noise; the hole's size is the same for all objects. The judge classifies what then stands on the ground
and differs from the empty scene: a skyline invented behind the object is ignored, altered road that touches the object
counts as part of it. `held-out frames` are true pictures under the same rule, the ceiling. Frames show the whole
object with nothing in front of it. Images are photographs of the object in another place, from any side, in any light,
neither cropped nor cut out; their combinations and skylines are held out, too.

![Photographs, held-out frames, and samples for text alone, text and image, image alone](samples.png)

| part | measured | target value | passed |
| --- | --- | --- | --- |
{lines}
"""
