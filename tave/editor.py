"""The method as a LightningModule: ``training_step`` tunes on one clip, ``predict_step`` edits it. Read it first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tave.conditions import Condition
from tave.correction import Background, Correction, CorrectionOptions, InterFrame
from tave.correspondence import Field
from tave.denoiser import Denoiser, NoisePredictor
from tave.evidence import attention_evidence
from tave.guidance import Confined, SeparateGuidance
from tave.inflate import TRAINABLES, tuned_state
from tave.inversion import InversionOptions, Trajectory, check_reconstruction, invert, reconstruct
from tave.masking import EditMask, MaskOptions, check_holds, find_mask, given_mask, settle
from tave.memory import adamw
from tave.options import OptionError, choice, within
from tave.reference import PLACED, Reference, ReferenceOptions
from tave.sampling import SamplingOptions, composite, composite_alpha, resize_mask, sample
from tave.schedule import Schedule, add_noise, training_target
from tave.stages import Stages
from tave.start import fresh_start
from tave.video import Clip

log = logging.getLogger(__name__)


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

    refer: (mask ``f 1 H W`` on pixels or None, references of the first pass or none) -> of each target image, what the
    encoder shall see. target: pictures ``n 3 H W`` of each, or None for words alone -> the target condition.
    lost_words: positions of the source prompt's tokens that the target prompt lacks, for the union by cross-attention.
    region: the user's own mask on the latent grid, ``1 f 1 h w``, 1 = edit; None: it is found.
    inverted: finds the inversion, made by the given function if it is not remembered.
    """

    name: str
    prompt: str
    source: Source
    refer: Callable[[Tensor | None, Sequence[Reference]], list[Reference]]
    target: Callable[[Sequence[Tensor | Sequence[Tensor]] | None], Condition]
    decode: Callable[[Tensor], Tensor]
    lost_words: list[int]
    region: Tensor | None
    inverted: Callable[[Callable[[], Inverted]], Inverted]


@dataclass(frozen=True)
class Edit:
    """The result: frames ``f 3 H W`` in [-1, 1]; alpha ``f 1 H W``, its opacity; references: what was shown.

    field: the inter-frame correction's of its last step; None without one.
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
        if correction.enabled:
            within("correction.block", correction.block, -blocks, blocks - 1)
            check_holds("correction.steps", correction.steps, self.schedule.steps)
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
        target, mask, references = self._target_and_mask(task, inverted.trajectory)
        corrections = self._corrections(mask.mask, inverted.trajectory)
        start = fresh_start(
            inverted.trajectory.level(self.schedule.steps),
            mask.mask,
            mask.binary,
            options.sampler.fresh_noise,
            torch.Generator().manual_seed(self.seed),
        )
        with self.stages.stage("sampling", f"sampling {task.name}") as on_step:
            latents = sample(
                self._predictor(mask.mask, source.condition),
                self.schedule,
                start,
                target,
                guidance_scale=options.sampler.guidance_scale,
                corrections=corrections,
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
        return Edit(task.name, task.prompt, source.clip, frames, mask, alpha, references, inverted, field)

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

    def _target_and_mask(self, task: EditTask, trajectory: Trajectory) -> tuple[Condition, EditMask, list[Reference]]:
        """One pass, or two where the reference needs the mask and the mask the reference (METHOD 1)."""
        seen = task.refer(None, ())
        target, mask = self._mask(task, trajectory, seen)
        if self.editing.reference.mode in PLACED:
            first, size = seen, task.source.clip.frames.shape[-2:]
            # the undilated mask: a widened one would lower the ground line
            seen = task.refer(resize_mask(mask.binary, *size).cpu(), first)  # pictures lie on the CPU, as they were read
            if seen[0].mode == "joint":
                # The first pass's mask stays: shown as tall as the old object, a larger target would get a smaller one.
                target = task.target([reference.views for reference in seen])
            elif seen[0].mode == "in_context":
                target, mask = self._mask(task, trajectory, seen)
        for note in dict.fromkeys(reference.note for reference in seen if reference.note):
            log.warning("edit %r: %s", task.name, note)
        return target, mask, seen

    def _mask(self, task: EditTask, trajectory: Trajectory, seen: Sequence[Reference]) -> tuple[Condition, EditMask]:
        shown = [reference.target for reference in seen if reference.target is not None]
        target, source = task.target(shown or None), task.source.condition
        region = torch.ones_like(trajectory.level(0)[:, :, :1]) if self.editing.mask.region == "whole" else task.region
        if region is not None:
            return target, given_mask(region.to(trajectory.latents))
        if not shown:  # words against words: a picture on one side alone would differ everywhere
            source = replace(source, image=source.null_image)
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
        return target, mask

    def _predictor(self, mask: Tensor, source: Condition) -> NoisePredictor:
        """What samples: the denoiser, within what the options put around it."""
        confine, image_scale = self.editing.reference.confine, self.editing.sampler.image_guidance_scale
        made: NoisePredictor = self.denoiser
        if confine != "off":
            made = Confined(self.denoiser, mask, source.image if confine == "source" else source.null_image)
        return made if image_scale is None else SeparateGuidance(made, image_scale)

    def _corrections(self, mask: Tensor, trajectory: Trajectory) -> list[Correction]:
        made: list[Correction] = []
        if self.editing.correction.enabled:
            made.append(InterFrame(mask, self.editing.correction))
        if self.editing.sampler.background == "latents":
            made.append(Background(mask, trajectory))
        return made
