"""Whether the disk has room for a run, told before the work, and whether the run's folder is still there after it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tave.cache import key_of
from tave.files import FileError

if TYPE_CHECKING:
    from tave.run import Run

CHECKPOINT = 3  # weights and the two moments of AdamW
MIB = 2**20


def check_space(run: Run) -> None:
    """Raise :class:`FileError` if the disk has less room than the tensors of ``run`` that aren't stored yet will take.

    Clips and logs, which are small beside them, are not counted: what is refused does fail.
    """
    options, frames, vae = run.options, run.clip.frames, dict(run.backbone.vae.config)
    cells = len(frames) * (frames.shape[-2] * frames.shape[-1]) // 4 ** (len(vae["block_out_channels"]) - 1)
    trajectory = (options.inversion.steps + 1) * cells * vae["latent_channels"] * 4  # float32
    trained = [weight for weight in run.editor.denoiser.unet.parameters() if weight.requires_grad]
    tuned = sum(weight.nbytes for weight in trained) if options.tuning.steps else 0
    cache = Path(options.cache)
    needed = {
        run.folder / "trajectory.safetensors": trajectory,
        cache / f"trajectory-{key_of(run.key, options.inversion)}.safetensors": trajectory,
        run.folder / "tuned.safetensors": tuned,
    }
    stored = cache / f"tuned-{run.tuned_key}.safetensors"
    if not (run.folder / "tuned.safetensors").is_file():
        needed[stored] = (1 + CHECKPOINT) * tuned
    by_disk: dict[int, list[Path]] = {}
    for path in needed:
        if not path.is_file():
            by_disk.setdefault(_standing(path).stat().st_dev, []).append(path)
    for paths in by_disk.values():
        due, free = sum(needed[path] for path in paths), shutil.disk_usage(_standing(paths[0])).free
        if due > free:
            raise FileError(
                f"{paths[0].parent}: the disk has {free // MIB} MiB left and this run needs {due // MIB + 1} MiB: free "
                "some space, or give hydra.run.dir=FOLDER and cache=FOLDER on another disk"
            )


def check_present(folder: Path) -> None:
    """Raise :class:`FileError` if the run ``folder`` was removed under the run, which has put its later files there."""
    if not (folder / "source.mp4").is_file():
        raise FileError(f"{folder}: its files were removed while it was written: run the same command again")


def _standing(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
