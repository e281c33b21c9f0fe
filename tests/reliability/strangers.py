"""Run folders of a stranger, which try to run code, to write elsewhere, or to read what is not theirs."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

from .mutations import put

SECRET = "tell-nobody-7261"  # the value of an environment variable, which no file may repeat
MODULE = "import pathlib\npathlib.Path({mark!r}).write_text('code ran')\ndef run(*a, **k): return None\n"
HUB = "dependencies = []\n{module}\ndef model(*a, **k): return run()\n"


class Pickled:
    """Its pickle writes the mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo code ran > {self.mark}",)


def targets(mark: Path, home: Path) -> list[dict[str, Any]]:
    """Configurations that call something when they are instantiated."""
    touch = f"echo code ran > {mark}"
    return [
        {"_target_": "os.system", "_args_": [touch]},
        {"_target_": "subprocess.run", "args": touch, "shell": True},
        {"_target_": "builtins.exec", "_args_": [f"open({str(mark)!r}, 'w').write('code ran')"]},
        {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(mark)]}, "x"]},
        {"_target_": "torch.load", "f": str(home / "run/evil.pt"), "weights_only": False},
        {"_target_": "numpy.load", "file": str(home / "run/evil.npy"), "allow_pickle": True},
        {"_target_": "torch.hub.load", "repo_or_dir": str(home / "run"), "model": "model", "source": "local"},
        {"_target_": "transformers.AutoModel.from_pretrained", "_args_": [str(home / "run/model")],
         "trust_remote_code": True},
        {"_target_": "evil.run"},
        {"_target_": "hydra.utils.get_method", "path": "evil.run"},
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(mark.parent / "escaped")},
        {"_target_": "shutil.rmtree", "path": str(mark.parent / "victim")},
        {"_target_": "shutil.copy", "src": str(home / "run/run.json"), "dst": str(mark)},
    ]  # fmt: skip


PLACES = [
    "logger.csv", "logger.mine", "logger", "trainer.plugins", "trainer.strategy", "trainer.profiler",
    "trainer.callbacks", "trainer.logger", "trainer", "backbone", "metrics", "metrics.clip", "metrics.judge",
    "reference.segmenter", "video", "video.edits.x", "sampler", "mask", "correction.weights", "memory", "seed",
]  # fmt: skip


WRITTEN = ["cache", "logger.csv.name", "logger.csv.version", "logger.csv.save_dir", "video.name", "logger.csv.prefix"]
WRITTEN += ["logger.tensorboard.sub_dir", "logger.wandb.dir", "trainer.default_root_dir", "metrics.objective"]
TOLD = ["video.source_prompt", "video.name", "backbone.name", "condition.negative_prompt", "logger.csv.name"]
READ = ["tuned.safetensors", "trajectory.safetensors", "source.mp4", "edits/suv/soft_mask.npz", "edits/suv/edited.mp4"]


def plant(home: Path, draw: random.Random) -> str:
    """Turn the finished run ``home/run`` into a stranger's; returns what it tries. Its record, if any, is made to fit.

    ``home.parent`` is where nothing may appear or change: it has ``victim/file``.
    """
    outer, run = home.parent, home / "run"
    (outer / "victim").mkdir()
    (outer / "victim/old").mkdir()
    for name in ("file", "old/file"):
        (outer / "victim" / name).write_text("the user's own")
    os.utime(outer / "victim", (0, 0))  # as what another host left behind long ago
    _lay_out(run, home, outer / "pwned")
    record = json.loads((run / "run.json").read_text())
    tries = draw.choice([_target, _target, _target, _place, _place, _link, _weights, _secret, _pickle])
    about = tries(home, record, draw)
    (run / "run.json").write_text(json.dumps(record))
    reseal(run)
    return about


def _lay_out(run: Path, home: Path, mark: Path) -> None:
    import pickle

    module = MODULE.format(mark=str(mark))
    for path in (run / "evil.py", home / "evil.py", run / "model/modeling_evil.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(module)
    (run / "hubconf.py").write_text(HUB.format(module=module))
    auto = {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.run", "AutoModel": "modeling_evil.run"}}
    (run / "model/config.json").write_text(json.dumps(auto))
    for name in ("evil.pt", "evil.npy", "model/pytorch_model.bin", "model/model.pt"):
        (run / name).write_bytes(pickle.dumps(Pickled(mark)))


def _target(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    where, what = draw.choice(PLACES), draw.choice(targets(home.parent / "pwned", home))
    several = draw.random() < 0.3
    put(record["config"], where, [what] if several else what)
    return f"{where} is {what['_target_']}"


def _place(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    up = ["../escaped", "../../escaped", "run/../../escaped", "~/escaped"]
    where, outside = draw.choice(WRITTEN), draw.choice([str(home.parent / "escaped"), *up])
    put(record["config"], where, outside)
    return f"{where}={outside}".replace(str(home.parent), "OUTSIDE")


def _link(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    run, victim = home / "run", home.parent / "victim"
    locks = [f".lock-{hashlib.sha256(name.encode()).hexdigest()[:16]}" for name in ("metrics.json", "SHA256SUMS")]
    names = ["edits", "edits/van", "logs", "metrics.json", "round_trip.mp4", "trajectory.safetensors"]
    name = draw.choice([*names, *locks, ".part-elsewhere-1-0-1"])
    at = run / name
    if at.is_dir():
        at.rename(run / "old")
    at.unlink(missing_ok=True)
    at.symlink_to(victim / "file" if at.suffix or name in locks else victim)
    return f"{name} is a link to a folder or file outside"


def forge(run: Path, name: str) -> None:
    """Change the tensors of ``name`` of a run, with digests that fit and under the key that they had."""
    from tave.cache import read_tensors, write_tensors

    path = run / f"{name}.safetensors"
    tensors, about = read_tensors(path)
    write_tensors(path, {key: each + 0.7 if each.dim() else each for key, each in tensors.items()}, about)
    reseal(run)


def _weights(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    where = draw.choice(["backbone.path", "backbone.adapter", "reference.segmenter", "metrics.judge", "metrics.clip"])
    value = draw.choice([str(home / "run/model"), "run/model", "/etc", f"hf-hub:../{home.name}/run/model", "/dev/zero"])
    put(record["config"], where, value)
    if where.startswith("backbone"):
        record["config"]["backbone"]["family"] = draw.choice(["unclip", "ip_adapter"])
    if where == "reference.segmenter":
        record["config"]["reference"]["matte"] = "segmented"
    return f"{where}={value}".replace(str(home), "HERE")


def _secret(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    where = draw.choice(
        ["video.source_prompt", "video.name", "backbone.name", "condition.negative_prompt", "logger.csv.name"]
    )
    value = draw.choice(
        ["${oc.env:RELIABILITY_SECRET}", "${oc.decode:${oc.env:RELIABILITY_SECRET}}", "${hydra:runtime.cwd}"]
    )
    put(record["config"], where, value)
    return f"{where}={value}"


def _pickle(home: Path, record: dict[str, Any], draw: random.Random) -> str:
    content = (home / "run/evil.pt").read_bytes()
    files = [
        "tuned.safetensors",
        "trajectory.safetensors",
        "source.mp4",
        "edits/suv/soft_mask.npz",
        "edits/suv/edited.mp4",
    ]
    name = draw.choice(files)
    (home / "run" / name).write_bytes(content)
    return f"{name} is a pickle"


def reseal(run: Path) -> None:
    """Make ``SHA256SUMS`` of the run and of its edits fit their files again, as whoever made the folder can."""
    for sums in run.rglob("SHA256SUMS"):
        lines = []
        for line in sums.read_text(errors="replace").splitlines() if sums.is_file() else ():
            name = line.partition("  ")[2]
            path = sums.parent / name
            if path.is_file():
                lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}")
        if lines:
            sums.write_text("".join(f"{line}\n" for line in lines))
