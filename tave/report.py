"""What a run tells its loggers: losses, reconstruction, maps, masks, clips and the table of figures.

Any Lightning logger takes the numbers. What else one can show stands in the functions below the callback, a case for each
kind of logger: pictures, clips and a table.
"""

from __future__ import annotations

import io
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from functools import singledispatch
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

import lightning as L
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tave.editor import Edit, Editor
from tave.options import OptionError
from tave.video import ReadOptions, contact_sheet, read_clip, read_image
from tave.video.frames import to_pixels

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
WANDB_HOST = "https://api.wandb.ai"


class Report(Callback):
    """Tells ``loggers`` of a run in ``folder``; ``config`` is the whole configuration, shown beside its numbers.

    Edits follow the tuning on the axis of steps: edit ``n`` is step ``tuning.steps + n``. Their clips and pictures are
    those that the writer left in ``edits/NAME``, so it must come before this callback.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path, config: Mapping[str, Any]):
        self.loggers, self.folder, self.config = list(loggers), folder, dict(config)
        self._begun = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Both loops begin here: the first of them tells the configuration."""
        if not self._begun:
            for logger in self.loggers:
                logger.log_hyperparams(self.config)
        self._begun = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Editor, outputs: Edit, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        edit, step = outputs, pl_module.tuning.steps + batch_idx
        here = self.folder / "edits" / edit.name
        numbers = {
            "reconstruction_psnr": edit.inverted.reconstruction_psnr,
            "autoencoder_psnr": edit.inverted.autoencoder_psnr,
            "edit/mask_share": float(edit.mask.mask.mean()),
        }
        pictures = {"edit/sheet": read_image(here / "side_by_side.png").rgb}
        if (here / "reference.png").is_file():
            pictures["edit/reference"] = read_image(here / "reference.png").rgb
        if len(edit.mask.per_step):
            pictures["mask/per_step"] = heat_sheet(edit.mask.per_step.cpu())
        for logger in self.loggers:
            logger.log_metrics(numbers, step)
            for key, picture in pictures.items():
                show(logger, key, picture, edit.name, step)
            play(logger, "edit/clip", here / "side_by_side.mp4", edit.name, step)
            play(logger, "mask/clip", here / "mask.mp4", edit.name, step)

    def measured(self, edits: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell the figures of ``edits``, name -> metric -> value: a table, and their means as ``figure/METRIC``."""
        numbers = [{key: float(v) for key, v in told.items() if isinstance(v, (int, float))} for told in edits.values()]
        columns = list(dict.fromkeys(key for told in numbers for key in told))
        clip = str(self.config["video"]["name"])
        rows = [[clip, name, *map(told.get, columns)] for name, told in zip(edits, numbers, strict=True)]
        means = {f"figure/{key}": fmean(told[key] for told in numbers if key in told) for key in columns}
        for logger in self.loggers:
            tabulate(logger, "figures", ["clip", "edit", *columns], rows)
            logger.log_metrics(means)

    def close(self) -> None:
        """Finish all logs; to be called once, also where the run failed."""
        for logger in self.loggers:
            finish(logger)


# ---- pictures --------------------------------------------------------------------------------------------------------


def heat(maps: Tensor) -> Tensor:
    """Maps `... h w` in [0, 1] as heat, `... 3 h w` in [-1, 1]: black, red, yellow, white."""
    return torch.stack([(maps * 3 - channel).clamp(0, 1) for channel in range(3)], dim=-3) * 2 - 1


def heat_sheet(per_step: Tensor, size: int = 96) -> Tensor:
    """Maps `T f h w` >= 0 as a sheet `3 H W` in [-1, 1]: first, middle and last frame down, up to eight steps across.

    One scale for all, so that a step that says little is dark; a map is at least ``size`` pixels high.
    """
    frames = sorted({0, per_step.shape[1] // 2, per_step.shape[1] - 1})
    times = max(1, -(-size // per_step.shape[2]))
    maps = heat(per_step.float() / per_step.amax().clamp(min=1e-12))
    rows = [interpolate(maps[:, frame], scale_factor=times, mode="nearest") for frame in frames]
    return contact_sheet(rows)


# ---- what each kind of logger can show -------------------------------------------------------------------------------


@singledispatch
def show(logger: Logger, key: str, picture: Tensor, caption: str, step: int) -> None:
    """A picture `3 H W` in [-1, 1]; a logger that keeps numbers alone passes it over."""


@show.register
def _(logger: WandbLogger, key: str, picture: Tensor, caption: str, step: int) -> None:
    logger.log_image(key, _images(picture[None]), step, caption=[caption])


@show.register
def _(logger: TensorBoardLogger, key: str, picture: Tensor, caption: str, step: int) -> None:
    logger.experiment.add_image(key, (picture + 1) / 2, step)


@singledispatch
def play(logger: Logger, key: str, clip: Path, caption: str, step: int) -> None:
    """A clip, by its file; a logger that keeps numbers alone passes it over."""


@play.register
def _(logger: WandbLogger, key: str, clip: Path, caption: str, step: int) -> None:
    logger.log_video(key, [str(clip)], step, caption=[caption], format=["mp4"])


@play.register
def _(logger: TensorBoardLogger, key: str, clip: Path, caption: str, step: int) -> None:
    # An animated GIF in place of the picture: `add_video` would need moviepy to make one.
    from torch.utils.tensorboard.summary import image

    told = read_clip(clip, ReadOptions(frames=None, multiple=1))
    first, *others = _images(told.frames)
    made = io.BytesIO()
    first.save(made, "GIF", save_all=True, append_images=others, duration=round(1000 / told.fps), loop=0)
    summary = image(key, (told.frames[0] + 1) / 2, dataformats="CHW")
    summary.value[0].image.encoded_image_string = made.getvalue()
    logger.experiment._get_file_writer().add_summary(summary, step)


@singledispatch
def tabulate(logger: Logger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table; a logger that keeps numbers alone passes it over."""


@tabulate.register
def _(logger: WandbLogger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    logger.log_table(key, columns=columns, data=rows)


@tabulate.register
def _(logger: TensorBoardLogger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    lines = [columns, ["---"] * len(columns), *rows]
    logger.experiment.add_text(key, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


@singledispatch
def finish(logger: Logger) -> None:
    """Nothing more will come."""
    logger.finalize("success")


def _images(frames: Tensor) -> list[Image.Image]:
    """Frames `f 3 H W` in [-1, 1] as pictures."""
    return [Image.fromarray(frame) for frame in to_pixels(frames)]


# ---- loggers that can't be opened as they are ------------------------------------------------------------------------


class Wandb(WandbLogger):
    """Weights & Biases that never asks and never waits long: offline without a key or without an answer.

    Args:
        mode: online, offline (files below the run folder, for ``wandb sync``) or disabled.
        wait: seconds until an online run without an answer goes on offline.
        tags: those that are None or empty are left out.
        told: what :class:`WandbLogger` and ``wandb.init`` take.
    """

    def __init__(self, mode: str = "offline", wait: float = 20, tags: Sequence[str | None] = (), **told: Any):
        if mode not in MODES:
            raise OptionError(f"logger.wandb.mode={mode!r} is not known: choose one of {', '.join(MODES)}")
        if mode == "online" and not _has_key():
            log.warning("logger.wandb.mode=online, but WANDB_API_KEY and netrc hold no key: logged offline, see wandb login")
            mode = "offline"
        # Offline it has wandb's own patience: there it is its helper process that may be slow to start.
        settings = {"silent": True} | ({"init_timeout": wait} if mode == "online" else {})
        super().__init__(mode=mode, tags=[tag for tag in tags if tag], settings=settings, **told)
        del self._wandb_init["anonymous"]  # wandb warns of it, whatever it is

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, begun when it is first asked for."""
        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)  # else its files go to a temporary folder
        try:
            return super().experiment
        except Exception as error:  # wandb's own, whose names would need its import
            if self._wandb_init["mode"] != "online":
                raise
            told = str(error).partition("\n")[0]
            log.warning("W&B gave no answer (%s): logged offline, send it later with wandb sync", told)
            self._wandb_init |= {"mode": "offline", "settings": {"silent": True}}
            return super().experiment

    def finish(self) -> None:
        """End the wandb run, if one was begun: else the next run of a sweep would go on in it."""
        if self._experiment is not None:
            self._experiment.finish()


@finish.register
def _(logger: Wandb) -> None:
    logger.finish()


def _has_key() -> bool:
    """Whether wandb would find a key for its server without asking: only that there is one, it is not read further."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or WANDB_HOST).hostname or ""
    places = [Path(place) for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc") if place]
    for place in (path.expanduser() for path in places):
        try:
            if place.is_file() and netrc.netrc(place).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):
            continue
    return False


def tensorboard(**told: Any) -> TensorBoardLogger:
    """A :class:`TensorBoardLogger`. Raises :class:`OptionError` where its package lacks."""
    if find_spec("tensorboard") is None:
        raise OptionError("logger=tensorboard needs a package that isn't installed: pip install 'tave[tensorboard]'")
    return TensorBoardLogger(**told)
