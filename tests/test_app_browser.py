"""The page in a headless Chromium: an edit, another threshold, a clip of one's own, a cancel, a bad file, two users."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tave.config import WHOLE
from tave.roadside.resolver import drawn
from tave.video import read_clip, write_video

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CLIP = Path(drawn("car_to_van"))
LIMIT = 900_000  # ms, on a machine that does other things too
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: install it, or set CHROMIUM=PATH"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running app."""
    pytest.importorskip("gradio", reason="the app's packages: pip install -e '.[app]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "tave.app", f"port={port}", f"folder={folder}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        yield f"http://127.0.0.1:{port}/"
        server.terminate()
        assert server.wait(120) == 143


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright: pip install -e '.[dev]'")
    with sync.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opened(address: str, browser: Any) -> Iterator[Any]:
    """A function that opens the page as a new user; none may ask another host or log an error."""
    wrong: list[str] = []
    contexts = []

    def visit() -> Any:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(LIMIT)
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else wrong.append(asked.url),
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#example-bus_to_suv")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def begin(page: Any, tuning: int = 2) -> None:
    """Edit the example with few steps."""
    page.click("#example-bus_to_suv")
    page.wait_for_selector("[data-example=bus_to_suv]")
    page.locator("#settings button").first.click()
    page.get_by_label("Tuning steps").fill(str(tuning))
    page.get_by_label("Sampling steps").fill("4")
    page.click("#go-example")
    page.wait_for_selector("[data-tave-job], #wrong .tave-error")
    assert page.locator("#wrong .tave-error").count() == 0


def shown(page: Any, state: str) -> Any:
    """The panel once its job is in this state."""
    return page.wait_for_selector(f'[data-tave-job][data-state="{state}"]')


def test_an_edit_and_another_threshold_of_it(opened: Any) -> None:
    page = opened()
    begin(page)
    page.wait_for_selector('[data-view="soft"]:not([hidden])')
    assert page.locator("[data-tave-job]").get_attribute("data-state") == "running"  # it comes before the end
    panel = shown(page, "done")
    first = panel.get_attribute("data-tave-job")
    page.wait_for_function("document.querySelector('.stage .above').readyState > 2")
    sizes = page.evaluate("[...document.querySelectorAll('.stage video')].map(v => [v.videoWidth, v.videoHeight])")
    assert sizes == [[96, 96], [96, 96]]
    page.locator(".player input").fill("20")
    assert "20%" in page.locator(".stage .above").get_attribute("style")
    for view in ("Mask", "Soft map"):
        page.get_by_role("button", name=view).click()
    page.wait_for_function("document.querySelector('.stage .above').src.endsWith('soft.mp4')")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="run.zip").click()
    assert Path(waiting.value.path()).stat().st_size > 10_000
    page.locator("#again button").first.click()
    page.locator("#again").get_by_label("fixed", exact=True).check()
    page.click("#go-again")
    page.wait_for_function(f"document.querySelector('[data-tave-job]').dataset.taveJob !== '{first}'")
    page.wait_for_selector('[data-tave-job]:not([data-state="done"])')
    shown(page, "done")
    page.get_by_text("Stages", exact=True).click()
    stages = dict(re.findall(r"(.+)\n(.+)", page.locator(".bars").inner_text().partition("\n")[2]))
    assert stages["Inverting the clip"] == stages["Finding the region"] == "remembered" != stages["Sampling the edit"]
    page.reload()
    assert shown(page, "done").get_attribute("data-tave-job") != first  # the last job is still there


def test_a_cancel(opened: Any) -> None:
    page = opened()
    begin(page, tuning=900)
    page.wait_for_selector(".bar.running")
    page.get_by_role("button", name="Cancel").click()
    shown(page, "cancelled")
    assert page.locator(".error").count() == 0


def test_bad_files_are_told_and_good_ones_shown(opened: Any, tmp_path: Path) -> None:
    page = opened()
    page.get_by_role("tab", name="Your clip").click()
    text = tmp_path / "notes.mp4"
    text.write_text("no clip")
    page.set_input_files("#clip input[type=file]", text)
    page.wait_for_selector("#clip-note .tave-error")
    assert page.locator("#clip-note .tave-error").inner_text().startswith("notes.mp4: neither a picture")
    page.click("#go-own")
    page.wait_for_selector("#wrong .tave-error")
    assert page.locator("#wrong").inner_text() == "no clip: give video.path, or example, or tuned"


def test_a_clip_of_ones_own_with_a_target_and_a_mask(opened: Any, tmp_path: Path) -> None:
    mask = torch.full((8, 3, 96, 96), -1.0)
    mask[:, :, 48:80, 32:72] = 1.0
    write_video(tmp_path / "mask.mp4", mask, 8, lossless=True)
    page = opened()
    page.get_by_role("tab", name="Your clip").click()
    page.set_input_files("#clip input[type=file]", CLIP / "source.mp4")
    page.set_input_files("#target input[type=file]", CLIP / "target.png")
    page.get_by_text("Where to edit").click()
    page.set_input_files("#mask input[type=file]", tmp_path / "mask.mp4")
    page.fill("#prompt textarea, #prompt input", "a yellow car on a mountain road")
    page.fill("#target-prompt textarea, #target-prompt input", "a blue van on a mountain road")
    for name in ("clip", "target", "mask"):
        page.wait_for_selector(f"#{name}-note p")
        assert page.locator(f"#{name}-note .tave-error").count() == 0
    page.locator("#settings button").first.click()
    page.get_by_label("Tuning steps").fill("2")
    page.get_by_label("Sampling steps").fill("4")
    page.click("#go-own")
    panel = shown(page, "done")
    page.get_by_text("Stages", exact=True).click()
    assert "Finding the region" not in page.locator(".bars").inner_text()  # it was given
    with page.expect_download() as waiting:
        page.locator(
            f"[data-tave-job='{panel.get_attribute('data-tave-job')}'] a", has_text=re.compile("^mask.mp4$")
        ).click()
    made = read_clip(waiting.value.path(), WHOLE).frames[:, 0] > 0
    assert made.shape == (8, 96, 96) and (made == (mask[:, 0] > 0)).float().mean() > 0.95


def test_two_users_at_once_see_their_own_jobs_alone(opened: Any) -> None:
    one, two = opened(), opened()
    begin(one, tuning=12)
    shown(one, "running")
    begin(two)
    shown(two, "queued")
    ids = [page.locator("[data-tave-job]").get_attribute("data-tave-job") for page in (one, two)]
    for page, mine, other in ((one, *ids), (two, *reversed(ids))):
        asked = "key => fetch('/api/jobs/' + key).then(answer => answer.status)"
        assert page.evaluate(asked, mine) == 200 and page.evaluate(asked, other) == 404
    for page in (one, two):
        shown(page, "done")
