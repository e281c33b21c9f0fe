"""The method as a LightningModule: ``training_step`` tunes on one clip, ``predict_step`` edits it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tave.config import TuningOptions
from tave.encoders import Condition
from tave.finite import PRECISION, Watch, check_finite
from tave.inflate import tuned_state
from tave.memory import adamw
from tave.pipeline import Edit, Inversion, Pipeline, Source, Target
from tave.schedule import add_noise, training_target
from tave.seeds import generator_for

log = logging.getLogger(__name__)

# How much larger the loss of one draw may be after the tuning. After 12 steps on a drawn clip it is 0.97 times the
# first one at the default learning rate, 0.75 at fifty times that, and 3.1 to 3.6 at rates that destroy the network.
GROWN = 1.5
UNET = "denoiser.unet."  # begins the names of the tuned weights in a checkpoint


@dataclass(frozen=True)
class TuningBatch:
    """One clip to tune on: latents ``1 f c h w``, the source condition, and ``embeds`` `f e`, each frame's own."""

    latents: Tensor
    condition: Condition
    embeds: Tensor


@dataclass(frozen=True)
class EditTask:
    """One edit to predict: the encoded clip and what is requested."""

    source: Source
    target: Target


class Editor(L.LightningModule):
    """Tunes the pipeline's denoiser on a clip and edits that clip. Its state dict holds only what is tuned."""

    def __init__(
        self,
        pipeline: Pipeline,
        tuning: TuningOptions = TuningOptions(),
        *,
        seed: int = 0,
        optimizer: str = "adamw",
    ) -> None:
        super().__init__()
        self.pipeline, self.denoiser = pipeline, pipeline.denoiser
        self.tuning, self.seed, self.optimizer = tuning, seed, optimizer
        self.strict_loading = False  # checkpoints hold the tuned weights alone
        self.watch = Watch("tuning", f"lower tuning.lr (now {tuning.lr:g})")
        self._first: Tensor | None = None  # the loss of the first step
        self._batch: TuningBatch | None = None
        self._inverted: tuple[Source, Inversion] | None = None

    # ---- tuning ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: TuningBatch, batch_idx: int) -> Tensor:
        """The :meth:`loss` of the next step."""
        loss = self.loss(batch, self.global_step)
        if self.global_step == 0:
            check_finite("tuning, step 1", {"loss": loss}, PRECISION)
            self._first = loss.detach()
        self.watch.add(self.global_step + 1, "loss", loss)
        self._batch = batch
        self.log("loss", loss, prog_bar=True)
        return loss

    def loss(self, batch: TuningBatch, step: int) -> Tensor:
        """Mean square between predicted and true target at one random t (docs/method.md, section 3).

        All draws come from (seed, step), so a resumed run equals an uninterrupted one to the bit.
        """
        generator, encoders = generator_for(self.seed, "tuning", step), self.pipeline.encoders

        def draw(top: int) -> int:
            return int(torch.randint(top, (1,), generator=generator))

        t = draw(len(self.denoiser.alphas_cumprod))
        level = draw(encoders.levels) if self.tuning.image_noise is None else self.tuning.image_noise
        shown = batch.embeds[draw(len(batch.embeds))][None]
        image = encoders.image_vector(shown, level, torch.randn(shown[:1].shape, generator=generator).to(shown))[None]
        if float(torch.rand(1, generator=generator)) < self.tuning.image_dropout:
            image = torch.zeros_like(image)
        condition = Condition(text=batch.condition.text, image=image, null_text=batch.condition.null_text)
        noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
        alpha = self.denoiser.alphas_cumprod[t]
        noisy = add_noise(batch.latents, noise, alpha)
        target = training_target(batch.latents, noise, alpha, self.denoiser.prediction_type)
        output = self.denoiser.output(noisy, torch.tensor([t], device=noisy.device), condition)
        return F.mse_loss(output.float(), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return adamw(trained, self.optimizer, self.tuning.lr, self.tuning.weight_decay)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses a fused optimizer under any autocast; only that of float16 scales the gradients.
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        if gradient_clip_val:
            clip_grads_with_norm_([p for p in self.parameters() if p.requires_grad], gradient_clip_val, norm)
        if self._trainer is None or self.trainer.precision != "16-mixed":  # whose scaler leaves out such a step
            self.watch.add(self.global_step + 1, "gradient", norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.check_tuned()
        checkpoint["state_dict"] = {f"{UNET}{name}": value for name, value in state.items()}
        checkpoint["first_loss"] = self._first

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._first = checkpoint.get("first_loss")

    def on_train_end(self) -> None:
        self.check_tuned()
        self._check_growth()

    def _check_growth(self) -> None:
        """Warn if the tuning made the loss larger.

        The losses of the steps don't tell: each has its own random t, with which it varies by orders of magnitude. So
        the first step's draw, which the untuned network was measured on, is measured again.
        """
        if self._first is None or self._batch is None:
            return
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            before, after = float(self._first), float(self.loss(self._batch, 0))
        if not after <= GROWN * before:
            log.warning(
                "the tuning made the loss grow, on the same draw from %.3g to %.3g: lower tuning.lr (now %g)",
                *(before, after, self.tuning.lr),
            )

    def check_tuned(self) -> dict[str, Tensor]:
        """The :func:`tuned_state` after the last step. Raises :class:`NonFiniteError` for NaN and infinity so far."""
        self.watch.read()
        state = tuned_state(self.denoiser.unet)
        weights = {f"weight {name}": value for name, value in state.items()}
        check_finite(f"tuning, step {self.global_step}", weights, self.watch.remedy)
        return state

    # ---- editing -----------------------------------------------------------------------------------------------------

    def predict_step(self, task: EditTask, batch_idx: int) -> Edit:
        """Invert the clip, once for all its edits, and edit it (docs/method.md, sections 4 to 6)."""
        if self._inverted is None or self._inverted[0] is not task.source:
            self._inverted = (task.source, self.pipeline.invert(task.source))
        return self.pipeline.edit(task.source, self._inverted[1], task.target)
