"""The pages as people see them, in the system's Chromium: without it, or without Playwright, they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import options
from test_eval_leaderboard import make_run

from eval.leaderboard import leaderboard
from eval.tables import HEADLINE
from tave.config import LeaderboardOptions
from tave.train import train
from tave.video import write_video

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Playwright's own loop
]
FRAMES, SHADES = 4, (-0.8, -0.3, 0.3, 0.8)


class Browser:
    """A browser that keeps what pages complain about and ask for."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def open(self, page: Path, width: int = 1200) -> Any:
        opened = self.browser.new_page(viewport={"width": width, "height": 900})
        opened.on("console", lambda message: self.complaints.append(message.text))
        opened.on("pageerror", lambda error: self.complaints.append(str(error)))
        opened.on("request", lambda request: self.asked.append(request.url))
        opened.goto(page.as_uri())
        return opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    made = Browser(chromium)
    yield made
    assert made.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in made.asked)


@pytest.fixture(scope="module")
def report(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose frames are plain greys, so that each can be told from its colour."""
    folder = tmp_path_factory.mktemp("browser")
    shades = torch.tensor(SHADES).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    write_video(folder / "greys.mp4", shades, 8, lossless=True)
    words = [f"video.path={folder / 'greys.mp4'}", f"video.frames={FRAMES}", "video.edits.suv.truth=null"]
    words += ["mask.region=whole", "sampler.composite=false", "report=true", "metrics.enabled=false"]
    given = options(clip, folder / "cache", *words)
    given.video.edits["suv"].target_prompt = "<script>console.log('run')</script><b>"
    return train(given, folder / "run", show=False) / "report.html"


SHOWN = """clips => clips.map(clip => {
  const canvas = document.createElement('canvas').getContext('2d');
  canvas.drawImage(clip, 0, 0, 1, 1);
  return [clip.currentTime, canvas.getImageData(0, 0, 1, 1).data[0] / 127.5 - 1];
})"""


def test_the_slider_moves_three_clips_together(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(clip => clip.readyState === 4)")
    for frame in (2, 0, 3):
        page.get_by_role("slider").fill(str(frame))
        page.wait_for_function(
            "at => [...document.querySelectorAll('video')]"
            ".every(clip => !clip.seeking && Math.abs(clip.currentTime - at) < 1e-3)",
            arg=(frame + 0.5) / 8,
        )
        (time, source), *others = page.eval_on_selector_all("video", SHOWN)
        assert source == pytest.approx(SHADES[frame], abs=0.06)
        assert len(others) == 2 and all(other == time for other, _ in others)
        assert page.locator("output").inner_text() == f"frame {frame + 1} of {FRAMES}"
        assert page.eval_on_selector_all("g.frame", "all => all.filter(g => !g.hasAttribute('hidden')).length") == 1
    assert page.locator("section p").first.inner_text() == "<script>console.log('run')</script><b>"


def test_play_goes_on_and_pause_stops(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => Number(document.querySelector('input').value) >= 1")
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_fits_a_screen_and_a_phone(browser: Browser, report: Path, width: int) -> None:
    page = browser.open(report, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_leaderboard_fits_a_screen_and_shows_all_on_demand(browser: Browser, tmp_path: Path) -> None:
    truth = [name for name in HEADLINE if not name.endswith(("_mask", "_annotation"))] + [
        "background_psnr_outside_mask"
    ]
    names = [*truth, *(f"further_figure_{number}" for number in range(20))]
    facts = {name: {"id": f"{name}/v1", "higher_is_better": True, "unit": "share"} for name in names}
    for case in ("a", "b"):
        figures = {name: 12.3456 + number for number, name in enumerate(names)}
        make_run(tmp_path / case, case, {"tave": figures, "pasted_true_pose": figures}, facts)
    page = browser.open(leaderboard(LeaderboardOptions(runs=str(tmp_path), out=str(tmp_path / "out"))))
    widths = "[document.documentElement, document.querySelector('.wide')].map(e => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(widths) == [0, 0] and page.locator("thead th").count() == 1 + len(truth) == 10
    page.locator("#every").check()
    assert page.locator("thead th").count() == 1 + len(names)
    assert page.locator(".strip").count() == 2
