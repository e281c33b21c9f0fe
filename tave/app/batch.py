"""Entry point: a list of jobs, one after another, each in a process of its own.

tave-batch jobs.json [--dry-run] [out=FOLDER] [cache=FOLDER]
tave-batch --schema

Exit codes: 0 all done; 1 some failed, the others are done; 2 refused, nothing ran (in a dry run: some would fail).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tave.app.check import Prepared, Setting, prepare
from tave.app.job import FILES, Job, inherited, model_words, read_job, same_maps, schema
from tave.app.plan import learn, note
from tave.app.public import cut
from tave.app.worker import Child, reason
from tave.cli import Context, entry_point, one_line
from tave.config import BatchOptions, OptionError
from tave.files import check_writable
from tave.keys import ROOTS, choices_of
from tave.roadside.resolver import drawing_into, keep_folder

FAILED, REFUSED = 1, 2


@dataclass(frozen=True)
class Item:
    """A job of the list. ``files``: absolute paths by key; ``root``: the name of the job that tunes its clip;
    ``maps``: an earlier job compares the same pictures."""

    job: Job
    files: Mapping[str, str]
    root: str
    maps: bool = False

    def line(self, error: Exception) -> str:
        """An error in one line, with the paths as they were given."""
        text = cut(one_line(error, ROOTS["train"]))
        for key, path in self.files.items():
            text = text.replace(path, self.job.values[key])
        return text


def read_list(path: Path, backbones: Sequence[str]) -> list[Item]:
    """The jobs of a file, which is a JSON list. Raises :class:`OptionError` for all that is not a list of jobs."""
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"jobs={path} can't be read ({error.strerror}): give a JSON file with a list of jobs"
        ) from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"jobs={path} is not JSON ({cut(str(error), 100)}): mend it") from None
    if not isinstance(content, list) or not content:
        raise OptionError(f'jobs={path}: give a list of jobs, such as [{{"name": "a", "example": "bus_to_suv"}}]')
    items: dict[str, Item] = {}
    for number, each in enumerate(content, 1):
        try:
            job = read_job(each, backbones)
            if job.name in items:
                raise OptionError(f"name={job.name} is taken by an earlier job: give each its own")
            if job.tuned and job.tuned not in items:
                raise OptionError(f"tuned={job.tuned} is no earlier job of the list: give the name of one")
        except OptionError as error:
            raise OptionError(f"jobs={path}, job {number}: {error}") from None
        given = {key: str((path.parent / Path(value).expanduser()).absolute()) for key, value in _files(job).items()}
        earlier = items.get(job.tuned or "")
        whole = inherited(job, earlier.job) if earlier else job
        files = {key: given.get(key) or (earlier.files[key] if earlier else "") for key in _files(whole)}
        maps = earlier is not None and same_maps(job, earlier.job)
        items[job.name] = Item(whole, files, earlier.root if earlier else job.name, maps)
    return list(items.values())


def _files(job: Job) -> dict[str, str]:
    return {key: value for key in FILES if (value := job.values.get(key))}


class Batch:
    """The jobs of a file, with what they need to run below ``out``."""

    def __init__(self, options: BatchOptions) -> None:
        self.options = options
        self.weights = model_words(options.backbones, options.adapters)
        self.items = read_list(Path(options.jobs), choices_of("backbone"))
        self.out, self.cache = Path(options.out).absolute(), Path(options.cache).absolute()
        self.scratch = ""  # folder of a dry run, which leaves nothing
        if not options.dry_run:
            keep_folder()  # jobs have folders of their own
        check_writable(self.out)

    def prepare(self, item: Item, *, look: bool = False) -> Prepared:
        """The job's words and plan, its inputs checked; ``look``: what the cache holds of a run, its weights checked.

        Raises ValueError, in one line.
        """
        root = next(each for each in self.items if each.job.name == item.root)
        tuned, cache = self.out / item.root / "run", str(self.cache)
        at = Setting(".", cache, cache, None, root.job.example, item.maps, self.weights)
        if item.job.tuned and (tuned / "run.json").is_file():
            return prepare(item.job, item.files, replace(at, run=str(tuned)))
        if item.job.tuned:  # checked as a run of its own, whose clip an earlier job will have tuned
            known = {"locating", "tuning", "inversion", "reconstruction", *["masking"] * item.maps}
            return _known(prepare(*_as_run(item, root), at), known)
        found = prepare(item.job, item.files, at)
        return _known(found, remembered(found.words, Path(tempfile.mkdtemp(dir=self.scratch)))) if look else found

    def dry(self) -> int:
        """Print the plan of each job; the exit code."""
        with tempfile.TemporaryDirectory() as self.scratch, drawing_into(self.scratch):
            return self._dry()

    def _dry(self) -> int:
        wrong, total, unknown = 0, 0.0, False
        for item in self.items:
            try:
                plan = self.prepare(item, look=True).plan
            except (ValueError, OSError) as error:
                wrong += 1
                print(f"{item.job.name}: would fail: {item.line(error)}", flush=True)
                continue
            print(f"{item.job.name}: ok{f', a further edit of {item.root}' if item.job.tuned else ''}")
            print("\n".join([*plan.lines(), *(f"  warning: {line}" for line in plan.warnings)]), flush=True)
            unknown |= plan.seconds is None
            total += plan.seconds or 0.0
        time = "" if unknown else f", about {total / 60:.1f} min in all"
        print(f"{len(self.items)} jobs, {wrong} would fail{time}")
        return REFUSED if wrong else 0

    def run(self) -> int:
        """Run the jobs; the exit code."""
        failed: dict[str, str] = {}
        for number, item in enumerate(self.items, 1):
            name = item.job.name
            print(f"[{number}/{len(self.items)}] {name}", file=sys.stderr, flush=True)
            if item.job.tuned and item.root in failed:
                error: str | None = f"{item.root} failed, which was to tune its clip"
            else:
                error = self._one(item)
            if error:
                failed[name] = error
                print(f"failed: {name}: {error}", flush=True)
        print(f"{len(self.items)} jobs, {len(failed)} failed")
        return FAILED if failed else 0

    def _one(self, item: Item) -> str | None:
        """Run a job and print its edits; returns why it failed."""
        folder, run = self.out / item.job.name, self.out / item.root / "run"
        try:
            made = self.prepare(item)
            folder.mkdir(parents=True, exist_ok=True)
            child = Child(folder, made.words, str(run), tuned=item.job.tuned is not None)
        except (ValueError, OSError) as error:
            return item.line(error)
        seen: dict[str, Any] = {"stages": {}}
        try:
            code = child.wait(lambda event: _told(seen, event))
        except BaseException:  # a signal to this process ends the job too
            child.stop()
            raise
        if code:
            return seen.get("error") or reason(code)
        learn(self.cache, made.plan, seen["stages"])
        for name in seen["edits"]:
            print(f"done: {item.job.name}: {os.path.relpath(run / 'edits' / name)}", flush=True)
        return None


def _as_run(item: Item, root: Item) -> tuple[Job, dict[str, str]]:
    """A further edit as a job that tunes the clip of ``root`` itself, and its files."""
    kept = {key: value for key, value in root.job.values.items() if key not in item.job.values}
    job = replace(
        root.job,
        name=item.job.name,
        values={**kept, **item.job.values},
        mask_stays=item.job.mask_stays or root.job.mask_stays,
    )
    files = {**root.files, **item.files}
    if root.job.example and "video.target_image" in item.job.values:
        clip = _example_values(root.job.example)
        job, files = (
            replace(job, example=None, values=clip | dict(job.values)),
            files | {"video.path": clip["video.path"]},
        )
    return job, files


def _example_values(example: str) -> dict[str, Any]:
    """The clip of an example as values of a job."""
    from tave.cli import compose_options

    video = compose_options("train", [f"video={example}"]).video
    return {"video.path": video.path, "video.source_prompt": video.source_prompt}


def remembered(words: Sequence[str], folder: Path) -> set[str]:
    """The stages of a run with those ``words`` whose results the cache holds. Loads the weights."""
    from tave.cache import key_of
    from tave.cli import compose_options
    from tave.run import Run

    options = compose_options("train", [*words, "logger=none"])
    try:
        run = Run.open(options, folder / "run", show=False, look=False)
    except LookupError:  # where the object is isn't known yet, and all else depends on it
        return set()
    run.close()
    cache, found = Path(options.cache), {"locating"}
    if (cache / f"tuned-{run.tuned_key}.safetensors").is_file():
        found.add("tuning")
    if (cache / f"trajectory-{key_of(run.key, options.inversion)}.safetensors").is_file():
        found |= {"inversion", "reconstruction"}
    return found


def _known(made: Prepared, stages: set[str]) -> Prepared:
    known = tuple(replace(stage, remembered=stage.remembered or stage.name in stages) for stage in made.plan.stages)
    return replace(made, plan=replace(made.plan, stages=known))


def _told(seen: dict[str, Any], event: Mapping[str, Any]) -> None:
    if "stage" in event:
        note(seen["stages"], event)
        if event["over"]:
            print(f"  {event['label'] or event['stage']}: {event['seconds']:.1f} s", file=sys.stderr, flush=True)
    elif "warning" in event:
        print(f"WARNING: {event['warning']}", file=sys.stderr, flush=True)
    else:
        seen |= {key: value for key, value in event.items() if key in ("error", "edits")}


_begun = False  # whether the jobs were read, so that an error is no refusal of them


def _work(options: BatchOptions, _: Context) -> None:
    global _begun
    batch = Batch(options)
    _begun = True
    if code := batch.dry() if options.dry_run else batch.run():
        raise SystemExit(code)


_main = entry_point("a list of jobs", "batch", _work)


def main() -> None:
    """``tave-batch jobs.json --dry-run`` as well as ``KEY=VALUE``."""
    if "--schema" in sys.argv[1:]:
        print(json.dumps(schema(), indent=2))
        return
    words = {"--dry-run": "dry_run=true"}
    plain = [f"jobs={word}" if "=" not in word and word[:1] != "-" else words.get(word, word) for word in sys.argv[1:]]
    sys.argv[1:] = plain
    try:
        _main()
    except SystemExit as left:
        raise SystemExit(REFUSED if left.code == 1 and not _begun else left.code) from None


if __name__ == "__main__":
    main()
