"""The clients of docs/app.md, as they stand there, against a server whose jobs are fakes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_app import CLIP, LIMITS, Fake, Shortcut, until
from test_docs import blocks

from tave.app.spaces import Spaces
from tave.config import AppOptions

ROOT = Path(__file__).parents[1]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server in a thread, and a working folder with a clip and a picture."""
    uvicorn = pytest.importorskip("uvicorn", reason="the app's packages: pip install -e '.[app]'")
    from tave.app.service import Desk, build

    monkeypatch.setattr(Fake, "begun", [], raising=False)
    monkeypatch.setattr(Fake, "hold", threading.Event(), raising=False)
    Fake.hold.set()
    options = AppOptions(folder=str(tmp_path / "app"), limits=LIMITS)
    desk = Desk(options, Spaces(Path(options.folder), LIMITS, Shortcut()), Fake)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build(desk), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    until(lambda: server.started)
    shutil.copy(CLIP / "source.mp4", tmp_path / "clip.mp4")
    shutil.copy(CLIP / "target.png", tmp_path / "suv.png")
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


def run(command: list[str], folder: Path) -> None:
    home = {"PATH": os.environ["PATH"], "HOME": str(folder), "no_proxy": "*"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=home)
    assert done.returncode == 0, done.stderr
    assert (folder / "edited.mp4").read_bytes().startswith(b"clip of")


def test_the_client_in_python(address: str, tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/app.md", "python", "HTTP")
    assert len([line for line in text.splitlines() if line and "import" not in line]) <= 10
    run([sys.executable, "-c", text.replace("127.0.0.1:7860", address)], tmp_path)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_client_in_curl(address: str, tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs/app.md", "bash", "HTTP")
    run(["bash", "-euc", text.replace("127.0.0.1:7860", address)], tmp_path)
