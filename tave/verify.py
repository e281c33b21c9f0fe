"""Entry point: is a run folder still what was made? Inputs, weights, edits, masks and figures by their SHA-256.

python -m tave.verify run=RUN_FOLDER
python -m tave.verify run=RUN_FOLDER remake=true    # make it again elsewhere, and compare bit for bit
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tave.cli import Context, entry_point
from tave.config import BackboneOptions, VerifyOptions
from tave.files import FileError, file_digest
from tave.findings import Finding, find_input, inputs_of, is_input
from tave.record import SUMS, check_links, differences, read_edit, read_run, read_sums, recorded, unlisted


def verify(options: VerifyOptions) -> Iterator[Finding]:
    """Compare a run folder with its record, and with the run made again if ``options.remake``."""
    run = Path(options.run)
    if not run.is_dir():
        raise FileError(f"{run}: no such folder; give the one that tave.train printed last")
    check_links(run)
    for part in (_recorded_files(run), _inputs(run, options.inputs), _base_weights(run, options)):
        try:
            yield from part
        except FileError as error:  # a file that can't be read
            yield Finding(False, str(error))
    if options.remake:
        from tave.remake import remade

        yield from remade(run, options)


def _recorded_files(run: Path) -> Iterator[Finding]:
    """The files of the folder and of each edit against SHA256SUMS."""
    edits = sorted(path for path in run.glob("edits/[!.]*") if path.is_dir())
    for folder in (run, *edits):
        sums = read_sums(folder)
        if not sums:
            yield Finding(False, f"{folder / SUMS} is missing: give the command again that made it")
            continue
        wrong = differences(folder) + [
            f"{folder / name} is not in {SUMS}, a command was stopped as it wrote it: give that command again"
            for name in unlisted(folder, whole=folder != run)
        ]
        yield from (Finding(False, line) for line in wrong)
        if not wrong:
            yield Finding(True, f"{len(sums)} files of {folder}")


def _inputs(run: Path, moved: str | None) -> Iterator[Finding]:
    """The clip, pictures and masks that the run and its edits were made from."""
    known: dict[str, Any] = {}
    found = read_run(run).get("inputs")
    if isinstance(found, dict):
        known |= found
    for edit in sorted(run.glob("edits/*/edit.json")):
        known |= {path: digest for path, digest in inputs_of(read_edit(edit.parent)).items() if path not in known}
    for path, digest in known.items():
        if (here := find_input(path, digest, moved)) is not None:
            yield Finding(True, f"the input {here}")
        elif is_input(Path(path)):
            yield Finding(False, f"the input {path} has changed since the run: its SHA-256 is not the recorded one")
        else:
            yield Finding(None, f"the input {path} is not here: give inputs=FOLDER, which holds it")


def _base_weights(run: Path, options: VerifyOptions) -> Iterator[Finding]:
    """The weights that the clip was tuned from, by what ``tuned.safetensors`` records of them."""
    from tave.cache import StoredError, read_about

    try:
        base = read_about(run / "tuned.safetensors").get("base")
        backbone = BackboneOptions(**recorded(run).get("backbone", {}))
    except (StoredError, FileError) as error:
        yield Finding(False, str(error))
        return
    wrong, absent = [], []
    for name, digest in (base if isinstance(base, dict) else {}).items():
        found = list(_digests(backbone, options, name))
        if not found:
            absent.append(name)
        elif digest not in found:
            wrong.append(name)
    if wrong:
        yield Finding(False, f"the base weights {', '.join(wrong)} are not those that the clip was tuned from")
    elif absent:
        yield Finding(None, f"the base weights {', '.join(absent)} are not here: give backbone.path=FOLDER")
    else:
        yield Finding(True, f"{len(base or ())} files of the base weights, their configurations among them")


def _digests(backbone: BackboneOptions, options: VerifyOptions, name: str) -> Iterator[str]:
    """The SHA-256 of the file ``name`` of a backbone, wherever it may lie; of the tiny one, that of its part."""
    from tave.backbone import tiny_backbone
    from tave.backbone.files import local_copy

    if backbone.family == "tiny":
        yield from [tiny_backbone(backbone.seed, backbone.prediction_type or "v_prediction").hashes.get(name, "")]
        return
    path, adapter = options.backbone.path or backbone.path, options.backbone.adapter or backbone.adapter
    places: Iterable[str] = [
        *([path] if path else backbone.mirrors),
        *([adapter] if adapter else backbone.adapter_mirrors),
    ]
    for folder in map(local_copy, places):
        if folder is not None and (folder / name).is_file():
            yield file_digest(folder / name)


def _work(options: VerifyOptions, _: Context) -> None:
    found: list[bool | None] = []
    for finding in verify(options):
        print(finding, flush=True)
        found.append(finding.ok)
    if unchecked := found.count(None):
        print(f"{unchecked} of {len(found)} lines above say what was not checked", flush=True)
    if failed := found.count(False):
        raise FileError(f"{options.run}: {failed} of {len(found)} lines above say what is no longer as it was made")


_main = entry_point("verify a run folder", "verify", _work)


def main() -> None:
    """The entry point; a bare word is the run folder."""
    words = [f"run={word}" if _is_folder(word) else word for word in sys.argv[1:]]
    sys.argv[1:] = words
    _main()


def _is_folder(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).is_dir())


if __name__ == "__main__":
    main()
