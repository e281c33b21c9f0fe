"""tave: edit a video by showing what you want.

    from tave import edit_clip, tune_clip
    run = tune_clip("clip.mp4", "a white bus on a mountain road")
    edit = edit_clip(run, "suv.png", "a red suv on a mountain road")

Axes, everywhere: ``b`` batch or guidance branch, ``f`` frame, ``c`` channel, ``H W`` pixels, ``h w`` latent cells,
``n = h w`` tokens, ``l`` text tokens, ``d`` width, ``T`` denoising steps. Latents are ``b f c h w``, pixels
``f 3 H W`` float32 in [-1, 1], masks 1 where the edit goes.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tave.story import edit_clip, tune_clip

__version__ = "0.2.0"
__all__ = ["edit_clip", "tune_clip"]

# Public names and their modules, which are imported at the first use: importing tave costs no torch.
_MODULES = {"edit_clip": "tave.story", "tune_clip": "tave.story"}

_ROOT = Path(__file__).parent.parent

# `python -m tave.X` puts the working folder first on sys.path: a clip's folder with an eval.py, wandb.py or random.py
# would replace the module of that name.
_AS_MODULE = sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").split(".")[0] == "tave" for word in sys.orig_argv)
if _AS_MODULE and sys.path[0] in ("", str(Path.cwd())):
    del sys.path[0]

# In a checkout the package tave.eval is the folder eval/ beside tave/; a wheel carries it inside.
if (_ROOT / "eval").is_dir() and (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tave' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
