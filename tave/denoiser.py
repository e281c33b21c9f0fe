"""(latents, t, condition) -> noise: the only place for guidance and for folding frames into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from tave.config import choice
from tave.encoders import Condition, stack, unet_inputs
from tave.inflate import frames_of
from tave.schedule import PREDICTION_TYPES, to_noise
from tave.windows import Window, windows


class DenoiserError(ValueError):
    """Latents, condition or tap that do not fit this denoiser."""


class Prediction(NamedTuple):
    """noise: `b f c h w`, always epsilon; features: `b f d h' w'`, the tapped block's output in the conditional
    branch, unless the tap reads them itself.
    """

    noise: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Tap:
    """Read, and optionally rewrite, the output of one up block within the forward that predicts.

    block: index into ``unet.up_blocks``, negative ones count from the end.
    read: called for each window of the clip with the features `b n d h' w'` of its frames, which are then not kept.
    rewrite: called for each window as ``rewrite(conditional, block_output, window)``: `b n d h' w'` of the conditional
        branch, and the whole stack `g*b n d h' w'` of all guidance branches. What it returns, in that shape, goes on in
        its place.
    """

    block: int
    read: Callable[[Tensor, Window], object] | None = None
    rewrite: Callable[[Tensor, Tensor, Window], Tensor] | None = None


class NoisePredictor(Protocol):
    """Predicts the noise in latents `b f c h w` at timestep ``t``; guidance scale 1 means no guidance."""

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        """Predict the noise in ``latents``; features are returned if, and only if, ``tap`` requests them."""
        ...


class Denoiser(nn.Module):
    """The UNet, inflated or plain, as a :class:`NoisePredictor`. Noise has the latents' dtype, whatever the UNet's.

    A clip longer than an inflated UNet's frames is evaluated window by window (:mod:`tave.windows`), and their noise
    averaged where they overlap.
    """

    alphas_cumprod: Tensor  # `num_train_timesteps` float64; no buffer, which a cast of the module would round

    def __init__(
        self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, branches: str = "together", overlap: int = 4
    ) -> None:
        """``branches``: all of a call in one batch (together), or one after another (alone), which needs less
        memory. ``overlap``: frames that neighbouring windows share, at least.
        """
        super().__init__()
        choice("memory.branches", branches, ("together", "alone"))
        self.unet, self.branches, self.overlap = unet, branches, overlap
        self.prediction_type: str = scheduler.config["prediction_type"]
        choice("scheduler.prediction_type", self.prediction_type, PREDICTION_TYPES)
        self.alphas_cumprod = scheduler.alphas_cumprod.detach().double().cpu()

    def forward(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        """Predict the noise in ``latents`` `b f c h w` at timestep ``t``.

        condition: for each `b`, or one for all. guidance_scale: `null + s (cond - null)`, text and image alike; 1 runs
        the conditional branch alone. Raises :class:`DenoiserError` for shapes or a tap that don't fit.
        """
        self._check(latents, condition)
        parts = self.windows(latents.shape[1])
        if len(parts) == 1:
            return self._predict(latents, t, condition, guidance_scale, tap, parts[0])
        noise, features = torch.zeros_like(latents), None
        for window in parts:
            seen = self._predict(window.of(latents), t, condition.seen(window), guidance_scale, tap, window)
            window.add(seen.noise, noise)
            if seen.features is not None:
                if features is None:
                    features = seen.features.new_zeros(*latents.shape[:2], *seen.features.shape[2:])
                window.add(seen.features, features)
        return Prediction(noise, features)

    def windows(self, frames: int) -> tuple[Window, ...]:
        """The windows in which a clip of ``frames`` frames is evaluated; one for all if the UNet isn't inflated."""
        return windows(frames, frames_of(self.unet) or frames, self.overlap)

    def _predict(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float, tap: Tap | None, window: Window
    ) -> Prediction:
        """:meth:`forward` of the frames of one window."""
        guided, stacked = guidance_scale != 1.0, latents
        if guided:
            each = condition if len(condition.text) == len(latents) else stack(*[condition] * len(latents))
            condition, stacked = stack(each.null, each), torch.cat([latents, latents])  # [null, cond] along b
        # a rewrite needs all branches at once
        step = 1 if self.branches == "alone" and (tap is None or tap.rewrite is None) else len(stacked)
        with self._tapped(tap, min(step, len(latents)), window) as features:
            parts = [
                self.output(part, torch.full((len(part),), t, device=latents.device), condition.branches(i, len(part)))
                for i, part in zip(range(0, len(stacked), step), stacked.split(step), strict=True)
            ]
        output = torch.cat(parts).to(latents.dtype)
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance_scale * (conditional - unconditional)
        noise = to_noise(output, latents, self.alphas_cumprod[t], self.prediction_type)
        tapped = torch.cat(features)[-len(latents) :] if features else None
        if tap is not None and tap.read is not None and tapped is not None:
            tap.read(tapped, window)
            tapped = None
        return Prediction(noise, tapped)

    def output(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's raw output `b f c h w` in its own parametrisation, for ``t`` `b`, as the training loss needs
        it.

        Raises :class:`DenoiserError` if frames or branches of latents and condition don't fit.
        """
        self._check(latents, condition)
        b, f = latents.shape[:2]
        if (inflated := frames_of(self.unet)) not in (None, f):
            raise DenoiserError(f"latents hold {f} frames but the UNet was inflated for {inflated}: inflate it for {f}")
        dtype = next(self.unet.parameters()).dtype  # diffusers' own `dtype` iterates over all parameters at each call
        text = condition.text.to(latents.device, dtype).expand(b, -1, -1)
        image = condition.image.to(latents.device, dtype).expand(b, f, -1)
        sample = self.unet(
            latents.to(dtype).flatten(0, 1),  # (b f) c h w
            t.to(latents.device).repeat_interleave(f),  # (b f)
            return_dict=False,
            **unet_inputs(self.unet, text.repeat_interleave(f, dim=0), image.flatten(0, 1)),  # (b f) l d, (b f) d
        )[0]
        return sample.unflatten(0, (b, f))

    def _check(self, latents: Tensor, condition: Condition) -> None:
        if latents.ndim != 5:
            raise DenoiserError(f"latents of shape {tuple(latents.shape)}: give them as `b f c h w`")
        b, f = latents.shape[:2]
        if condition.text.shape[0] not in (1, b):
            raise DenoiserError(f"{condition.text.shape[0]} conditions for {b} latents: give one, or one for each")
        if condition.image.shape[1] not in (1, f):
            raise DenoiserError(
                f"condition has {condition.image.shape[1]} pictures for {f} frames: give one, or one per frame"
            )

    @contextmanager
    def _tapped(self, tap: Tap | None, b: int, window: Window) -> Iterator[list[Tensor]]:
        """While open, the tapped block's output is collected and rewritten; ``b``: of one guidance branch."""
        features: list[Tensor] = []
        if tap is None:
            yield features
            return
        blocks = cast(nn.ModuleList, self.unet.up_blocks)
        if not -len(blocks) <= tap.block < len(blocks):
            raise DenoiserError(f"tap.block={tap.block} is out of range: the UNet has {len(blocks)} up blocks")

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
            whole = output.unflatten(0, (-1, len(window.frames)))  # g*b n d h' w'
            conditional = whole[-b:]
            features.append(conditional)
            if tap.rewrite is None:
                return None
            rewritten = tap.rewrite(conditional, whole, window)
            if rewritten.shape != whole.shape:
                raise DenoiserError(
                    f"tap.rewrite made {tuple(rewritten.shape)} of {tuple(whole.shape)}: keep the shape"
                )
            return rewritten.to(output.dtype).flatten(0, 1)

        handle = blocks[tap.block].register_forward_hook(hook)
        # compiled graphs of the whole UNet do not see the hook
        whole = hasattr(self.unet, "_orig_mod") or getattr(self.unet, "_compiled_call_impl", None) is not None
        try:
            with torch.compiler.set_stance("force_eager") if whole else nullcontext():
                yield features
        finally:
            handle.remove()
