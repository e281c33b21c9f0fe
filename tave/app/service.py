"""The HTTP service: upload, submit, progress, result, cancel (docs/app.md). FastAPI comes with Gradio."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from tave import __version__
from tave.app.guard import Guard
from tave.app.job import EXAMPLES, model_words, read_job, schema
from tave.app.openapi import page_of
from tave.app.public import TEXTS, cut, public, zipped
from tave.app.queue import OVER, Queue, Ticket
from tave.app.spaces import RefusedError, Spaces, now
from tave.app.worker import WEB, Child
from tave.config import AppOptions, OptionError
from tave.record import REPORT, view_note
from tave.roadside.resolver import keep_folder

# The results of a job by name: in its edit's folder, and those for browsers.
RESULTS = ("edited.mp4", "network.mp4", "mask.mp4", "side_by_side.mp4", "side_by_side.png", "soft_mask.npz")
RESULTS += ("reference.png",)
SHOWN = ("source", "edited", "mask", "soft")
EXAMPLE_FILES = ("source.mp4", "target.png")


class Desk:
    """The parts of a running app: options, spaces, queue, and what can be chosen here."""

    def __init__(self, options: AppOptions, spaces: Spaces, begin: Any = Child) -> None:
        self.options, self.spaces, self.checker = options, spaces, spaces.checker
        keep_folder(Path(options.folder) / "drawn")  # jobs have folders of their own
        weights = model_words(options.backbones, options.adapters)
        self.choices = self.checker.offered(list(weights))
        self.queue = Queue(Path(options.folder).absolute(), spaces, weights, begin)

    @property
    def examples(self) -> Path:
        """Folder of the examples' clips as browsers play them."""
        return Path(self.options.folder) / "examples"

    def draw_examples(self) -> None:
        """Make :attr:`examples`."""
        self.checker.draw_examples(EXAMPLES, self.examples)

    def submit(self, space: str, content: Any) -> Ticket:
        """Queue a job that is given as JSON."""
        return self.queue.submit(space, read_job(content, self.choices["backbones"]))

    def close(self) -> None:
        """End the running job and the process that checks."""
        self.queue.close()
        self.checker.close()


def described(desk: Desk, ticket: Ticket) -> dict[str, Any]:
    """A job as its user sees it."""
    status, plan = ticket.status, ticket.prepared.plan
    stages = []
    for stage in plan.stages:
        seen = status.stages.get(stage.name, {"done": 0, "seconds": 0.0})
        done, state = min(seen["done"], stage.steps), "waiting"
        passed = status.state == "done" or _passed(plan, status, stage.name)
        if stage.name in status.stages:
            state = "done" if passed or done >= stage.steps else "stopped" if status.state in OVER else "running"
        elif stage.remembered or passed:
            state = "remembered"
        about = {"name": stage.name, "done": done, "total": stage.steps, "seconds": round(seen["seconds"], 1)}
        stages.append(about | {"state": state, "left": _left(stage, about, state)})
    lefts = [stage["left"] for stage in stages]
    return {
        "id": ticket.id,
        "state": "stopping" if desk.queue.is_stopping(ticket.id) else status.state,
        "position": desk.queue.position(ticket.id),
        "job": ticket.job.described(),
        "stages": stages,
        "seconds_left": None if status.state in OVER or None in lefts else round(sum(lefts), 1),
        "seconds": round((status.finished or now()) - status.started, 1) if status.started else None,
        "error": status.error,
        "warnings": status.warnings,
        "files": files_of(ticket),
        "figures": figures_of(ticket),
        "shown": shown_of(ticket),
    }


def _passed(plan: Any, status: Any, name: str) -> bool:
    """Whether a later stage has made a step: the clip is encoded when the tuning has begun and made none."""
    names = [stage.name for stage in plan.stages]
    return any(status.stages.get(later, {}).get("done") for later in names[names.index(name) + 1 :])


def _left(stage: Any, about: dict[str, Any], state: str) -> float | None:
    """Expected seconds until the end of a stage, by its own pace once it has one."""
    if state in ("done", "remembered"):
        return 0.0
    if about["done"]:
        return about["seconds"] / about["done"] * (stage.steps - about["done"])
    return stage.seconds


def paths_of(ticket: Ticket) -> dict[str, Path]:
    """The files of a job that its user may have, by name."""
    found = {f"web/{name}.mp4": ticket.folder / WEB / f"{name}.mp4" for name in SHOWN}
    if ticket.status.edits:
        edit = ticket.run / "edits" / ticket.status.edits[-1]
        found |= {name: edit / name for name in RESULTS}
        found |= {REPORT: ticket.run / REPORT}
    return {name: path for name, path in found.items() if path.is_file()}


def files_of(ticket: Ticket) -> list[str]:
    """Names of what can be downloaded now."""
    return [*paths_of(ticket), *(["run.zip"] if ticket.status.state == "done" else [])]


def figures_of(ticket: Ticket) -> dict[str, Any]:
    """What was measured of the edit."""
    path = ticket.run / "metrics.json"
    if ticket.status.state != "done" or not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8")).get("edits", {}).get(ticket.status.edits[-1], {})
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def shown_of(ticket: Ticket) -> str | None:
    """What the clips for browsers show of the frames, where that is not all of them."""
    if ticket.status.state != "done":
        return None
    edit = ticket.run / "edits" / ticket.status.edits[-1]
    path = edit / "edit.json"
    return view_note(edit, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON: {cut(str(error), 100)}") from None


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def build(desk: Desk) -> FastAPI:
    """The service with all its routes and its :class:`Guard`; a page may be mounted on it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(desk.close)

    app = FastAPI(title="tave", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.add_middleware(Guard, options=desk.options, spaces=desk.spaces)  # type: ignore[arg-type]
    backbones = desk.choices["backbones"]

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": public(str(error))}, 429, {"Retry-After": "10"})

    @app.exception_handler(ValueError)
    async def bad(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": cut(public(str(error)))}, 422)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    def found(request: Request, key: str) -> Ticket:
        try:
            return desk.queue.get(request.state.space, key)
        except OptionError as error:
            raise HTTPException(404, str(error)) from None

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        return page_of(app.openapi())

    @app.get("/api/options")
    def options() -> dict[str, Any]:
        """What can be chosen: backbones, memory presets (the doctor's choice first), examples, limits."""
        return desk.choices | {"examples": EXAMPLES, "limits": asdict(desk.options.limits)}

    @app.get("/api/schema")
    def job_schema() -> dict[str, Any]:
        """The JSON schema of a job."""
        return schema(backbones)

    @app.get("/api/examples/{name}/{file}")
    def example(name: str, file: str) -> FileResponse:
        """``source.mp4`` or ``target.png`` of an example."""
        if name not in EXAMPLES or file not in EXAMPLE_FILES:
            raise HTTPException(404, "no such example")
        return FileResponse(desk.examples / name / file)

    @app.put("/api/uploads/{name}", status_code=201)
    async def upload(name: str, request: Request) -> dict[str, Any]:
        """Upload the file in the body. It is read at once; the answer has its id and what it is."""
        name = cut(re.sub(r"[\x00-\x1f/\\]", "", name), 100) or "upload"
        folder = desk.spaces.begin_upload(request.state.space)
        try:
            await desk.spaces.receive(folder, name, request.stream())
            return asdict(await run_in_threadpool(desk.spaces.finish_upload, folder, name))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @app.get("/api/uploads")
    def uploads(request: Request) -> list[dict[str, Any]]:
        """Your uploads."""
        return [asdict(each) for each in desk.spaces.uploads(request.state.space)]

    @app.delete("/api/uploads/{key}", status_code=204)
    def remove_upload(key: str, request: Request) -> Response:
        """Remove an upload; jobs that were given it keep it."""
        desk.spaces.remove_upload(request.state.space, key)
        return Response(status_code=204)

    body = {"requestBody": {"content": {"application/json": {"schema": schema(backbones)}}, "required": True}}

    @app.post("/api/jobs", status_code=202, openapi_extra=body)
    async def submit(request: Request) -> dict[str, Any]:
        """Check a job and queue it. 422: it can't work; 429: the queue, or your share of it, is full."""
        content = await _json(request)
        return described(desk, await run_in_threadpool(desk.submit, request.state.space, content))

    @app.get("/api/jobs")
    def jobs(request: Request) -> list[dict[str, Any]]:
        """Your jobs, the latest first."""
        return [described(desk, ticket) for ticket in desk.queue.of(request.state.space)]

    @app.get("/api/jobs/{key}")
    def job(key: str, request: Request) -> dict[str, Any]:
        """State, stages with the seconds that are left, warnings, error, files, figures."""
        return described(desk, found(request, key))

    @app.post("/api/jobs/{key}/cancel")
    def cancel(key: str, request: Request) -> dict[str, Any]:
        """End a job at its next step, or take it out of the queue."""
        found(request, key)
        return described(desk, desk.queue.cancel(request.state.space, key))

    @app.delete("/api/jobs/{key}", status_code=204)
    def remove(key: str, request: Request) -> Response:
        """Remove a job that is over, with its files."""
        found(request, key)
        desk.queue.remove(request.state.space, key)
        return Response(status_code=204)

    @app.get("/api/jobs/{key}/files/{name:path}")
    def file(key: str, name: str, request: Request) -> Response:
        """A file of the job, by a name in its ``files``; ``run.zip``: the whole run folder."""
        ticket = found(request, key)
        if name == "run.zip" and ticket.status.state == "done":
            head = {"content-disposition": f'attachment; filename="{ticket.job.name}.zip"'}
            return StreamingResponse(_zip(ticket), media_type="application/zip", headers=head)
        path = paths_of(ticket).get(name)
        if path is None:
            raise HTTPException(404, f"no file {name!r} of this job now")
        head = {"cache-control": "private, no-cache"}
        if path.suffix in TEXTS:
            return HTMLResponse(public(path.read_text(encoding="utf-8")), headers=head)
        return FileResponse(path, headers=head)

    return app


def _zip(ticket: Ticket) -> Iterator[bytes]:
    yield from (piece for piece in zipped(ticket.run, ticket.job.name) if piece)
