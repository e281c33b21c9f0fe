"""What the trained parts can do on scenes that they never saw, against the bars that they are meant to pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tave.backbone import Backbone
from tave.conditions import Condition, draw_noise, encode_condition, encode_text
from tave.correction import Background, Correction
from tave.denoiser import Denoiser
from tave.inversion import Trajectory
from tave.latents import decode, encode
from tave.reference.regions import largest
from tave.roadside.draw import background, draw, silhouette, to_bytes
from tave.roadside.pretrain.lessons import box_of, square_crop
from tave.roadside.pretrain.training import to_signed
from tave.roadside.scene import COLORS, PATTERNS, VEHICLES, Scene, Vehicle, caption, portrait, sample_scene
from tave.sampling import sample
from tave.schedule import Schedule, add_noise

Embed = Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mark:
    """One line of the model card: what was measured, in which unit, and the bar, if there is one."""

    part: str
    figure: float
    bar: float | None = None
    unit: str = "%"

    @property
    def passed(self) -> str:
        return "" if self.bar is None else "yes" if self.figure >= self.bar else "no"


@dataclass(frozen=True)
class Sheet:
    """Examination questions: scenes, their frames ``n H W 3`` uint8, silhouettes ``n H W`` bool."""

    scenes: list[Scene]
    frames: np.ndarray
    masks: np.ndarray


def questions(count: int, size: int, seed: int = 7) -> Sheet:
    """``count`` frames of held-out combinations and held-out skylines, the vehicle well inside the picture."""
    rng, scenes, frames, masks = np.random.default_rng(seed), [], [], []
    while len(scenes) < count:
        scene = sample_scene(rng, examining=True)
        moment = scene.frames // 2
        mask = silhouette(scene, moment, size) >= 0.5
        if scene.occluder or mask[:, [0, -1]].any() or not mask.any():
            continue
        scenes.append(scene)
        frames.append(to_bytes(draw(scene, moment, size)))
        masks.append(mask)
    return Sheet(scenes, np.stack(frames), np.stack(masks))


def captions_by_class() -> dict[str, dict[str, list[str]]]:
    """The judge's classes and the captions that stand for each: the same grammar as in training."""
    short = {(kind, color): caption(Vehicle(kind, color)) for kind in VEHICLES for color in COLORS}
    named = [Vehicle(k, c, p, a) for k in VEHICLES for c in COLORS for p in PATTERNS for a in COLORS if a != c]
    patterned: dict[str, list[str]] = {pattern: [] for pattern in PATTERNS}
    for vehicle in named:
        text = caption(vehicle, pattern=True)
        if text not in patterned[vehicle.pattern]:
            patterned[vehicle.pattern].append(text)
    return {
        "vehicle": {kind: [short[kind, color] for color in COLORS] for kind in VEHICLES},
        "color": {color: [short[kind, color] for kind in VEHICLES] for color in COLORS},
        "pattern": patterned,
    }


@torch.no_grad()
def answers(pictures: Tensor, embed: Embed, classes: dict[str, list[str]]) -> tuple[list[str], Tensor]:
    """The class of the closest caption for each of ``n 3 V V``, and that caption's cosine ``n``."""
    texts = [text for group in classes.values() for text in group]
    owner = [name for name, group in classes.items() for _ in group]
    images, words = embed(pictures, texts)
    closeness, best = (F.normalize(images, dim=-1) @ F.normalize(words, dim=-1).T).max(1)
    return [owner[int(i)] for i in best], closeness


def share(found: list[str], truth: list[str]) -> float:
    return 100 * float(np.mean([a == b for a, b in zip(found, truth, strict=True)]))


def examine_autoencoder(backbone: Backbone, sheet: Sheet) -> list[Mark]:
    frames = to_signed(sheet.frames)
    error = (decode(backbone.vae, encode(backbone.vae, frames)) - frames).square() / 4
    inside = torch.from_numpy(sheet.masks)[:, None].expand_as(error)
    whole, object_only = (float(-10 * torch.log10(e.mean())) for e in (error, error[inside]))
    return [
        Mark("autoencoder, whole frames", whole, 30, "dB"),
        Mark("autoencoder, inside the object", object_only, 26, "dB"),
    ]


def examine_clip(embed: Embed, sheet: Sheet, size: int) -> list[Mark]:
    both = {text: [text] for kind in VEHICLES for color in COLORS for text in [caption(Vehicle(kind, color))]}
    truth = [caption(scene.vehicle) for scene in sheet.scenes]
    whole = np.stack([square_crop(f, (0, 0, f.shape[1], f.shape[0]), size, 0.0) for f in sheet.frames])
    alone = [portrait(scene.vehicle, scene.place, scene.seed) for scene in sheet.scenes]
    large = np.stack([to_bytes(draw(scene, 0, size)) for scene in alone])
    return [
        Mark("CLIP, whole frames, vehicle and colour", share(answers(to_signed(whole), embed, both)[0], truth), 95),
        Mark("CLIP, portraits, vehicle and colour", share(answers(to_signed(large), embed, both)[0], truth), 95),
    ]


def examine_judge(embed: Embed, sheet: Sheet, size: int) -> list[Mark]:
    crops = [square_crop(f, box_of(m), size) for f, m in zip(sheet.frames, sheet.masks, strict=True)]
    seen = to_signed(np.stack(crops))
    return [
        Mark(f"judge, {kind}", share(answers(seen, embed, classes)[0], _truth(sheet, kind)), 95)
        for kind, classes in captions_by_class().items()
    ]


def _truth(sheet: Sheet, kind: str) -> list[str]:
    attribute = {"vehicle": "kind", "color": "color", "pattern": "pattern"}[kind]
    return [getattr(scene.vehicle, attribute) for scene in sheet.scenes]


HOLE = (0.42, 0.7)  # height and width of the hole that the UNet is asked to fill, as shares of the picture
CHANGED = 0.25  # of the range [-1, 1]: a pixel that differs so much from the empty road shows an object


@dataclass(frozen=True)
class Holes:
    """Held-out roads without their vehicle, and where it is to be painted: the same size of hole whatever was there.

    empty: ``n 3 H W`` in [-1, 1], as the autoencoder returns it; latents ``n 1 c h w``; cells ``n 1 1 h w``, 1 = hole.
    """

    empty: Tensor
    latents: Tensor
    cells: Tensor


def holes(backbone: Backbone, sheet: Sheet) -> Holes:
    """The held-out scenes with a hole around the vehicle's place, standing on its ground line."""
    size, cells = sheet.frames.shape[1], backbone.unet.config["sample_size"]
    roads = [to_bytes(background(scene, scene.frames // 2, size)) for scene in sheet.scenes]
    latents = encode(backbone.vae, to_signed(np.stack(roads)))
    hole = torch.zeros(len(roads), 1, 1, cells, cells)
    high, wide = (round(share * cells) for share in HOLE)
    for one, mask in zip(hole, sheet.masks, strict=True):
        x0, _, x1, y1 = (edge * cells / size for edge in box_of(mask))
        bottom = min(cells, math.ceil(y1) + 1)
        left = min(max(0, round((x0 + x1 - wide) / 2)), cells - wide)
        one[0, 0, bottom - high : bottom, left : left + wide] = 1
    return Holes(decode(backbone.vae, latents), latents.transpose(0, 1), hole)


def seen(frames: np.ndarray, found: Holes, embed: Embed, size: int, classes: dict[str, list[str]]) -> list[str]:
    """The judge's answer for the largest thing in the hole that differs from the empty road; "nothing" where nothing does.

    A true frame is answered by the same rule, so its figures are the ceiling.
    """
    pictures = to_signed(frames)
    inside = F.interpolate(found.cells[:, 0], pictures.shape[-2:], mode="nearest-exact")[:, 0]
    changed = ((pictures - found.empty).abs().mean(1) > CHANGED).float() * inside
    # a pixel counts where most of its neighbourhood changed too: the autoencoder's own ripples are thin
    solid = (F.avg_pool2d(changed[:, None], 3, 1, 1)[:, 0] > 0.5).numpy()
    solid = np.stack([largest(mask) for mask in solid])
    shown = [i for i, mask in enumerate(solid) if mask.any()]
    if not shown:
        return ["nothing"] * len(frames)
    crops = np.stack([square_crop(frames[i], box_of(solid[i]), size) for i in shown])
    told = dict(zip(shown, answers(to_signed(crops), embed, classes)[0], strict=True))
    return [told.get(i, "nothing") for i in range(len(frames))]


def paint(
    backbone: Backbone, condition: Condition, *, steps: int, guidance_scale: float, seed: int, into: Holes | None = None
) -> np.ndarray:
    """Sample one picture for each `b` of ``condition``: ``b H W 3`` uint8.

    ``into``: fill these holes, the rest held at the road's own latents, noised anew to each level's share.
    """
    cells, channels = backbone.unet.config["sample_size"], backbone.unet.config["in_channels"]
    schedule = Schedule.from_scheduler(backbone.scheduler, steps)
    denoiser = Denoiser(backbone.unet, backbone.scheduler)
    noise = torch.randn(1, len(condition.text), channels, cells, cells, generator=torch.Generator().manual_seed(seed))
    noise = noise.transpose(0, 1)
    kept: list[Correction] = []
    if into is not None:
        noised = [add_noise(into.latents, noise, alpha) for alpha in schedule.alphas[1:]]
        kept = [Background(into.cells, Trajectory(torch.stack([into.latents, *noised])))]
    made = sample(denoiser, schedule, noise, condition, guidance_scale=guidance_scale, corrections=kept)
    return _pixels(decode(backbone.vae, made.transpose(0, 1)))


def _pixels(frames: Tensor) -> np.ndarray:
    return ((frames + 1) * 127.5 + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def conditions_for(backbone: Backbone, sheet: Sheet, *, text: bool, image: bool) -> Condition:
    """Held-out requests: the scene's caption (or none) and the scene's frame (or none); no caption names a pattern."""
    prompts = [caption(s.vehicle, s.heading, s.place) if text else "" for s in sheet.scenes]
    noise = draw_noise(backbone, torch.Generator().manual_seed(5))
    one = encode_condition(backbone, "", to_signed(sheet.frames), noise=noise)
    told = one.image.transpose(0, 1)
    return Condition(
        encode_text(backbone, prompts),
        told if image else torch.zeros_like(told),
        one.null_text.expand(len(prompts), -1, -1),
    )


def examine_unet(
    backbone: Backbone, judge: Embed, sheet: Sheet, size: int, *, steps: int = 25, guidance_scale: float = 3.0
) -> tuple[list[Mark], dict[str, np.ndarray]]:
    """What is painted into holes for text, for text and image, for the image alone; with the pictures, to be looked at."""
    classes, into = captions_by_class(), holes(backbone, sheet)
    pictures, marks = {"held-out frames": sheet.frames}, []
    bars: dict[str, dict[str, float]] = {
        "held-out frames": {},
        "text only": {"vehicle": 90, "color": 95},
        "text and image": {"pattern": 80},
        "image only": {"vehicle": 80, "color": 90},
    }
    for name, text, image in (("text only", True, False), ("text and image", True, True), ("image only", False, True)):
        condition = conditions_for(backbone, sheet, text=text, image=image)
        pictures[name] = paint(backbone, condition, steps=steps, guidance_scale=guidance_scale, seed=3, into=into)
    for name, painted in pictures.items():
        for kind in ("vehicle", "color", "pattern"):
            right = share(seen(painted, into, judge, size, classes[kind]), _truth(sheet, kind))
            marks.append(Mark(f"UNet, {name}: {kind}", right, bars[name].get(kind)))
    return marks, pictures


def picture_sheet(pictures: dict[str, np.ndarray], columns: int = 10) -> Image.Image:
    """Rows of the first pictures of each kind."""
    return Image.fromarray(np.concatenate([np.concatenate(list(p[:columns]), 1) for p in pictures.values()]))


def card(marks: list[Mark], about: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    rows = [
        f"| {m.part} | {m.figure:.1f} {m.unit} | {'' if m.bar is None else f'{m.bar:g} {m.unit}'} | {m.passed} |" for m in marks
    ]
    facts = [f"- {key}: {value}" for key, value in about.items()]
    return "\n".join(
        [
            "# Roadside backbone and judge",
            "",
            "Trained from nothing on drawn pictures by `python -m tave.roadside.pretrain`; the licence is that of the code.",
            "It knows six vehicles in five places and nothing else. The judge is for measuring alone.",
            "",
            *facts,
            "",
            "Measured by the same command on held-out combinations and skylines. The UNet paints into a hole in an empty road,",
            "as an edit does, from pure noise; the hole's size tells nothing of the vehicle. Its rows are the judge's answers",
            "for what then differs from the empty road; `held-out frames` is their ceiling, true pictures under the same rule.",
            "",
            "| part | measured | bar | passed |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
