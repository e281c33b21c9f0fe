"""The method as a LightningModule: ``training_step`` tunes on one clip, ``predict_step`` edits it. Read it first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tave.conditions import Condition
from tave.correction import Background, Correction, CorrectionOptions, InterFrame
from tave.correspondence import Field
from tave.denoiser import Denoiser, NoisePredictor
from tave.evidence import attention_evidence
from tave.guidance import Confined, SeparateGuidance
from tave.inflate import TRAINABLES, tuned_state
from tave.inversion import InversionOptions, Trajectory, check_reconstruction, invert, reconstruct
from tave.masking import EditMask, MaskOptions, check_holds, find_mask, given_mask, part_of, redrawn, settle
from tave.memory import adamw
from tave.options import OptionError, choice, within
from tave.outline import outline
from tave.pose import (
    CLIPS,
    SHARES,
    STEPS,
    Seen,
    explained_turned,
    gain,
    looks_away,
    painted,
    room,
    seen_in,
    silhouette_of,
    typical_height,
)
from tave.recognition import narrowed, recognised
from tave.reference import PLACED, Placed, Pose, Reference, ReferenceOptions, Site, find_site
from tave.sampling import SamplingOptions, composite, composite_alpha, resize_mask, sample
from tave.schedule import Schedule, add_noise, training_target
from tave.stages import OnStep, Stages
from tave.start import fresh_start, placed_start
from tave.video import Clip

log = logging.getLogger(__name__)

Remembered = Callable[[str, Sequence[Any], Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""(what it is, all that it depends on beside clip, network and seed, how to make it) -> the tensors, made now or before."""


@dataclass(frozen=True)
class TuningOptions:
    """One-shot fine-tuning (METHOD 3). ``image_noise``: level of the reference's noise, None draws it anew each step.

    ``reference``: which source frame a step is told, one at random for the whole clip (``random_frame``) or each frame
    itself (``own_frame``), which goes with ``reference.frame=per_frame``.
    """

    steps: int = 300
    lr: float = 3e-5
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    trainables: str = "patent"
    lora_rank: int = 4
    image_dropout: float = 0.1
    prompt_dropout: float = 0.0
    image_noise: int | None = None
    reference: str = "random_frame"

    def __post_init__(self) -> None:
        choice("tuning.reference", self.reference, ("random_frame", "own_frame"))
        choice("tuning.trainables", self.trainables, tuple(TRAINABLES))
        within("tuning.steps", self.steps, 0, 1_000_000)
        within("tuning.weight_decay", self.weight_decay, 0, 1000)
        within("tuning.gradient_clip", self.gradient_clip, 0, 1e6)
        within("tuning.image_dropout", self.image_dropout, 0, 1)
        within("tuning.prompt_dropout", self.prompt_dropout, 0, 1)
        within("tuning.lora_rank", self.lora_rank, 1, 1024)
        if self.image_noise is not None:
            within("tuning.image_noise", self.image_noise, 0, 999)
        if not self.lr > 0:
            raise OptionError(f"tuning.lr={self.lr} is out of range: set it above 0")


@dataclass(frozen=True)
class EditingOptions:
    """Every choice of the stages after tuning."""

    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    sampler: SamplingOptions = field(default_factory=SamplingOptions)

    @property
    def places(self) -> bool:
        """Whether sampling starts from the target in its place: words alone have no target, a region of all has no place."""
        return self.sampler.start == "placed" and self.reference.mode != "none" and self.mask.region == "found"

    @property
    def blends(self) -> bool:
        """Whether frames are blended with their neighbours."""
        return not self.places if self.correction.enabled is None else self.correction.enabled

    @property
    def cuts_out(self) -> bool:
        """Whether the target object's matte is looked at: what is shown as it is needs none, unless it is put in its place."""
        return self.reference.mode not in ("as_is", "none") or self.places


@dataclass(frozen=True)
class Source:
    """The clip as the network sees it, encoded once.

    latents ``1 f c h w``; condition: source prompt and source frame(s); inversion: the one to invert under;
    round_trip ``f 3 H W``: the clip through the autoencoder, the best that any reconstruction can be.
    """

    clip: Clip
    latents: Tensor
    round_trip: Tensor
    condition: Condition
    inversion: Condition


@dataclass(frozen=True)
class Lesson:
    """What ``training_step`` draws from: latents ``1 f c h w``, the source condition, and ``embeds`` `f e` of all frames.

    ``noised`` maps (embeddings ``n e``, level, noise ``1 e``) to image vectors ``n 2e``; ``levels`` counts the levels.
    """

    latents: Tensor
    condition: Condition
    embeds: Tensor
    noised: Callable[[Tensor, int, Tensor], Tensor]
    levels: int


@dataclass(frozen=True)
class Inverted:
    """A trajectory and what sampling back from it is worth, in dB against the source frames."""

    trajectory: Trajectory
    reconstruction_psnr: float
    autoencoder_psnr: float


@dataclass(frozen=True)
class EditTask:
    """One edit to make. The callables keep autoencoder and encoders out of the module.

    refer: (references of the first pass or none, the source object's site or None, a pose for each target image or none) -> of
    each target image, what the encoder shall see. cut_out: (its first reference, its number) -> its matte, `1 h w`. place:
    (its first reference, its number, site, pose) -> the target in its place. photographs: the target images as they are,
    `1 3 h w`. by_colour: whether nothing but its colours tells an image's object. target: pictures ``n 3 H W`` of each, or
    None for words alone -> the target condition. encode: frames -> latents ``1 f c h w``; decode: back.
    lost_words: positions of the source prompt's tokens that the target prompt lacks, for the union by cross-attention.
    same_words: neither prompt has a word that the other lacks.
    region: the user's own mask on the latent grid, ``1 f 1 h w``, 1 = edit; None: it is found.
    inverted: finds the inversion, made by the given function if it is not remembered. remembered: likewise what else the
    network tells before sampling.
    """

    name: str
    prompt: str
    source: Source
    refer: Callable[[Sequence[Reference], Site | None, Sequence[Pose]], list[Reference]]
    cut_out: Callable[[Reference, int], Tensor]
    place: Callable[[Reference, int, Site, Pose], Placed]
    photographs: Sequence[Tensor]
    by_colour: Sequence[bool]
    target: Callable[[Sequence[Tensor | Sequence[Tensor]] | None], Condition]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    lost_words: list[int]
    same_words: bool
    region: Tensor | None
    inverted: Callable[[Callable[[], Inverted]], Inverted]
    remembered: Remembered


@dataclass(frozen=True)
class Edit:
    """The result: frames ``f 3 H W`` in [-1, 1]; alpha ``f 1 H W``, its opacity; references: what was shown.

    field: the inter-frame correction's of its last step. placed: the clip with the (first) target image's object in its place,
    as the photograph shows it, `f 3 H W`, and its pose there. Each None without one.
    """

    name: str
    prompt: str
    clip: Clip
    frames: Tensor
    mask: EditMask
    alpha: Tensor
    references: Sequence[Reference]
    inverted: Inverted
    field: Field | None = None
    placed: Tensor | None = None
    pose: Pose | None = None


@dataclass(frozen=True)
class _Plan:
    """What sampling goes by. placed: the clip with the target in its place, `f 3 H W`; pose: how it stands at that site."""

    target: Condition
    mask: EditMask
    references: Sequence[Reference]
    placed: Tensor | None = None
    pose: Pose | None = None
    site: Site | None = None


def psnr(frames: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of ``f 3 H W`` in [-1, 1], capped at 100: JSON knows no infinity."""
    error = (frames.double() - truth.double()).square().mean() / 4
    return min(100.0, float(-10 * torch.log10(error.clamp(min=1e-10))))


class Editor(L.LightningModule):
    """Tunes an inflated denoiser on a clip and edits that clip. Its state dict holds only what is tuned."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        tuning: TuningOptions,
        editing: EditingOptions,
        *,
        seed: int = 0,
        optimizer: str = "adamw",
        stages: Stages | None = None,
    ):
        super().__init__()
        self.denoiser, self.schedule = denoiser, schedule
        self.tuning, self.editing, self.seed = tuning, editing, seed
        self.optimizer = optimizer
        self.stages = stages or Stages(show=False)
        self.strict_loading = False  # checkpoints hold the tuned weights alone

    def check(self, finds: bool) -> None:
        """Raise :class:`OptionError` for what this network or schedule can't give; ``finds``: a region is to be found."""
        correction, blocks = self.editing.correction, len(cast(nn.ModuleList, self.denoiser.unet.up_blocks))
        if self.editing.blends:
            within("correction.block", correction.block, -blocks, blocks - 1)
            check_holds("correction.steps", correction.steps, self.schedule.steps)
            if self.editing.places and min(part_of(correction.steps, self.schedule.steps)) > self._first():
                log.warning(
                    "no step of correction.steps=%s is left after sampler.strength=%s, so frames aren't blended: raise that, "
                    "or widen them",
                    list(correction.steps),
                    self.editing.sampler.strength,
                )
        if finds and self.editing.mask.region == "found":
            check_holds("mask.steps", self.editing.mask.steps, self.schedule.steps)

    # ---- tuning ------------------------------------------------------------------------------------------------------

    def training_step(self, lesson: Lesson, batch_idx: int) -> Tensor:
        """Mean square between predicted and true target at one random t (METHOD 3).

        All draws come from (seed, step), so a resumed run goes on bit for bit.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)

        def draw(top: int) -> int:
            return int(torch.randint(top, (1,), generator=generator))

        t = draw(len(self.denoiser.alphas_cumprod))
        level = draw(lesson.levels) if self.tuning.image_noise is None else self.tuning.image_noise
        shown = lesson.embeds
        if self.tuning.reference == "random_frame":
            shown = shown[draw(len(shown))][None]
        image = lesson.noised(shown, level, torch.randn(shown[:1].shape, generator=generator).to(shown))[None]
        drop_image, drop_prompt = torch.rand(2, generator=generator) < torch.tensor(
            [self.tuning.image_dropout, self.tuning.prompt_dropout]
        )
        null_text = lesson.condition.null_text
        condition = Condition(
            text=null_text if drop_prompt else lesson.condition.text,
            image=torch.zeros_like(image) if drop_image else image,
            null_text=null_text,
        )
        noise = torch.randn(lesson.latents.shape, generator=generator).to(lesson.latents)
        a = self.denoiser.alphas_cumprod[t]
        noisy = add_noise(lesson.latents, noise, a)
        target = training_target(lesson.latents, noise, a, self.denoiser.prediction_type)
        loss = F.mse_loss(self.denoiser.output(noisy, torch.tensor([t], device=noisy.device), condition).float(), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return adamw(trained, self.optimizer, self.tuning.lr, self.tuning.weight_decay)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning's own refuses a fused optimizer under any autocast; only that of float16 scales the gradients.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["state_dict"] = {f"denoiser.unet.{k}": v for k, v in tuned_state(self.denoiser.unet).items()}

    # ---- editing -----------------------------------------------------------------------------------------------------

    def predict_step(self, task: EditTask, batch_idx: int) -> Edit:
        """Invert, find the mask, sample, decode (METHOD 4-6)."""
        source, options = task.source, self.editing
        inverted = task.inverted(lambda: self.invert(task))
        plan = self._plan(task, inverted.trajectory)
        mask = plan.mask
        corrections = self._corrections(mask.mask, inverted.trajectory)
        start, first = self._start(task, plan, inverted.trajectory)
        with self.stages.stage("sampling", f"sampling {task.name}") as on_step:
            latents = sample(
                self._predictor(mask.mask, source.condition),
                self.schedule,
                start,
                plan.target,
                guidance_scale=options.sampler.guidance_scale,
                corrections=corrections,
                first=first,
                on_step=on_step,
            )
        with self.stages.stage("decoding", f"decoding {task.name}"):
            frames = task.decode(latents)
        if task.region is None and options.mask.region == "found":  # a region that was asked for stays as it was
            mask = replace(mask, mask=settle(mask.mask, frames, source.clip.frames, options.mask.settle))
        pixels = resize_mask(mask.mask, *frames.shape[-2:]).to(frames)
        alpha = composite_alpha(pixels, options.sampler.feather)
        if options.sampler.composite:
            frames = composite(frames, source.clip.frames.to(frames), alpha)
        field = next((made.field for made in corrections if isinstance(made, InterFrame)), None)
        return Edit(
            task.name, task.prompt, source.clip, frames, mask, alpha, plan.references, inverted, field, plan.placed, plan.pose
        )

    def invert(self, task: EditTask) -> Inverted:
        """The source's trajectory, and the gate: how well sampling back returns the clip (METHOD 4)."""
        source, options = task.source, self.editing.inversion
        with self.stages.stage("inversion", "inverting the clip") as on_step:
            trajectory = invert(self.denoiser, self.schedule, source.latents, source.inversion, options.refine, on_step=on_step)
        with self.stages.stage("reconstruction", "sampling the clip back") as on_step:
            back = task.decode(reconstruct(self.denoiser, self.schedule, trajectory, source.inversion, on_step=on_step))
        frames = source.clip.frames
        found = Inverted(trajectory, psnr(back.cpu(), frames.cpu()), psnr(source.round_trip.cpu(), frames.cpu()))
        check_reconstruction(found.reconstruction_psnr, found.autoencoder_psnr, options.gate)
        return found

    def _plan(self, task: EditTask, trajectory: Trajectory) -> _Plan:
        """The region, the place, and what the encoder is shown: the place needs the region, and the rest the place."""
        seen = task.refer((), None, ())
        target, mask = self._mask(task, trajectory, seen)
        plan = _Plan(target, mask, seen)
        if self.editing.reference.mode in PLACED or self.editing.places:
            plan = self._placed(task, plan, trajectory)
        for note in dict.fromkeys(reference.note for reference in plan.references if reference.note):
            log.warning("edit %r: %s", task.name, note)
        return plan

    def _placed(self, task: EditTask, plan: _Plan, trajectory: Trajectory) -> _Plan:
        """``plan`` with the target in the source object's place, if the region holds one (METHOD 1, 5)."""
        options, frames, mask = self.editing, task.source.clip.frames, plan.mask
        whole = options.mask.region == "whole"  # which tells no place: the target is shown there, and no more
        own = None
        if options.mask.outline == "colour" and mask.own is not None and not whole:
            own = outline(frames, mask.own[0, :, 0].cpu())
        # the undilated mask: a widened one would lower the ground line. Pictures lie on the CPU, as they were read
        site = find_site(frames, resize_mask(mask.binary, *frames.shape[-2:]).cpu() if own is None else own)
        if site is None:
            empty = "the first pass found nothing to edit: the target is put nowhere"
            noted = [replace(seen, note=f"{seen.note}; {empty}" if seen.note else empty) for seen in plan.references]
            return replace(plan, references=noted)
        if self.editing.places:
            plan = replace(
                plan, references=[self._recognised(task, number, seen) for number, seen in enumerate(plan.references)]
            )
        poses = self._poses(task, plan, site)
        target, references = plan.target, task.refer(plan.references, site, poses)
        if references[0].mode == "joint":
            # The first pass's mask stays: shown as tall as the old object, a larger target would get a smaller one.
            target = task.target([reference.views for reference in references])
        elif references[0].mode == "in_context":
            target, mask = self._mask(task, trajectory, references)
        if whole:
            return _Plan(target, mask, references)
        placed = task.place(plan.references[0], 0, site, poses[0])
        if own is not None and task.region is None:
            mask = redrawn(mask, site.region.to(own), placed.alpha, options.mask)
        return _Plan(target, mask, references, placed.pictures, poses[0], site)

    def _recognised(self, task: EditTask, number: int, seen: Reference) -> Reference:
        """``seen``, of image ``number``, with what its colours alone cut out narrowed to what the network recognises."""
        if not task.by_colour[number]:
            return seen
        frames, photograph, cut = task.source.clip.frames, task.photographs[number], task.cut_out(seen, number)
        shown = interpolate(photograph, frames.shape[-2:], mode="area")
        told = task.target([photograph])

        def find() -> Mapping[str, Tensor]:
            with self.stages.stage("placing", f"finding the target in its picture, for {task.name}"):
                still, generator = task.encode(shown.expand(len(frames), -1, -1, -1)), torch.Generator().manual_seed(self.seed)
                return {"cells": recognised(self.denoiser, self.denoiser.alphas_cumprod, still, told, generator)}

        cells = task.remembered("cutout", [shown, *told.parts], find)["cells"]
        return replace(seen, matte=narrowed(cut, shown, cells))

    def _poses(self, task: EditTask, plan: _Plan, site: Site) -> list[Pose]:
        """How the target of each image stands at ``site``; several are of one object, and as tall."""
        options, whole = self.editing.reference, self.editing.mask.region == "whole"
        height, heading = options.height_scale, options.heading
        if height is None and (task.same_words or whole):
            height = 1.0  # words that are the same say nothing of another size, and all of a picture is no place
        if heading == "auto" and whole:
            heading = "as_is"
        if height is not None and heading != "auto":
            return [Pose(height, heading == "mirrored")] * len(plan.references)
        cuts = [task.cut_out(seen, number) for number, seen in enumerate(plan.references)]
        told = [task.target(None), *(task.target([photograph]) for photograph in task.photographs)]

        def find() -> Mapping[str, Tensor]:
            with self.stages.stage("placing", f"placing {task.name}") as on_step:
                objects = self._painted(task, site, on_step)
                tall = typical_height(objects) if height is None else height
                turned = [self._turned(task, plan, number, site, tall, objects) for number in range(len(cuts))]
            return {"height": torch.tensor(tall, dtype=torch.float64), "mirrored": torch.tensor(turned)}

        chosen = (height, heading, options.feather, self.editing.sampler.guidance_scale)
        planes = [site.frames, *(torch.from_numpy(part) for part in (*site.stance, site.seen)), *task.photographs, *cuts]
        found = task.remembered("pose", [chosen, *planes, *(part for each in told for part in each.parts)], find)
        return [Pose(float(found["height"]), turned) for turned in found["mirrored"].tolist()]

    def _painted(self, task: EditTask, site: Site, on_step: OnStep) -> list[Seen]:
        """What the network paints at ``site``, left to the target prompt's words."""
        bare, words, found = task.encode(site.frames), task.target(None), list[Seen]()
        where = room(site.stance, site.frames.shape[-2:], bare.shape[-2:]).to(bare)
        schedule, generator = self.schedule.thinned(STEPS), torch.Generator().manual_seed(self.seed)
        for number in range(CLIPS):
            latents, say = painted(
                self.denoiser,
                schedule,
                bare,
                where,
                words,
                generator,
                guidance_scale=self.editing.sampler.guidance_scale,
                on_step=lambda done, total, number=number: on_step(number * total + done, CLIPS * total),
            )
            found += seen_in(task.decode(latents), say, where, site.stance)
        return found

    def _turned(self, task: EditTask, plan: _Plan, number: int, site: Site, height: float, objects: Sequence[Seen]) -> bool:
        """Whether the target of image ``number`` is to look the other way than on its photograph."""
        if (heading := self.editing.reference.heading) != "auto":
            return heading == "mirrored"
        seen = plan.references[number]
        away = looks_away(silhouette_of(task.cut_out(seen, number)[0].numpy()), objects)
        if away is None:
            away = explained_turned(partial(task.place, seen, number, site), self._explained(task, number), height)
        return away

    def _explained(self, task: EditTask, number: int) -> Callable[[Tensor], float]:
        """How well a clip `f 3 H W` goes with the target prompt and image ``number``: the larger, the better."""
        generator, told = torch.Generator().manual_seed(self.seed), task.target([task.photographs[number]])
        noises = [torch.randn(task.source.latents.shape, generator=generator).to(task.source.latents) for _ in SHARES]
        return lambda clip: gain(self.denoiser, self.denoiser.alphas_cumprod, task.encode(clip), told, noises)

    def _first(self) -> int:
        """The level at which sampling from the placed target starts."""
        return max(1, round(self.editing.sampler.strength * self.schedule.steps))

    def _start(self, task: EditTask, plan: _Plan, trajectory: Trajectory) -> tuple[Tensor, int | None]:
        """Where sampling starts, and at which level if not at the noisiest."""
        sampler, steps, mask = self.editing.sampler, self.schedule.steps, plan.mask
        generator = torch.Generator().manual_seed(self.seed)
        if self.editing.places and plan.placed is not None and plan.site is not None:
            first = self._first()
            clean, kept = task.encode(plan.placed), trajectory.level(first)
            cells = clean.shape[-1] / plan.placed.shape[-1]
            path = [(round(down * cells), round(right * cells)) for right, down in plan.site.path.tolist()]
            return placed_start(clean, kept, mask.mask, path, self.schedule.alphas[first], generator), first
        return fresh_start(trajectory.level(steps), mask.mask, mask.binary, sampler.fresh_noise, generator), None

    def _mask(self, task: EditTask, trajectory: Trajectory, seen: Sequence[Reference]) -> tuple[Condition, EditMask]:
        shown = [reference.target for reference in seen if reference.target is not None]
        target, source = task.target(shown or None), task.source.condition
        region = torch.ones_like(trajectory.level(0)[:, :, :1]) if self.editing.mask.region == "whole" else task.region
        if region is not None:
            return target, given_mask(region.to(trajectory.latents))
        if not shown:  # words against words: a picture on one side alone would differ everywhere
            source = replace(source, image=source.null_image)

        def find() -> Mapping[str, Tensor]:
            with self.stages.stage("masking", f"finding the region of {task.name}") as on_step:
                mask = find_mask(
                    self.denoiser,
                    self.schedule,
                    trajectory,
                    source,
                    target,
                    self.editing.mask,
                    attention_evidence(self.denoiser, source, task.lost_words),
                    on_step=on_step,
                )
            return {name: plane for name, plane in vars(mask).items() if plane is not None}

        asked = replace(self.editing.mask, outline="none", settle=0.0)  # these two come later
        found = task.remembered("mask", [asked, task.lost_words, *source.parts, *target.parts], find)
        return target, EditMask(**{name: plane.to(trajectory.latents.device) for name, plane in found.items()})

    def _predictor(self, mask: Tensor, source: Condition) -> NoisePredictor:
        """What samples: the denoiser, within what the options put around it."""
        confine, image_scale = self.editing.reference.confine, self.editing.sampler.image_guidance_scale
        made: NoisePredictor = self.denoiser
        if confine != "off":
            made = Confined(self.denoiser, mask, source.image if confine == "source" else source.null_image)
        return made if image_scale is None else SeparateGuidance(made, image_scale)

    def _corrections(self, mask: Tensor, trajectory: Trajectory) -> list[Correction]:
        made: list[Correction] = []
        if self.editing.blends:
            made.append(InterFrame(mask, self.editing.correction))
        if self.editing.sampler.background == "latents":
            made.append(Background(mask, trajectory))
        return made
