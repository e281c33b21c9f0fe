"""From options to objects: backbone, inflated denoiser, pipeline, editor and trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from tave.backbone import Backbone, load_backbone
from tave.cache import Cache
from tave.checkpoints import CheckpointFile
from tave.config import ONE_GPU, OptionError, TrainOptions, within
from tave.denoiser import Denoiser
from tave.editor import Editor
from tave.encoders import Encoders, image_levels
from tave.inflate import compile_blocks, inflate, select_trainables
from tave.memory import held, hold, use_tiles
from tave.pipeline import Pipeline
from tave.progress import OnStep, Progress
from tave.schedule import Schedule


def build_editor(
    options: TrainOptions,
    frames: int,
    *,
    backbone: Backbone | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Editor:
    """The editor for clips of ``frames`` frames. ``backbone``, loaded from the options by default, is inflated in
    place.

    Raises OptionError or BackboneError, in one line, for what does not exist or does not fit.
    """
    backbone = backbone or load_backbone(options.backbone)
    if options.tuning.image_noise is not None:
        within("tuning.image_noise", options.tuning.image_noise, 0, image_levels(backbone) - 1)
    schedule = Schedule.from_scheduler(backbone.scheduler, options.inversion.steps)
    unet = inflate(backbone.unet, frames, options.inflation.kv_frames)
    select_trainables(unet, options.tuning.trainables, options.tuning.lora_rank)
    _save_memory(backbone, unet, options)
    encoders = Encoders(backbone, options.condition, options.memory, seed=options.seed, device=device)
    denoiser = Denoiser(unet, backbone.scheduler, options.memory.branches)
    pipeline = Pipeline(
        denoiser, schedule, encoders, options.editing, seed=options.seed, progress=progress, cache=cache
    )
    pipeline.check()
    return Editor(pipeline, options.tuning, seed=options.seed, optimizer=options.memory.optimizer)


def _save_memory(backbone: Backbone, unet: UNet2DConditionModel, options: TrainOptions) -> None:
    """Apply ``memory`` to the parts, once it is known what trains."""
    dtype = held(options.memory, options.precision)
    if dtype != torch.float32:
        hold(unet, dtype)
        for encoder in (backbone.text_encoder, backbone.image_encoder):
            encoder.to(dtype)  # type: ignore[arg-type]
    if options.memory.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:
        compile_blocks(unet)
    use_tiles(backbone.vae, options.memory.tile)


def build_trainer(
    options: TrainOptions, folder: str, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
) -> L.Trainer:
    """The Trainer of both loops. Raises OptionError, in one line, for arguments that it does not take.

    One clip is tuned and edited on one device: with several Lightning would start the command once for each of them.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    given = options.trainer.get("plugins") or []
    plugins = [CheckpointFile(), *(given if isinstance(given, list | tuple) else [given])]
    try:
        trainer = L.Trainer(
            max_steps=options.tuning.steps,
            gradient_clip_val=options.tuning.gradient_clip or None,
            callbacks=list(callbacks),
            logger=list(loggers) or False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{**options.trainer, "plugins": plugins},
        )
    except Exception as error:  # Lightning's own classes among them
        raise OptionError(f"trainer: {' '.join(str(error).split())}; see the arguments of lightning.Trainer") from error
    if trainer.world_size > 1:
        devices = options.trainer.get("devices")
        raise OptionError(
            f"trainer.devices={devices} are {trainer.world_size} devices, and a clip is edited on one: set "
            f"trainer.devices=1{ONE_GPU}"
        )
    return trainer


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence advice of the Trainer that does not apply: one clip lies in memory, so there is no work for loaders."""
    with warnings.catch_warnings():
        for message in ("does not have many workers", "LeafSpec", "logging interval", "in eval mode",
                        "infer the batch indices", "dataloader is not resumable"):  # fmt: skip
            warnings.filterwarnings("ignore", f".*{message}.*")
        yield


class Tick(Callback):
    """Moves the tuning bar."""

    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_step(trainer.global_step, trainer.max_steps)
