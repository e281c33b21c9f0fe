"""What a run logs: losses, reconstruction, maps, masks, clips and the table of figures.

Numbers go to any Lightning logger. What else a logger can show is dispatched on its type in the functions below the
callback: pictures, clips and a table.
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
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tave.config import WHOLE, OptionError, choice
from tave.editor import Editor
from tave.keys import literals
from tave.pipeline import Edit
from tave.record import read_metrics
from tave.video import contact_sheet, heat, read_clip, read_image
from tave.video.frames import to_pixels

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
SUMMARIES = {True: "max", False: "min", None: "mean"}  # of a metric with this direction
WANDB_HOST = "https://api.wandb.ai"


class RunLogger(Callback):
    """Logs a run in ``folder`` to ``loggers``; ``config`` is the whole configuration, logged as hyperparameters.

    Edits follow the tuning on the step axis: edit ``n`` is step ``tuning.steps + n``. Their clips and pictures are the
    files in ``edits/NAME``, so the writer must come before this callback.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path, config: Mapping[str, Any]) -> None:
        self.loggers, self.folder, self.config = list(loggers), folder, dict(config)
        self._started = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called by both loops: the first of them logs the configuration."""
        if not self._started:
            for logger in self.loggers:
                # the others write them as YAML that OmegaConf reads, and W&B shows them as they are
                logger.log_hyperparams(self.config if isinstance(logger, WandbLogger) else literals(self.config))
        self._started = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Editor, outputs: Edit, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        edit, step, name = outputs, pl_module.tuning.steps + batch_idx, outputs.target.name
        here = self.folder / "edits" / name
        numbers = {
            "reconstruction_psnr": edit.inversion.reconstruction_psnr,
            "autoencoder_psnr": edit.inversion.autoencoder_psnr,
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
                log_picture(logger, key, picture, name, step)
            log_clip(logger, "edit/clip", here / "side_by_side.mp4", name, step)
            log_clip(logger, "mask/clip", here / "mask.mp4", name, step)

    def log_figures(self, edits: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the figures of ``edits``, name -> metric -> value: a table of the cases, and what a logger shows of them.

        The metrics' directions are those of ``metrics.json``.
        """
        numbers = {
            name: {key: float(value) for key, value in figures.items() if isinstance(value, (int, float))}
            for name, figures in edits.items()
        }
        columns = list(dict.fromkeys(key for figures in numbers.values() for key in figures))
        clip, facts = str(self.config["video"]["name"]), read_metrics(self.folder).get("metrics", {})
        rows = [[clip, name, *map(figures.get, columns)] for name, figures in numbers.items()]
        directions = {key: facts.get(key, {}).get("higher_is_better") for key in columns}
        for logger in self.loggers:
            log_table(logger, "cases", ["clip", "edit", *columns], rows)
            log_numbers(logger, list(numbers.values()), directions, self.config["metrics"]["objective"])

    def close(self) -> None:
        """Finish all logs; to be called once, also where the run failed."""
        for logger in self.loggers:
            finish(logger)


# ---- pictures --------------------------------------------------------------------------------------------------------


def heat_sheet(per_step: Tensor, size: int = 96) -> Tensor:
    """Maps `T f h w` >= 0 as a sheet `3 H W` in [-1, 1]: first, middle and last frame down, up to eight steps across.

    One scale for all, so that a step with little disagreement is dark; a map is at least ``size`` pixels high.
    """
    frames = sorted({0, per_step.shape[1] // 2, per_step.shape[1] - 1})
    times = max(1, -(-size // per_step.shape[2]))
    maps = heat(per_step.float() / per_step.amax().clamp(min=1e-12))
    rows = [interpolate(maps[:, frame], scale_factor=times, mode="nearest") for frame in frames]
    return contact_sheet(rows)


# ---- what each kind of logger can show -------------------------------------------------------------------------------


@singledispatch
def log_picture(logger: Logger, key: str, picture: Tensor, caption: str, step: int) -> None:
    """Log a picture `3 H W` in [-1, 1]; a logger of numbers alone ignores it."""


@log_picture.register
def _(logger: WandbLogger, key: str, picture: Tensor, caption: str, step: int) -> None:
    logger.log_image(key, _images(picture[None]), step, caption=[caption])


@log_picture.register
def _(logger: TensorBoardLogger, key: str, picture: Tensor, caption: str, step: int) -> None:
    logger.experiment.add_image(key, (picture + 1) / 2, step)


@singledispatch
def log_clip(logger: Logger, key: str, clip: Path, caption: str, step: int) -> None:
    """Log a clip by its file; a logger of numbers alone ignores it."""


@log_clip.register
def _(logger: WandbLogger, key: str, clip: Path, caption: str, step: int) -> None:
    logger.log_video(key, [str(clip)], step, caption=[caption], format=["mp4"])


@log_clip.register
def _(logger: TensorBoardLogger, key: str, clip: Path, caption: str, step: int) -> None:
    # An animated GIF in place of a picture: `add_video` needs moviepy.
    from torch.utils.tensorboard.summary import image

    decoded = read_clip(clip, WHOLE)
    first, *others = _images(decoded.frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / decoded.fps), loop=0)
    summary = image(key, (decoded.frames[0] + 1) / 2, dataformats="CHW")
    summary.value[0].image.encoded_image_string = buffer.getvalue()
    logger.experiment._get_file_writer().add_summary(summary, step)


@singledispatch
def log_table(logger: Logger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table; a logger of numbers alone ignores it."""


@log_table.register
def _(logger: WandbLogger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    logger.log_table(key, columns=columns, data=rows)


@log_table.register
def _(logger: TensorBoardLogger, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    lines = [columns, ["---"] * len(columns), *rows]
    logger.experiment.add_text(key, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


@singledispatch
def log_numbers(
    logger: Logger, edits: list[dict[str, float]], directions: Mapping[str, bool | None], objective: str | None
) -> None:
    """Log the figures of each of ``edits`` as ``figure/METRIC``: here their means."""
    found = {key: [figures[key] for figures in edits if key in figures] for key in directions}
    logger.log_metrics({f"figure/{key}": fmean(values) for key, values in found.items()})


@log_numbers.register
def _(
    logger: WandbLogger, edits: list[dict[str, float]], directions: Mapping[str, bool | None], objective: str | None
) -> None:
    # The run's summary gets the best of its edits, or the mean where no direction is better, and no chart of one point
    # is drawn for each. `goal` is what a search optimises.
    run = logger.experiment
    for key, higher in directions.items():
        run.define_metric(f"figure/{key}", summary=SUMMARIES[higher], hidden=True)
    for figures in edits:
        run.log({f"figure/{key}": value for key, value in figures.items()})
    if objective in directions:
        run.log({"goal": fmean(figures[objective] for figures in edits if objective in figures)})


@singledispatch
def finish(logger: Logger) -> None:
    """Finish a log."""
    logger.finalize("success")


def _images(frames: Tensor) -> list[Image.Image]:
    """Frames `f 3 H W` in [-1, 1] as PIL images."""
    return [Image.fromarray(frame) for frame in to_pixels(frames)]


# ---- opening loggers -------------------------------------------------------------------------------------------------


def open_loggers(settings: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Logger]:
    """The loggers of ``settings``, name -> arguments; each keeps its files below ``folder/logs``.

    A name is csv, tensorboard or wandb; another one must give the class of a Lightning logger as ``_target_``.
    """
    known = {"csv": CSVLogger, "tensorboard": tensorboard, "wandb": Wandb}
    opened = []
    for name, arguments in settings.items():
        arguments = dict(arguments)
        if target := arguments.pop("_target_", None):
            from hydra.utils import get_class

            kind = get_class(target)
        else:
            choice("logger", name, tuple(known))
            kind = known[name]
        try:
            opened.append(kind(save_dir=str(folder / "logs"), **arguments))
        except TypeError as error:
            raise OptionError(f"logger.{name}: {error}") from error
    return opened


class Wandb(WandbLogger):
    """Weights & Biases without prompts and long waits: offline where there is no key or no response.

    Args:
        mode: online, offline (files below the run folder, for ``wandb sync``) or disabled.
        wait: seconds after which an online run without a response continues offline.
        tags: those that are None or empty are left out.
        kwargs: passed to :class:`WandbLogger` and ``wandb.init``.
    """

    def __init__(self, mode: str = "offline", wait: float = 20, tags: Sequence[str | None] = (), **kwargs: Any) -> None:
        choice("logger.wandb.mode", mode, MODES)
        if mode == "online" and not _has_key():
            log.warning("logger.wandb.mode=online, but there is no key in WANDB_API_KEY or netrc: logging offline")
            mode = "offline"
        # wandb's own timeout offline: its helper process may be slow to start
        settings = {"silent": True} | ({"init_timeout": wait} if mode == "online" else {})
        super().__init__(mode=mode, tags=[tag for tag in tags if tag], settings=settings, **kwargs)
        del self._wandb_init["anonymous"]  # wandb warns about any value

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started on first access."""
        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)  # else its files go to a temporary folder
        try:
            return super().experiment
        except Exception as error:  # wandb's own, whose names would need its import
            if self._wandb_init["mode"] != "online":
                raise
            reason = str(error).partition("\n")[0]
            log.warning("W&B does not respond (%s): logging offline, upload it later with wandb sync", reason)
            self._wandb_init |= {"mode": "offline", "settings": {"silent": True}}
            return super().experiment

    def finish(self) -> None:
        """End the wandb run, if one was started: else the next run of a sweep would continue it."""
        if self._experiment is not None:
            self._experiment.finish()


@finish.register
def _(logger: Wandb) -> None:
    logger.finish()


def _has_key() -> bool:
    """Whether wandb would find a key for its server; the key itself is not read."""
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


def tensorboard(**kwargs: Any) -> TensorBoardLogger:
    """A :class:`TensorBoardLogger`. Raises :class:`OptionError` where its package is not installed."""
    if find_spec("tensorboard") is None:
        raise OptionError("logger=tensorboard needs a package that isn't installed: pip install tensorboard")
    return TensorBoardLogger(**kwargs)
