"""The clients of docs/app.md, as they stand there, against a server whose jobs are fakes, and against a real one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import frames_of
from test_app import CLIP, LIMITS, Fake, Shortcut, until
from test_docs import blocks

from tave.app.check import Checker
from tave.app.plan import measured
from tave.app.spaces import Spaces
from tave.config import AppOptions

ROOT = Path(__file__).parents[1]


@contextmanager
def serving(tmp_path: Path, checker: Checker, **begin: Any) -> Iterator[tuple[str, Any]]:
    """A server in a thread, its address and desk, and a working folder with a clip and a picture."""
    uvicorn = pytest.importorskip("uvicorn", reason="the app's packages: pip install -e '.[app]'")
    from tave.app.service import Desk, build

    options = AppOptions(folder=str(tmp_path / "app"), backbones={"tiny": ""}, limits=LIMITS)
    desk = Desk(options, Spaces(Path(options.folder), LIMITS, checker), **begin)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build(desk), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    until(lambda: server.started)
    shutil.copy(CLIP / "source.mp4", tmp_path / "clip.mp4")
    shutil.copy(CLIP / "target.png", tmp_path / "suv.png")
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}", desk
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server whose jobs are fakes."""
    monkeypatch.setattr(Fake, "begun", [], raising=False)
    monkeypatch.setattr(Fake, "hold", threading.Event(), raising=False)
    Fake.hold.set()
    with serving(tmp_path, Shortcut(), begin=Fake) as (at, _):
        yield at


def run(command: list[str], folder: Path) -> None:
    home = {"PATH": os.environ["PATH"], "HOME": str(folder), "no_proxy": "*"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=home)
    assert done.returncode == 0, done.stderr


def test_the_client_in_python(address: str, tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/app.md", "python", "HTTP")
    assert len([line for line in text.splitlines() if line and "import" not in line]) <= 10
    run([sys.executable, "-c", text.replace("127.0.0.1:7860", address)], tmp_path)
    assert (tmp_path / "edited.mp4").read_bytes().startswith(b"clip of")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_client_in_curl(address: str, tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/app.md", "bash", "HTTP")
    run(["bash", "-euc", text.replace("127.0.0.1:7860", address)], tmp_path)
    assert (tmp_path / "edited.mp4").read_bytes().startswith(b"clip of")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_curl_makes_a_real_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, through the queue and a process of its own, with a first look: the clip is larger than the network."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (text,) = blocks(ROOT / "docs/app.md", "bash", "HTTP")
    few = '{"backbone": "tiny", "tuning.steps": 2, "inversion.steps": 2, "video.path":'
    assert text.count('{"video.path":') == 1
    checker = Checker()
    with serving(tmp_path, checker) as (at, desk):
        from tave.app.service import described

        text = text.replace("127.0.0.1:7860", at).replace('{"video.path":', few)
        run(["bash", "-euc", text], tmp_path)
        (ticket,) = desk.queue.tickets.values()
        record = described(desk, ticket)
    assert record["state"] == "done" and record["error"] is None
    edited, source = (frames_of(tmp_path / name) for name in ("edited.mp4", "clip.mp4"))
    assert edited.shape == source.shape == (8, 3, 96, 96) and (edited - source).abs().max() > 0.1
    assert [each["name"] for each in record["stages"]][:2] == ["locating", "encoding"]
    assert all(each["state"] == "done" and each["done"] == each["total"] for each in record["stages"])
    assert "network.mp4" in record["files"] and record["shown"].endswith("edited.mp4 has the whole frames.")
    rates = measured(tmp_path / "app", ticket.prepared.plan.model)
    assert set(rates) == {each["name"] for each in record["stages"]}  # so that the next job's seconds are known
