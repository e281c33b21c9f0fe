"""Checkpoints of a tuning: whole files with a digest, read as data, written where the tuning may have to continue."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tave.cache import DamagedError, Form, form_of
from tave.files import FileError, whole_file
from tave.finite import NonFiniteError

log = logging.getLogger(__name__)

MARK = b"tave checkpoint, SHA-256 "  # a line of this and the digest, then what torch.save wrote
STEPS = 50  # between two checkpoints
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "pytorch-lightning_version")


class CheckpointFile(TorchCheckpointIO):
    """Lightning's checkpoints as whole files with a digest. Reading one runs no code from it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint``, or leave the file that is there as it is."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            file.write(MARK + digest.encode() + b"\n")
            file.write(content.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = lambda storage, _: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Raises :class:`DamagedError` if it is not what was written, or holds more than data."""
        path = Path(path)
        with path.open("rb") as file:
            line = file.readline(len(MARK) + 65)
            if line != MARK + hashlib.file_digest(file, "sha256").hexdigest().encode() + b"\n":
                raise DamagedError(path, "its content differs from its SHA-256")
            file.seek(len(line))
            try:
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
            except Exception as error:  # the unpickler raises whatever the content leads to
                raise DamagedError(path, f"not plain data: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(checkpoint, dict) or (lacking := [part for part in PARTS if part not in checkpoint]):
            raise DamagedError(path, f"it lacks {', '.join(lacking)}" if isinstance(checkpoint, dict) else "no mapping")
        return checkpoint


class TuningCheckpoint(Checkpoint):
    """Writes ``path`` every :data:`STEPS` steps, and where the tuning is interrupted."""

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % STEPS == 0 and trainer.global_step < trainer.max_steps:
            self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteError | FileError):  # what is there is good, and a full disk stays full
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.global_step > self.written:
            trainer.save_checkpoint(self.path)
            self.written = trainer.global_step


def resumable(path: Path, form: Form | None = None) -> Path | None:
    """``path`` if a tuning can continue from it. One that is damaged is named, and set aside as ``*.damaged``.

    ``form``: that of its state.
    """
    if not path.exists():
        return None
    try:
        state = CheckpointFile().load_checkpoint(path)["state_dict"]
        if form is not None and form_of(state) != form:
            raise DamagedError(path, "it holds other weights than those that are tuned")
    except DamagedError as error:
        aside = path.replace(path.with_name(f"{path.name}.damaged"))
        log.warning("%s: set aside as %s, the tuning begins anew", error.fault, aside.name)
        return None
    return path
