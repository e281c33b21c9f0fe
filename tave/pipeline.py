"""The whole method (docs/method.md), usable without Lightning, Hydra or a run folder.

clip -> latents -> trajectory -> mask -> sampled latents -> frames, composited over the source.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tave.cache import Cache, Form
from tave.config import EditingOptions, MaskOptions, within
from tave.correction import Background, Correction, InterFrame
from tave.correspondence import Field
from tave.denoiser import Denoiser
from tave.encoders import Condition, Encoders
from tave.finite import PRECISION, check_finite
from tave.inversion import Trajectory, inversion_condition, invert, reconstruct, reconstruction_note
from tave.masking import (
    Disagreement,
    EditMask,
    absence_note,
    check_part_holds,
    compare,
    drop_unchanged,
    given_mask,
    make_mask,
    part_of,
    to_cells,
)
from tave.progress import Progress
from tave.reference import Place, Reference, TargetImage, find_place, first_pass, second_pass, source_frames
from tave.sampling import composite, composite_alpha, resize_mask, sample, start_latents
from tave.schedule import Schedule
from tave.scratch import spans
from tave.seeds import generator_for
from tave.video import Clip, View

log = logging.getLogger(__name__)

# Of the clip sampled back and of the autoencoder's round trip, in dB: of all frames, and of each.
RECONSTRUCTION = ("reconstruction_psnr", "autoencoder_psnr", "reconstruction_by_frame", "autoencoder_by_frame")


@dataclass(frozen=True)
class Source:
    """The clip as the network sees it, encoded once.

    ``latents`` `1 f c h w`; ``round_trip`` `f 3 H W`: the clip through the autoencoder, the best that a reconstruction
    can be; ``condition``: source prompt and source frame(s).
    """

    clip: Clip
    latents: Tensor
    round_trip: Tensor
    condition: Condition


@dataclass(frozen=True)
class Inversion:
    """A trajectory, and how well sampling back reconstructs the clip, in dB, beside the autoencoder's own figure."""

    trajectory: Trajectory
    reconstruction_psnr: float
    autoencoder_psnr: float


@dataclass(frozen=True)
class Target:
    """A requested edit. ``region`` `f 1 H W`, 1 = edit, or None: it is found. ``box``: what the region takes of the
    frames of the clip's file.
    """

    name: str
    prompt: str
    images: Sequence[TargetImage]
    region: Tensor | None = None
    box: View | None = None


class Layer(NamedTuple):
    """What is laid over the clip: ``pixels`` `f 3 H W` in [-1, 1] of the opacity ``alpha`` `f 1 H W`; or, if it is the
    ``whole`` result, what replaces it (``sampler.composite=false``).
    """

    pixels: Tensor
    alpha: Tensor
    whole: bool = False


@dataclass(frozen=True)
class Edit:
    """The result.

    ``frames``: the edited clip, `f 3 H W` in [-1, 1]: the ``layer`` laid over the clip. ``references``: what the image
    encoder saw, one per target image; ``field``: the inter-frame field of the last step.
    """

    target: Target
    clip: Clip
    frames: Tensor
    layer: Layer
    mask: EditMask
    references: Sequence[Reference]
    inversion: Inversion
    field: Field | None = None

    @property
    def alpha(self) -> Tensor:
        """`f 1 H W`, the edit's opacity in the composite."""
        return self.layer.alpha


class Pipeline:
    """Runs the method with one (tuned) denoiser. ``progress`` and ``cache`` are optional."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        encoders: Encoders,
        options: EditingOptions = EditingOptions(),
        *,
        seed: int = 0,
        progress: Progress | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.denoiser, self.schedule, self.encoders, self.options, self.seed = (
            denoiser,
            schedule,
            encoders,
            options,
            seed,
        )
        self.progress = progress or Progress(show=False)
        self.cache = cache or Cache()

    def check(self) -> None:
        """Raise OptionError for options that this network or schedule does not have."""
        correction, blocks = self.options.correction, len(cast(nn.ModuleList, self.denoiser.unet.up_blocks))
        check_part_holds("mask.steps", self.options.mask.steps, self.schedule.steps)
        if correction.enabled:
            within("correction.block", correction.block, -blocks, blocks - 1)
            check_part_holds("correction.steps", correction.steps, self.schedule.steps)

    def encode(self, clip: Clip, prompt: str) -> Source:
        """Encode the clip and its condition. Raises :class:`NonFiniteError` for NaN and infinity, as all stages do."""
        with self.progress.stage("encoding", "encoding the clip", steps=False):
            latents = self.encoders.encode(clip.frames)
            condition = self.encoders.condition(prompt, [source_frames(clip.frames, self.options.reference.frame)])
            source = Source(clip, latents, self.encoders.decode(latents, self.cache.scratch), condition)
        values = {"latent": latents, "round trip": source.round_trip}
        check_finite("encoding", values | {"text vector": condition.text, "image vector": condition.image}, PRECISION)
        return source

    def invert(self, source: Source) -> Inversion:
        """The clip's trajectory from clean latents to noise, and the reconstruction that it allows."""
        form: Form = {"latents": ((self.schedule.steps + 1, *source.latents.shape), source.latents.dtype)}
        form = form | dict.fromkeys(RECONSTRUCTION[:2], ((), torch.float32))
        form = form | dict.fromkeys(RECONSTRUCTION[2:], ((len(source.clip.frames),), torch.float32))
        found = self.cache.tensors("trajectory", [self.options.inversion], lambda: self._inverted(source), form)
        psnrs = (round(float(found[name]), 4) for name in RECONSTRUCTION[:2])
        inversion = Inversion(Trajectory(found["latents"], self.encoders.device), *psnrs)
        note = reconstruction_note(
            inversion.reconstruction_psnr, inversion.autoencoder_psnr, self.options.inversion.gate
        )
        if note:
            log.warning("%s", note)
        return inversion

    def _inverted(self, source: Source) -> Mapping[str, Tensor]:
        options = self.options.inversion
        condition = inversion_condition(source.condition, options.condition)
        with self.progress.stage("inversion", "inverting the clip") as on_step:
            parts = source.latents, condition, options.refine
            trajectory = invert(self.denoiser, self.schedule, *parts, on_step=on_step, scratch=self.cache.scratch)
        with self.progress.stage("reconstruction", "sampling the clip back") as on_step:
            back = reconstruct(self.denoiser, self.schedule, trajectory, condition, on_step=on_step)
            frames = self.encoders.decode(back, self.cache.scratch)
            check_finite("reconstruction", {"decoded clip": frames}, PRECISION)
        truth, clips = source.clip.frames, (frames, source.round_trip)
        values = [psnr(clip, truth) for clip in clips]
        values += [[psnr(*pair) for pair in zip(clip, truth, strict=True)] for clip in clips]
        return {"latents": trajectory.latents} | dict(zip(RECONSTRUCTION, map(torch.tensor, values), strict=True))

    def locate(self, clip: Clip, prompt: str, target: Target) -> Tensor:
        """Where ``target`` would be edited, `f 1 H W`, 1 = edit: a first look at a clip that isn't tuned on yet."""
        source = self.encode(clip, prompt)
        condition = inversion_condition(source.condition, self.options.inversion.condition)
        with self.progress.stage("inversion", f"looking for the region of {target.name}") as on_step:
            refine = self.options.inversion.refine
            parts = source.latents, condition, refine
            trajectory = invert(self.denoiser, self.schedule, *parts, on_step=on_step, scratch=self.cache.scratch)
        found = self._condition_and_mask(source, trajectory, target)[-1]
        for note in found.notes:
            log.warning("edit %s, first look: %s", target.name, note)
        return resize_mask(found.mask, *clip.frames.shape[-2:]).cpu()

    def edit(self, source: Source, inversion: Inversion, target: Target) -> Edit:
        """Find the mask, sample inside it, decode, composite over the source."""
        options, trajectory = self.options, inversion.trajectory
        condition, references, mask = self._condition_and_mask(source, trajectory, target)
        self.progress.found("soft_mask", mask.soft)
        for note in dict.fromkeys((*(reference.note for reference in references if reference.note), *mask.notes)):
            log.warning("edit %s: %s", target.name, note)
        generator = generator_for(self.seed, "start noise")
        noisiest = trajectory.level(self.schedule.steps)
        start = start_latents(noisiest, mask.mask, mask.binary, options.sampler.fresh_noise, generator)
        inter_frame = InterFrame(mask.mask, options.correction) if options.correction.enabled else None
        background = Background(mask.mask, trajectory) if options.sampler.background == "latents" else None
        corrections: list[Correction] = [each for each in (inter_frame, background) if each is not None]
        with self.progress.stage("sampling", f"sampling {target.name}") as on_step:
            latents = sample(
                self.denoiser,
                self.schedule,
                start,
                condition,
                guidance_scale=options.sampler.guidance_scale,
                corrections=corrections,
                on_step=on_step,
            )
        with self.progress.stage("decoding", f"decoding {target.name}", steps=False):
            frames = self.encoders.decode(latents, self.cache.scratch)
            check_finite("decoding", {f"edit {target.name}": frames}, PRECISION)
        if target.region is None and options.mask.region == "found":  # a given region stays as it was given
            kept = drop_unchanged(mask.mask, frames, source.round_trip, options.mask.drop_unchanged)
            mask = replace(mask, mask=kept)
            if note := absence_note(kept):
                log.warning("edit %s: %s", target.name, note)
                mask = replace(mask, notes=(*mask.notes, note))
        opacity = partial(_opacity, mask.mask.cpu(), frames.shape[-2:], options.sampler.feather)
        alpha = self.cache.scratch.of(opacity, len(frames))
        layer = Layer(frames, alpha, whole=not options.sampler.composite)
        if not layer.whole:
            behind = source.clip.frames

            def laid_over(span: slice) -> Tensor:
                return composite(layer.pixels[span], behind[span].to(layer.pixels), alpha[span])

            frames = self.cache.scratch.of(laid_over, len(frames))
        field = inter_frame.field if inter_frame else None
        return Edit(target, source.clip, frames, layer, mask, references, inversion, field)

    def _condition_and_mask(
        self, source: Source, trajectory: Trajectory, target: Target
    ) -> tuple[Condition, list[Reference], EditMask]:
        """The target condition and the mask. Modes that show the target in place take two passes: the mask needs the
        picture, and the picture needs the mask's place."""
        options, size = self.options.reference, source.clip.frames.shape[-2:]
        references = [first_pass(image, options) for image in target.images]
        condition = self._condition(target, references)
        if options.mode not in ("in_context", "joint") or self.options.mask.region == "whole":
            return condition, references, self._mask(source, trajectory, target, condition, self.options.mask)
        # The old object's place is read off at the default threshold where that finds one, so that the picture in its
        # place, and with it the comparison, do not depend on the threshold of the mask.
        usual = {name: getattr(MaskOptions(), name) for name in ("threshold", "fixed", "quantile")}
        places: list[Place | None] = []
        for choices in (replace(self.options.mask, **usual), self.options.mask):
            mask = self._mask(source, trajectory, target, condition, choices)
            found = resize_mask(mask.source_object, *size).cpu()
            places.append(find_place(source.clip.frames, found, self.cache.scratch))
        place = places[0] or places[1]
        if place is None or places[1] is None:
            note = "the first pass found nothing to edit, so the target is shown on grey"
            return condition, [replace(reference, note=reference.note or note) for reference in references], mask
        references = [
            second_pass(first, image, place, options, self.cache.scratch)
            for first, image in zip(references, target.images, strict=True)
        ]
        # The mask is computed again from the object in its place: a picture on grey differs from the source frame
        # everywhere. `joint` samples with the picture as it is too, whose own background must not reach the mask.
        in_place = [replace(reference, pictures=reference.pictures[:1]) for reference in references]
        mask = self._mask(source, trajectory, target, self._condition(target, in_place), self.options.mask)
        return self._condition(target, references), references, mask

    def _condition(self, target: Target, references: Sequence[Reference]) -> Condition:
        return self.encoders.condition(target.prompt, [p for reference in references for p in reference.pictures])

    def _mask(
        self, source: Source, trajectory: Trajectory, target: Target, condition: Condition, options: MaskOptions
    ) -> EditMask:
        latents = trajectory.level(0)
        if options.region == "whole":
            return given_mask(torch.ones_like(latents[:, :, :1]))
        if target.region is not None:
            return given_mask(to_cells(target.region, *latents.shape[-2:]).to(latents))
        origin = source.condition
        if not condition.image.any():  # words against words: a picture on one side alone differs everywhere
            origin = replace(origin, image=origin.null_image)

        def make() -> Mapping[str, Tensor]:
            with self.progress.stage("masking", f"finding the region of {target.name}") as on_step:
                found = compare(self.denoiser, self.schedule, trajectory, origin, condition, options, on_step)
            return {name: maps for name, maps in vars(found).items() if maps is not None}

        # Keyed by what the network evaluations depend on: another threshold needs no further evaluation.
        parts = [options.branches, options.weight, options.steps, options.union == "none"]
        count, (_, frames, _, *grid) = len(part_of(options.steps, self.schedule.steps)), latents.shape
        each = ((count, frames, *grid), torch.promote_types(latents.dtype, torch.float32))
        form: Form = dict.fromkeys(("per_step", "evidence") if options.union != "none" else ("per_step",), each)
        maps = self.cache.tensors("maps", [*parts, *origin.parts, *condition.parts], make, form)
        here = {name: tensor.to(latents.device, copy=True) for name, tensor in maps.items()}
        return make_mask(Disagreement(**here), options)


def psnr(frames: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of ``f 3 H W`` or one frame in [-1, 1], capped at 100: JSON has no infinity."""
    errors = [(frames[span].double().cpu() - truth[span].double().cpu()).square().sum() for span in spans(len(frames))]
    error = torch.stack(errors).sum() / (4 * frames.numel())
    return min(100.0, float(-10 * torch.log10(error.clamp(min=1e-10))))


def _opacity(mask: Tensor, size: torch.Size, feather: float, span: slice) -> Tensor:
    """The opacity `n 1 H W` of the edit in some frames, of its mask `1 f 1 h w`."""
    return composite_alpha(resize_mask(mask[:, span], *size), feather)
