"""What a figure of one edit says in plain words: thresholds, what it is compared with, and what to change.

All thresholds are here. They are aims for one clip, not statistics: a figure says what its function in :mod:`eval`
measures and nothing beyond it, which ``meaning`` states. Where the thresholds are of a difference or a ratio, the
reference is measured by the same function on another clip (:data:`REFERENCE_WORDS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tave.config import GATE_DB

from .records import is_number
from .tables import HEADLINE

# The values that a figure is compared with, by the ending of their names.
REFERENCE_WORDS = {
    "source": "the source itself",
    "ideal": "the ideal clip",
    "floor": "floor: the unedited source",
    "ceiling": "ceiling: the ideal clip",
    "autoencoder": "the source after the autoencoder",
}
LEVELS = POOR, DOUBTFUL, OPEN, GOOD = "poor", "doubtful", "no verdict", "good"


@dataclass(frozen=True)
class Rule:
    """How one metric is read.

    ``good`` and ``poor`` bound the value from better to worse, both of them still good and still poor; what lies
    between is doubtful. Higher is better if ``good`` is above ``poor``. ``of``: "" the value itself, or a ratio to, or
    the difference from, the value of ``reference``.
    """

    title: str
    good: float
    poor: float
    meaning: str
    change: str
    reference: str = ""
    of: str = ""


@dataclass(frozen=True)
class Verdict:
    """A figure as its rule reads it. ``beside``: what the value is compared with, words -> value."""

    metric: str
    rule: Rule
    value: float
    level: str
    beside: dict[str, float]


_WIDE = "give the region with video.mask, or raise mask.dilate"
_NARROW = "give the region with video.mask, or lower mask.dilate"
_TARGET = "look at what the image encoder saw (reference.png); then raise sampler.guidance_scale or tuning.steps"
_STEADY = "leave the inter-frame correction on, for more of the steps (correction.steps); tune longer (tuning.steps)"
_SHARP = "correct fewer of the steps (correction.steps), or set correction.restore_variance=true"
_KEPT = "set sampler.composite=true and sampler.background=latents; then only the video codec is left"
# 40 dB is a root mean square error of 2.6 of 255 levels, 30 dB one of 8.
_DB = (40, 30)


def _of_values() -> dict[str, Rule]:
    """Rules of values as they are."""
    found = {
        "background_psnr_outside_mask": Rule(
            "Background outside the mask", *_DB,
            "Whether the edit kept to its own mask, in dB. A mask over everything would win this.", _KEPT,
        ),
        "background_psnr": Rule(
            "Background", *_DB,
            "How much of what is neither the old nor the new object stayed as it was, in dB.",
            f"the mask reaches beyond both objects: {_NARROW}",
        ),
        "mask_recall": Rule(
            "Old object covered", 0.95, 0.85,
            "Share of the old object's pixels in the mask. What is left out can't be edited.", _WIDE,
        ),
        "mask_iou_union": Rule(
            "Mask and both objects", 0.75, 0.5,
            "Overlap of the mask, before its margin, with the true old and new object.",
            "describe the same place in both prompts; another mask.threshold costs no network evaluation",
        ),
        "mask_area_ratio": Rule(
            "Size of the mask", 1.6, 2.5,
            "Area of the mask over that of the true old and new object. It doesn't say where the mask lies.", _NARROW,
        ),
        "residue_old": Rule(
            "Residue of the old object", 0.05, 0.3,
            "Share of the pixels vacated by the old object that still look more like the source than like the ideal "
            "clip or any colour of the target.",
            "raise mask.dilate or sampler.fresh_noise; reference.height_scale where the target is to be larger",
        ),
        "object_presence": Rule(
            "Frames that show an object", 1.0, 0.9,
            "Share of frames that differ enough from the empty scene. The old object counts too.", _TARGET,
        ),
        "frame_accuracy": Rule(
            "Frames nearer to the target prompt", 1.0, 0.5,
            "Share of frames that CLIP finds nearer to the target prompt than to the source prompt, by however little.",
            _TARGET,
        ),
    }  # fmt: skip
    kinds = {"vehicle": ("kind", 0.85, 0.5), "color": ("colour", 0.95, 0.5), "pattern": ("pattern", 0.85, 0.5)}
    for kind, (word, good, poor) in kinds.items():
        meaning = f"Share of frames in which an independent classifier names the target's {word}."
        found[f"judge_{kind}_accuracy"] = Rule(f"Right {word}", good, poor, meaning, _TARGET, "ceiling")
    return found


def _of_comparisons() -> dict[str, Rule]:
    """Rules of ratios and differences."""
    found = {}
    for ending, which in (("_crop", "object"), ("_in_annotation", "annotated object"), ("_in_mask", "mask"), ("", "")):
        where = f", cut to the {which}" if which else ""
        for name, what in (("clip_image", "target image"), ("clip_text", "target prompt")):
            meaning = f"How much nearer CLIP finds the edit to the {what} than it finds the source{where} (cosine). "
            meaning += "The size of the difference depends on the encoder."
            found[name + ending] = Rule(
                f"Likeness to the {what}{where}", 0.01, -0.01, meaning, _TARGET, "source", "difference"
            )
    for name in ("warp_error_object", "warp_error_in_annotation", "warp_error_in_mask"):
        meaning = "Flicker of the object along its motion over that of the source's own object. A blur lowers it."
        found[name] = Rule("Steadiness of the object", 1.5, 3.0, meaning, _STEADY, "source", "ratio")
    for name, reference in (
        ("object_gradient_energy", "ideal"),
        ("gradient_energy_in_annotation", "source"),
        ("gradient_energy_in_mask", "source"),
    ):
        beside = REFERENCE_WORDS[reference]
        meaning = f"Sharpness of the object over that of {beside}. Noise raises it, and a plain target has less."
        found[name] = Rule("Sharpness of the object", 0.6, 0.3, meaning, _SHARP, reference, "ratio")
    found["reconstruction_psnr"] = Rule(
        "The clip, inverted and sampled back", -GATE_DB, -2 * GATE_DB,
        "How far the inverted clip is sampled back below what the autoencoder alone allows, in dB.",
        "raise tuning.steps, inversion.steps or inversion.refine", "autoencoder", "difference",
    )  # fmt: skip
    return found


RULES = _of_values() | _of_comparisons()
UNRULED = {
    "ideal_psnr_aligned": "Nearness to the ideal clip, dB"
}  # figures that matter, for which no threshold is known


def verdicts(figures: Mapping[str, Any]) -> list[Verdict]:
    """The figures of one edit that have a rule, in the order of :data:`RULES`; ``figures``: name -> value."""
    found = []
    for metric, rule in RULES.items():
        value = figures.get(metric)
        if is_number(value):
            beside = {word: figures.get(f"{metric}_{ending}") for ending, word in REFERENCE_WORDS.items()}
            numbers = {word: float(other) for word, other in beside.items() if is_number(other)}
            found.append(Verdict(metric, rule, float(value), _level(rule, float(value), numbers), numbers))
    return found


def _level(rule: Rule, value: float, beside: Mapping[str, float]) -> str:
    """Good, doubtful or poor; no verdict where the reference is missing, or where even the ceiling is not good."""
    other = beside.get(REFERENCE_WORDS.get(rule.reference, ""))
    if rule.of:
        if other is None or (rule.of == "ratio" and other <= 0):
            return OPEN
        value = value / other if rule.of == "ratio" else value - other
    sign = 1 if rule.good > rule.poor else -1
    if not rule.of and other is not None and sign * other < sign * rule.good:
        return OPEN
    return GOOD if sign * value >= sign * rule.good else POOR if sign * value <= sign * rule.poor else DOUBTFUL


def bounds(rule: Rule) -> str:
    """The thresholds in words."""
    beside = REFERENCE_WORDS.get(rule.reference, "")
    of = {"": "", "ratio": f"divided by that of {beside}: ", "difference": f"minus that of {beside}: "}[rule.of]
    good, poor = ("at least", "at most") if rule.good > rule.poor else ("at most", "at least")
    return f"{of}good {good} {rule.good:g}, poor {poor} {rule.poor:g}"


def summary(figures: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The figures that matter, and those that are not good, a line each; and what to change, worst first."""
    read = {each.metric: each for each in verdicts(figures)}
    lines = []
    for metric in dict.fromkeys((*HEADLINE, *(name for name, each in read.items() if each.level in (POOR, DOUBTFUL)))):
        if is_number(figures.get(metric)):
            title, level = UNRULED.get(metric, metric), ""
            if metric in read:
                title, level = read[metric].rule.title, read[metric].level
            lines.append(f"{title:<56}{figures[metric]:>9.3g}  {level}".rstrip())
    bad = sorted(
        (each for each in read.values() if each.level in (POOR, DOUBTFUL)), key=lambda e: LEVELS.index(e.level)
    )
    return lines, [f"{each.rule.title[0].lower()}{each.rule.title[1:]}: {each.rule.change}" for each in bad]
