"""The page: Gradio for what is given, a panel of its own (static/page.js) for what comes out (docs/app.md)."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from PIL import Image

from tave import __version__
from tave.app.check import FRAME_PIXELS, Checker
from tave.app.events import UNSET, Page, panel, shown_example
from tave.app.job import EXAMPLES
from tave.app.service import Desk, build
from tave.app.spaces import Spaces
from tave.config import AppOptions, OptionError

STATIC = Path(__file__).parent / "static"
SINGLE = "The object stays there: edit the outlined region in every frame"
INTRODUCTION = (
    "A clip, a picture of the new object and two sentences make the clip with the new object in the old one's place."
)
DRAWN = "The models here know only drawn vehicles and shoes. Footage needs real weights (docs/real_weights.md)."
OUTLINED = (
    "An outline on the first frame says nothing of the others. Tick the box below if the object stays where it is; "
    "without the tick the outline is not used, and the region is found from the two descriptions."
)


def _picture(label: str, **given: Any) -> gr.Image:
    """An image input that passes the file as it was given: its alpha stays, and it is read elsewhere."""
    made = gr.Image(label=label, sources=["upload", "clipboard"], **given)
    made.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return made


def _again_settings(unset: str) -> list[Any]:
    """Components for :data:`AGAIN`; ``unset``: the word for what is left as it is."""
    kind = gr.Radio([unset, "otsu", "fixed", "quantile"], value=unset, label="Threshold of the mask")
    with gr.Row():
        fixed = gr.Slider(0, 1, 0.5, step=0.01, label="fixed: level of the map")
        quantile = gr.Slider(0, 1, 0.8, step=0.01, label="quantile: share outside")
    with gr.Row():
        correction = gr.Checkbox(True, label="Inter-frame correction")
        guidance = gr.Textbox(label="Guidance", placeholder=unset)
    return [kind, fixed, quantile, correction, guidance]


def _first_settings(desk: Desk) -> list[Any]:
    """Components for :data:`SETTINGS`; presets as the doctor would choose them."""
    backbones, memory = desk.choices["backbones"], desk.choices["memory"]
    gr.Markdown("\n\n".join(desk.choices["device"]))
    with gr.Row():
        backbone = gr.Dropdown(backbones, value=backbones[0], label="Model")
        preset = gr.Dropdown(memory, value=memory[0], label="Memory")
        seed = gr.Textbox("33", label="Seed")
    with gr.Row():
        numbers = [
            gr.Textbox(label=label, placeholder="default") for label in ("Frames", "Tuning steps", "Sampling steps")
        ]
    return [backbone, preset, seed, *numbers]


def build_page(desk: Desk) -> gr.Blocks:
    """The Blocks, to be mounted on the service."""
    page, outputs = Page(desk), []
    with gr.Blocks(title="tave", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"# tave {__version__}\n{INTRODUCTION}")
        job, example = gr.State(None), gr.State(None)
        clip, picture, mask, other = (gr.State(None) for _ in range(4))
        with gr.Row():
            with gr.Column(scale=5):
                with gr.Tabs():
                    with gr.Tab("Examples"):
                        with gr.Row(elem_id="gallery"):
                            cards = {
                                name: gr.Button(_title(name), elem_id=f"example-{name}", min_width=90)
                                for name in EXAMPLES
                            }
                        about = gr.HTML("<p>Choose an example: its clip and target come with it.</p>")
                        go_example = gr.Button("Edit the example", variant="primary", elem_id="go-example")
                    with gr.Tab("Your clip"):
                        if not {*desk.choices["backbones"]} - {"roadside", "tiny"}:
                            gr.Markdown(DRAWN)
                        own = _own_inputs(page, clip, picture, mask)
                        go_own = gr.Button("Edit", variant="primary", elem_id="go-own")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    first = _first_settings(desk)
                    again = _again_settings(UNSET[0])
            with gr.Column(scale=5):
                wrong = gr.HTML("", elem_id="wrong")
                result = gr.HTML(panel(None), elem_id="result")
                with gr.Accordion("Again on this tuned clip", open=False, elem_id="again"):
                    gr.Markdown("Only what depends on the change runs again; the clip is not tuned anew.")
                    retry = _again_settings(UNSET[1])
                    new = _picture("Another target", height=160)
                    note = gr.HTML("")
                    words = gr.Textbox(label="What the edited clip shows then", max_length=500)
                    go_again = gr.Button("Edit again", variant="primary", elem_id="go-again")
        outputs = [job, result, wrong]
        for name, card in cards.items():
            card.click(lambda name=name: (name, shown_example(name)), None, [example, about], **_quiet())
        new.change(page.take_picture, [new], [other, note], **_quiet())
        go_example.click(page.edit_example, [example, *first, *again], outputs, **_quiet())
        go_own.click(page.edit_own, [clip, own[0], picture, *own[1:], mask, *first, *again], outputs, **_quiet())
        go_again.click(page.edit_again, [job, other, words, *retry], outputs, **_quiet())
        blocks.load(page.latest, None, [job, result], **_quiet())
    blocks.queue(max_size=200, default_concurrency_limit=8)
    return blocks


def _own_inputs(page: Page, clip: gr.State, picture: gr.State, mask: gr.State) -> list[Any]:
    """Components of the tab for a user's own clip: both sentences, the outline and its tick."""
    with gr.Row():
        with gr.Column(min_width=200):
            video = gr.Video(label="Clip", sources=["upload"], height=220, elem_id="clip")
            video_note = gr.HTML("", elem_id="clip-note")
            prompt = gr.Textbox(
                label="What the clip shows",
                placeholder="a white bus on a mountain road",
                max_length=500,
                elem_id="prompt",
            )
        with gr.Column(min_width=200):
            image = _picture("Target", height=220, elem_id="target")
            image_note = gr.HTML("", elem_id="target-note")
            target = gr.Textbox(
                label="What the edited clip shows",
                placeholder="a red suv on a mountain road",
                max_length=500,
                elem_id="target-prompt",
            )
    with gr.Accordion("Where to edit: found by the method, or given", open=False):
        gr.Markdown(OUTLINED)
        brush = gr.Brush(colors=["#ffb000"], color_mode="fixed", default_size=12)
        editor = gr.ImageEditor(
            label="Outline on the first frame",
            type="numpy",
            sources=[],
            transforms=[],
            brush=brush,
            layers=False,
            height=320,
            elem_id="outline",
        )
        stays = gr.Checkbox(False, label=SINGLE, elem_id="stays")
        given = gr.File(
            label="Or a mask for every frame: a clip, white where to edit", type="filepath", height=140, elem_id="mask"
        )
        given_note = gr.HTML("", elem_id="mask-note")
    video.change(page.take_clip, [video], [clip, video_note, editor], **_quiet())
    image.change(page.take_picture, [image], [picture, image_note], **_quiet())
    given.change(page.take_mask, [given], [mask, given_note], **_quiet())
    return [prompt, target, editor, stays]


def _quiet() -> dict[str, Any]:
    """Events of this page only, without Gradio's own progress."""
    return {"api_visibility": "private", "show_progress": "hidden"}


def _title(name: str) -> str:
    before, _, after = name.partition("_to_")
    return f"{before.replace('_', ' ')} to {after.replace('_', ' ')}"


def run(options: AppOptions) -> None:
    """Serve until a signal. Raises :class:`OptionError` for a port that is taken."""
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise OptionError(f"host={options.host} port={options.port}: {error.strerror}: give another port") from error
    Image.MAX_IMAGE_PIXELS = FRAME_PIXELS // 2  # Pillow refuses twice as many: of the outlines, which are read here
    with tempfile.TemporaryDirectory(prefix="tave-") as temporary:
        os.environ["GRADIO_TEMP_DIR"] = temporary
        desk = Desk(options, Spaces(Path(options.folder), options.limits, Checker()))
        desk.draw_examples()
        app = build(desk)
        at = "/api/examples"
        thumbs = "".join(f"#example-{name}{{background-image:url({at}/{name}/target.png)}}" for name in EXAMPLES)
        app = gr.mount_gradio_app(
            app,
            build_page(desk),
            "/",
            show_error=False,
            max_file_size=options.limits.megabytes * 1_000_000,
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=(STATIC / "page.css").read_text(encoding="utf-8") + thumbs,
            head=f"<script>{(STATIC / 'page.js').read_text(encoding='utf-8')}</script>",
        )
        shown = f"[{options.host}]" if ":" in options.host else options.host
        secret = f"?token={options.token}" if options.token else ""
        print(f"http://{shown}:{options.port}/{secret}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
