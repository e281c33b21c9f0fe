"""Draw the screenshots in docs: the app at work on the example, with the edit, with a clip of one's own; the report.

python docs/screenshots.py    needs pip install -e '.[app,dev]' and Chromium (CHROMIUM=PATH)
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tave.roadside.resolver import drawn

DOCS = Path(__file__).parent
CLIP = Path(drawn("car_to_van"))
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PORT = 7987


def keep(page: Page, name: str) -> None:
    """Write what the page shows as a PNG of 256 colours."""
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def draw(page: Page) -> None:
    page.goto(f"http://127.0.0.1:{PORT}/")
    started = time.monotonic()
    page.click("#example-bus_to_suv")
    page.wait_for_selector("[data-example=bus_to_suv]")
    page.click("#go-example")
    page.wait_for_selector('[data-view="soft"]:not([hidden])')
    time.sleep(2)
    keep(page, "figures/app_progress.png")
    page.wait_for_selector('[data-tave-job][data-state="done"]')
    print(f"the example edit, from the first click: {time.monotonic() - started:.0f} s")
    page.locator(".player input").fill("30")
    time.sleep(1.5)
    keep(page, "figures/app_edit.png")
    page.get_by_role("tab", name="Your clip").click()
    page.set_input_files("#clip input[type=file]", CLIP / "source.mp4")
    page.set_input_files("#target input[type=file]", CLIP / "target.png")
    page.fill("#prompt textarea, #prompt input", "a yellow car on a mountain road")
    page.fill("#target-prompt textarea, #target-prompt input", "a blue van on a mountain road")
    page.get_by_text("Where to edit").click()
    page.wait_for_selector("#clip-note p")
    page.wait_for_selector("#target-note p")
    time.sleep(3)
    page.set_viewport_size({"width": 1200, "height": 1300})
    time.sleep(1)
    keep(page, "figures/app_own_clip.png")


def draw_report(page: Page, report: Path) -> None:
    page.set_viewport_size({"width": 1200, "height": 1050})
    page.goto(report.as_uri())
    page.get_by_role("slider").fill("4")
    time.sleep(1)
    keep(page, "report.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tave.app", f"port={PORT}", f"folder={folder}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
            try:
                assert server.stdout is not None and server.stdout.readline().startswith("http")
                browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1200, "height": 900})
                page.set_default_timeout(1_800_000)
                draw(page)
                draw_report(page, next(Path(folder).rglob("report.html")))
                browser.close()
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
