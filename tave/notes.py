"""What the user should know of the weights in use, said once at the beginning of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from tave.backbone import Backbone
from tave.cache import remember
from tave.config import TrainOptions
from tave.inputs import knowledge_notes
from tave.memory import preset_note
from tave.progress import Progress

log = logging.getLogger(__name__)


def note_weights(backbone: Backbone, options: TrainOptions, progress: Progress) -> None:
    """Tell the licence of the weights, which files are unverified, and what suits neither them nor this machine."""
    if backbone.licence:
        progress.note(f"weights of {backbone.name}: {backbone.licence}; it applies to what is tuned from them too")
    if backbone.unverified:
        files = ", ".join(backbone.unverified)
        progress.note(f"not verified, since no published SHA-256 is known: {files}; run.json records theirs")
        _compare_weights(backbone, Path(options.cache))
    if note := preset_note(options.memory, options.precision, torch.cuda.is_available()):
        log.warning("%s", note)
    for note in knowledge_notes(options.backbone, options.video.source_prompt, options.video.requests()):
        log.warning("%s", note)


def _compare_weights(backbone: Backbone, cache: Path) -> None:
    """Warn about unverified files that have changed since they were first used; the cache records their digests."""
    here = {f"{backbone.name}/{file}": backbone.hashes[file] for file in backbone.unverified}
    known = remember(cache / "weights.json", here)
    for file, sha in here.items():
        if known.get(file, sha) != sha:
            log.warning(
                "%s has changed: it was %s, is %s; fetch it again if this is unexpected", file, known[file], sha
            )
