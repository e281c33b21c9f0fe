"""What is measured of an edit, where, by whom and under which name: with encoders and clips that can be predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cosine_similarity, normalize

import eval.measure
from eval.cases import Case, Masks, Request, Truth
from eval.encoders import Dino, Lpips, OpenClip, PickScore
from eval.ideal import IdealLayers
from eval.judge import KINDS, Judge, masked_crops, reference_pictures
from eval.measure import Tools, measure
from eval.metrics import FACTS, METRICS, NAMES, ClipMetric, figure
from eval.motion import Motion, gradient_energy, still, warp_error
from eval.regions import GUARD, PSNR_CAP, grow, psnr
from tave.video import Image4

FRAMES, HEIGHT, WIDTH = 3, 64, 96
GROUND, OLD, NEW, TARGET = (-0.1, 0.25, -0.1), (-1.0, -0.5, -0.25), (0.75, -1.0, 0.25), (0.5, -0.75, 0.5)
WORDS = {"a blue bus": (-1.0, -1.0, 1.0), "a red car": (1.0, -1.0, -1.0), "the old": OLD, "the new": TARGET}


def box(rows: slice, columns: slice) -> Tensor:
    region = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    region[:, rows, columns] = True
    return region


ANNOTATED, MASK = box(slice(20, 36), slice(24, 56)), box(slice(24, 40), slice(20, 52))


def painted(*layers: tuple[Tensor, tuple[float, float, float]]) -> Tensor:
    """``f 3 H W``: even ground, and boxes of one colour each on it."""
    frames = torch.tensor(GROUND)[:, None, None].expand(FRAMES, 3, HEIGHT, WIDTH).clone()
    for region, colour in layers:
        frames = torch.where(region[:, None], torch.tensor(colour)[:, None, None], frames)
    return frames


def case(**changes: Any) -> Case:
    picture = torch.tensor(TARGET)[:, None, None].expand(3, 40, 40)
    matte = torch.zeros(1, 40, 40)
    matte[:, 10:25, 5:20] = 1
    request = Request("a blue bus", "a red car", Image4(picture, matte))
    source, edited = painted((ANNOTATED, OLD)), painted((MASK, NEW))
    return replace(Case("edit", source, edited, Masks(MASK), request), **changes)


class Eye:
    """Sees the mean colour of a picture, and of words the colour that they name; a weak colour is not a strong one."""

    size, fit = 32, "stretch"

    def __init__(self, name: str) -> None:
        self.id = name

    def images(self, pictures: Tensor) -> Tensor:
        return normalize(functional.pad(pictures.mean(dim=(2, 3)), (0, 1), value=0.3), dim=1)

    def texts(self, captions: Sequence[str]) -> Tensor:
        return normalize(torch.tensor([(*WORDS[caption], 0.3) for caption in captions]), dim=1)


class Liking(Eye):
    scale = 50.0

    def score(self, pictures: Tensor, prompt: str) -> float:
        return self.scale * float((self.images(pictures) @ self.texts([prompt])[0]).mean())


class OneSided:
    """A distance that only the first clip changes, so that swapped clips are noticed."""

    id = "lpips-stub"

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        return one[:, 0] + 1


TOOLS = Tools(
    clip=Eye("clip-stub"),
    lpips=cast(Lpips, OneSided()),
    dino=cast(Dino, Eye("dino-stub")),
    pickscore=cast(PickScore, Liking("pick-stub")),
)


def values(found: Case, tools: Tools = TOOLS) -> dict[str, Any]:
    return {name: each.value for name, each in measure(found, tools).figures.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    return float(cosine_similarity(one, other, dim=0))


def test_each_encoder_measures_what_its_figure_is_named_after() -> None:
    found = case()
    figures = values(found)
    eye, liking = Eye(""), Liking("")
    words = eye.texts(["a red car"])[0]
    assert found.request.image is not None
    whole, cut = (eye.images(picture)[0] for picture in reference_pictures(*found.request.image, 224))

    def mean(frames: Tensor, other: Tensor, region: Tensor | None = None) -> float:
        looked = frames if region is None else masked_crops(frames, region, 224)
        return sum(cosine(eye.images(picture[None])[0], other) for picture in looked) / FRAMES

    expected = {"pickscore": liking.scale * mean(found.edited, words)}
    for reference, clip in (("", found.edited), ("_source", found.source)):
        expected[f"clip_text{reference}"] = mean(clip, words)
        expected[f"clip_text_in_mask{reference}"] = mean(clip, words, MASK)
        expected[f"clip_image{reference}"] = mean(clip, whole)
        expected[f"clip_image_in_mask{reference}"] = mean(clip, cut, MASK)
    expected |= {"dino_image": expected["clip_image"], "dino_image_in_mask": expected["clip_image_in_mask"]}
    expected["background_lpips_outside_mask"] = float((found.edited[:, 0] + 1)[~grow(MASK, GUARD)].mean())
    assert len({round(value, 2) for value in expected.values()}) == len(expected) - 2  # DINO's two are CLIP's
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=2e-3)  # at other sizes
    ids = {name: each.id for name, each in measure(found, TOOLS).figures.items()}
    for name in expected:
        stub = {"clip": "clip-stub", "dino": "dino-stub", "pick": "pick-stub", "back": "lpips-stub"}[name[:4]]
        assert ids[name].startswith(f"{name}/{stub}/")


def test_an_annotated_object_is_measured_without_a_mask() -> None:
    report = measure(case(masks=Masks(), annotation=ANNOTATED), TOOLS)
    endings = ("outside_annotation", "in_annotation", "in_annotation_source", "flow_source")
    assert all(any(name.endswith(ending) for name in report.figures) for ending in endings)
    assert [note for note in report.notes if "mask=" in note] == [
        "not measured: the mask, and the background outside of it: there is none; give mask=..."
    ]
    nowhere = measure(case(masks=Masks()), TOOLS).notes
    assert sum("place is unknown; give mask=... or annotations=..." in note for note in nowhere) == 2


@pytest.mark.parametrize("by", ["mask", "annotation", "truth"])
def test_each_region_is_followed_along_its_own_motion(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the object each clip's own flow, since an edit has another shape there; outside the source's for both."""
    noise = torch.Generator().manual_seed(0)
    source, edited = (torch.rand(FRAMES, 3, HEIGHT, WIDTH, generator=noise) * 2 - 1 for _ in range(2))
    flows = {"source": drift(2, 1), "edited": drift(-3, 0)}
    monkeypatch.setattr(
        eval.measure.motion, "optical_flow", lambda clip, _: flows["source" if clip is source else "edited"]
    )
    found = case(source=source, edited=edited, annotation=ANNOTATED if by == "annotation" else None)
    if by == "truth":
        truth = drawn().truth
        assert truth is not None
        truth = replace(truth, source=source, still_camera=False)
        found = replace(found, truth=truth)
        near, far, area = "warp_error_object", "warp_error_background_flow", truth.source_mask | truth.target_mask
        expected = {
            near: warp_error(edited, truth.target_motion, truth.target_mask),
            f"{near}_source": warp_error(source, truth.source_motion, truth.source_mask),
        }
    else:
        area = {"mask": MASK, "annotation": ANNOTATED}[by]
        near, far = f"warp_error_in_{by}", f"warp_error_outside_{by}"
        expected = {
            near: warp_error(edited, flows["edited"], area),
            f"{near}_source": warp_error(source, flows["source"], area),
            f"gradient_energy_in_{by}": gradient_energy(edited, area),
        }
    for name, clip in ((far, edited), (f"{far}_source", source)):
        expected[name] = warp_error(clip, flows["source"], ~grow(area, GUARD))
    figures = values(found)
    assert len({round(value or 0, 3) for value in expected.values()}) == len(expected)
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [False, True], ids=["bare", "run"])
def test_all_methods_are_measured_at_the_annotated_object(alpha: bool) -> None:
    """A mask that is too large, and repainted, wins only what is measured outside of it."""
    methods: dict[str, Any] = {}
    for name, mask in {"fitting": MASK, "oversized": grow(MASK, 12)}.items():
        edited = torch.where((mask | ANNOTATED)[:, None], painted((MASK, NEW)) * 0.5, case().source)
        composite = grow(mask, 1).to(torch.uint8) * 255 if alpha else None
        methods[name] = measure(
            case(edited=edited, masks=Masks(mask, alpha=composite), annotation=ANNOTATED), TOOLS
        ).figures
    for name, best in (("background_psnr_outside_union", 100), ("background_ssim_outside_union", 1)):
        assert methods["fitting"][name].value == pytest.approx(methods["oversized"][name].value) == pytest.approx(best)
        assert "3 px of the annotated object" in methods["fitting"][name].id
    for name in ("background_psnr_outside_annotation", "background_ssim_outside_annotation"):
        assert methods["fitting"][name].value > methods["oversized"][name].value
    assert set(methods["fitting"]) == set(methods["oversized"])
    assert not [name for name in methods["fitting"] if "in_mask" in name or "outside_mask" in name]


@pytest.mark.parametrize("same", [True, False])
def test_an_encoder_that_conditions_the_model_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, same: bool
) -> None:
    class Conditioning(Eye):
        def conditions(self, folder: Path) -> bool:
            return same and folder == tmp_path

    monkeypatch.setattr(eval.measure, "OpenClip", Conditioning)
    eye, found = cast(OpenClip, Conditioning("clip-stub")), case()
    request = replace(found.request, conditioner=tmp_path)
    notes = measure(replace(found, request=request), replace(TOOLS, clip=eye)).notes
    assert ("clip-stub also conditions the model: clip_image and clip_text favour it" in notes) == same
    assert not any("favour" in note for note in measure(case(), replace(TOOLS, clip=eye)).notes)


# ---- the controls, on a clip with a known answer -------------------------------------------------------------------


def moving(height: int, width: int, colour: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A striped box that moves eight pixels a frame on a line: its colours on the ground, and its silhouette."""
    region = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    frames = painted()
    for index in range(FRAMES):
        rows, columns = slice(40 - height, 40), slice(20 + 8 * index, 20 + 8 * index + width)
        region[index, rows, columns] = True
        stripes = 1 - 0.5 * (torch.arange(width) // 2 % 2)
        frames[index, :, rows, columns] = torch.tensor(colour)[:, None, None] * stripes
    return frames, region


def drawn() -> Case:
    (source, old), (ideal, new) = moving(20, 32, OLD), moving(12, 20, TARGET)
    my, mx = HEIGHT // 16, WIDTH // 8
    layer = torch.zeros(FRAMES, 4, HEIGHT + 2 * my, WIDTH + 2 * mx)
    layer[:, :3, my:-my, mx:-mx], layer[:, 3, my:-my, mx:-mx] = ideal, new.float()
    layers = IdealLayers(painted(), layer, torch.zeros(FRAMES, 4, HEIGHT, WIDTH))
    motions, nothing = [Motion(drift(8, 0).flow, mask[1:]) for mask in (old, new)], torch.zeros_like(new)
    truth = Truth(
        source, ideal, old, new, layers, {}, [1.0] * FRAMES, motions[0], motions[1], still_camera=True,
        shadows=(nothing, nothing), instances=new[None], yaws=nothing[:, None],
    )  # fmt: skip
    return case(source=source, edited=ideal, masks=Masks(grow(old, 2)), truth=truth)


class Keen(Eye):
    """Looks at what stands on the ground alone."""

    def images(self, pictures: Tensor) -> Tensor:
        stands = (pictures - torch.tensor(GROUND)[:, None, None]).abs().amax(1, keepdim=True) > 0.1
        seen = (pictures * stands).sum((2, 3)) / stands.sum((2, 3)).clamp(min=1)
        return normalize(functional.pad(seen, (0, 1), value=0.3), dim=1)


def drift(right: int, down: int) -> Motion:
    """Everything moves by so many pixels a frame."""
    in_place = still(FRAMES, HEIGHT, WIDTH)
    return replace(in_place, flow=in_place.flow - torch.tensor([right, down])[:, None, None])


def judging(found: Case) -> tuple[Case, Tools]:
    """``found`` with a judge that has a class for each object, by its colour, and prompts that name these."""
    assert found.truth is not None
    judge = Judge(Keen("judge-stub"), {kind: {"old": ["the old"], "new": ["the new"]} for kind in KINDS})
    request = replace(found.request, source_prompt="the old", target_prompt="the new")
    truth = replace(found.truth, target=dict.fromkeys(KINDS, "new"))
    return replace(found, request=request, truth=truth), replace(TOOLS, judge=judge, clip=Keen("clip-stub"))


JUDGED = {f"judge_{kind}_accuracy" for kind in KINDS}
SEEN = {"clip_text", "clip_image", "dino_image", "pickscore"}  # by encoders in whole frames
SEEN_NEAR = {"clip_text_crop", "clip_image_crop", "dino_image_crop"}
STEADY = {"frame_consistency_adjacent", "frame_consistency_pairs"}  # a clip without an edit's flicker wins these
IDEAL = {f"ideal_{kind}{at}" for kind in ("psnr", "ssim") for at in ("", "_aligned")}
BEHIND = {f"background_{kind}{where}" for kind in ("psnr", "ssim", "lpips") for where in ("", "_outside_mask")}

# What each control makes worse than the right answer has it, and what better; in all else it is as good.
CONTROLS: dict[str, tuple[Callable[[Case, Truth], Tensor], set[str], set[str]]] = {
    "source_unchanged": (
        lambda found, truth: truth.source,
        {*SEEN, *SEEN_NEAR, *JUDGED, *IDEAL, "frame_accuracy", "residue", "residue_old"},
        STEADY,
    ),
    "frozen_first_frame": (
        lambda found, truth: truth.ideal[:1].expand_as(truth.ideal),
        {*SEEN_NEAR, *IDEAL, *BEHIND, "clip_text", "warp_error_object"},  # the judge finds its one frame's identity
        {"clip_image", *STEADY},  # where the one frame suits the encoder's 32 pixels
    ),
    # The target image over the whole place of the old object: nearer to it in colour than the right answer is. Nothing
    # of the old object is left, which the residue alone doesn't see.
    "target_over_old_object": (
        lambda found, truth: torch.where(truth.source_mask[:, None], torch.tensor(TARGET)[:, None, None], truth.source),
        {*IDEAL, "clip_image", "residue"},
        {*SEEN - {"clip_image"}, *SEEN_NEAR, *STEADY},
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_what_a_control_wins_and_what_finds_it_out(name: str) -> None:
    found, tools = judging(drawn())
    assert found.truth is not None
    make, worse, better = CONTROLS[name]
    right, control = (
        measure(replace(found, edited=frames), tools).figures for frames in (found.edited, make(found, found.truth))
    )
    apart: dict[bool, set[str]] = {True: set(), False: set()}
    for key, one in control.items():
        if one.higher_is_better is not None and one.value != pytest.approx(right[key].value, abs=1e-4):
            apart[(one.value > right[key].value) == one.higher_is_better].add(key)
    assert (apart[False], apart[True]) == (worse, better)


# ---- the table of metrics -------------------------------------------------------------------------------------------

CLIP, OTHER = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
EVERYWHERE = torch.ones(2, 16, 16, dtype=torch.bool)


def test_a_metric_is_the_mean_over_clips_that_have_a_value() -> None:
    metric, expected = ClipMetric("background_psnr"), psnr(OTHER, CLIP, EVERYWHERE)
    assert expected is not None and metric.higher_is_better is True
    for edited, region in ((CLIP, EVERYWHERE), (OTHER, EVERYWHERE), (OTHER, ~EVERYWHERE)):
        metric.update(edited, CLIP, region)
    assert metric.compute().item() == pytest.approx((PSNR_CAP + expected) / 2)
    metric.reset()
    metric.update(OTHER, CLIP, ~EVERYWHERE)
    assert metric.compute().isnan()


def test_an_id_has_all_that_makes_two_values_comparable() -> None:
    name, found = figure("clip_text_crop", 0.3, by="hub/tiny@12", size="32px", reference="source")
    assert name == "clip_text_crop_source" and name in NAMES and found.higher_is_better is None
    aggregation = "mean over frames, crop of source or ideal target"
    assert found.id == f"clip_text_crop_source/hub:tiny@12/32px/{aggregation}/v1"
    assert figure("ideal_shift", [1, 0], size="64x32")[1].id == "ideal_shift/-/64x32/clip/v1"
    assert not set(FACTS) & set(METRICS)
