"""tave: edit a video by showing what you want.

    from tave import edit_clip, tune_clip
    run = tune_clip("clip.mp4", "a white bus on a mountain road")
    edit = edit_clip(run, "suv.png", "a red suv on a mountain road")

Axes, everywhere: ``b`` batch or guidance branch, ``f`` frame, ``c`` channel, ``H W`` pixels, ``h w`` latent cells,
``n = h w`` tokens, ``l`` text tokens, ``d`` width, ``T`` denoising steps. Latents are ``b f c h w``, pixels
``f 3 H W`` float32 in [-1, 1], masks 1 where the edit goes.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tave.api import EditedClip, TunedClip, edit_clip, tune_clip
    from tave.build import build_editor, build_trainer
    from tave.cli import compose_options
    from tave.data import VideoData
    from tave.editor import Editor
    from tave.pipeline import Edit, Pipeline, Target
    from tave.reference import TargetImage
    from tave.video import Clip, read_clip, read_image, write_video

__version__ = "0.3.0.dev0"
# Public names by module, which is imported at the first use: importing tave costs no torch.
_NAMES = {
    "tave.api": ("EditedClip", "TunedClip", "edit_clip", "tune_clip"),
    "tave.build": ("build_editor", "build_trainer"),
    "tave.cli": ("compose_options",),
    "tave.data": ("VideoData",),
    "tave.editor": ("Editor",),
    "tave.pipeline": ("Edit", "Pipeline", "Target"),
    "tave.reference": ("TargetImage",),
    "tave.video": ("Clip", "read_clip", "read_image", "write_video"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Clip",
    "Edit",
    "EditedClip",
    "Editor",
    "Pipeline",
    "Target",
    "TargetImage",
    "TunedClip",
    "VideoData",
    "build_editor",
    "build_trainer",
    "compose_options",
    "edit_clip",
    "read_clip",
    "read_image",
    "tune_clip",
    "write_video",
]

_ROOT = Path(__file__).parent.parent

# `python -m tave.X` puts the working folder first on sys.path: a clip's folder with an eval.py, wandb.py or random.py
# would replace the module of that name.
_AS_MODULE = sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").split(".")[0] == "tave" for word in sys.orig_argv)
if _AS_MODULE and sys.path[0] in ("", str(Path.cwd())):
    del sys.path[0]

# As a command: until its main handles signals, packages are imported and nothing is lost.
_AS_SCRIPT = re.fullmatch(r"(.*/)?tave-[a-z]+", "".join(sys.argv[:1]), re.DOTALL) is not None
if (_AS_MODULE or _AS_SCRIPT) and "--multiprocessing-fork" not in sys.orig_argv:  # a worker has its parent's argv
    from tave.interrupts import end_at_once

    end_at_once()

# In a checkout the package tave.eval is the folder eval/ beside tave/; a wheel carries it inside.
if (_ROOT / "eval").is_dir() and (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tave' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
