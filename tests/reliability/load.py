"""20 users of one app submit at once, 10 of them cancel, another one sends 50 bad jobs.

python -m tests.reliability.load             # make load
python -m tests.reliability.load users=5     # fewer

Nothing is lost: every job that is not cancelled is done. Nothing leaks: nobody sees another one's job. Memory comes
back: no job's process is left, and the server is as large as before. The exit code is 1 if one of these fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

PORT = 7991
URL = f"http://127.0.0.1:{PORT}/api"
JOB = {"example": "bus_to_suv", "backbone": "tiny", "tuning.steps": 2, "inversion.steps": 2}
LIMITS = ["limits.queue=64", "limits.each=2"]
BAD: list[Any] = [
    {"example": "nowhere"},
    {"_target_": "os.system"},
    {"example": "bus_to_suv", "video.width": 33},
    {"example": "bus_to_suv", "video.frames": 60},
    {"video.path": "/etc/passwd", "video.source_prompt": "a", "video.target_image": "b", "video.target_prompt": "c"},
    {"tuned": "0" * 16},
    [],
    "{",
]


@dataclass
class User:
    """One user: a session of its own, a job, what it saw."""

    number: int
    cancels: bool
    session: requests.Session = field(default_factory=requests.Session)
    job: str = ""
    seconds: float = 0.0
    state: str = ""
    faults: list[str] = field(default_factory=list)

    def use(self, start: threading.Barrier) -> None:
        """Submit when all do; cancel where that is this user's part; wait for the end."""
        start.wait()
        begun = time.monotonic()
        answer = self.session.post(f"{URL}/jobs", json=JOB | {"seed": self.number, "name": f"user-{self.number}"})
        self.seconds = time.monotonic() - begun
        if answer.status_code != 202:
            self.faults.append(f"submitting: {answer.status_code} {answer.text}")
            return
        self.job = answer.json()["id"]
        if self.cancels:
            self.session.post(f"{URL}/jobs/{self.job}/cancel")
        while self.state not in ("done", "failed", "cancelled"):
            time.sleep(2 if self.state else 0)
            self.state = self.session.get(f"{URL}/jobs/{self.job}").json()["state"]

    def check(self, others: list[User]) -> None:
        """What became of the job, and whether another one's can be seen."""
        wanted = ("cancelled", "done") if self.cancels else ("done",)
        if self.state not in wanted:
            self.faults.append(f"job {self.job} is {self.state}")
        seen = self.session.get(f"{URL}/jobs").json()
        if [each["id"] for each in seen] != [self.job] or seen[0]["job"]["name"] != f"user-{self.number}":
            self.faults.append(f"sees {seen}")
        for other in others:
            for path in ("", "/files/edited.mp4", "/files/run.zip"):
                if other is not self and self.session.get(f"{URL}/jobs/{other.job}{path}").status_code != 404:
                    self.faults.append(f"sees {other.job}{path}")


def send_bad(faults: list[str], count: int) -> None:
    """``count`` bad jobs of one user: each is refused in one line."""
    session = requests.Session()
    for number in range(count):
        content = BAD[number % len(BAD)]
        body = content if isinstance(content, str) else json.dumps(content)
        answer = session.post(f"{URL}/jobs", data=body)
        if answer.status_code != 422 or "\n" in answer.json()["error"]:
            faults.append(f"bad job {content}: {answer.status_code} {answer.text}")
    if session.get(f"{URL}/jobs").json():
        faults.append("a bad job was kept")


def resident(pid: int) -> float:
    """Resident memory in MB of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def children(pid: int) -> list[str]:
    """The modules that the children of a process run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found.append(path.with_name("cmdline").read_text().replace("\0", " ").strip())
        except (OSError, ValueError):
            continue
    return found


def measured(server: int, users: int, bad: int, say: Callable[[str], None]) -> list[str]:
    """The whole load test; returns what went wrong."""
    crowd = [User(number, cancels=number % 2 == 1) for number in range(users)]
    faults: list[str] = []
    requests.get(f"{URL}/options", timeout=60)
    before, begun = resident(server), time.monotonic()
    start = threading.Barrier(users)
    threads = [threading.Thread(target=user.use, args=(start,)) for user in crowd]
    threads.append(threading.Thread(target=send_bad, args=(faults, bad)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    for user in crowd:
        user.check(crowd)
        faults += [f"user {user.number}: {fault}" for fault in user.faults]
    after, left = resident(server), [each for each in children(server) if "worker" in each]
    if left:
        faults.append(f"left running: {left}")
    if after > before + 200:
        faults.append(f"the server grew from {before:.0f} to {after:.0f} MB")
    states = Counter(user.state for user in crowd)
    slowest = max(user.seconds for user in crowd)
    say(f"{users} users, {bad} bad jobs: {took:.0f} s; {dict(states)}; slowest submission {slowest:.1f} s")
    say(f"memory of the server {before:.0f} MB before, {after:.0f} MB after; {len(faults)} faults")
    return faults


def main() -> int:
    """Start a server, use it, stop it."""
    given = dict(word.split("=") for word in sys.argv[1:])
    users, bad = int(given.get("users", 20)), int(given.get("bad", 50))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tave.app", f"port={PORT}", f"folder={folder}", 'backbones.tiny=""', *LIMITS]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None and server.stdout.readline().startswith("http")
                faults = measured(server.pid, users, bad, print)
            finally:
                server.terminate()
    print("\n".join(faults))
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
