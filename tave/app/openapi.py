"""The page of /docs: routes and the schema of a job, from the OpenAPI description, without scripts of another host."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
STYLE += "code{background:#f2f2f2;padding:.1em .3em;border-radius:3px}table{border-collapse:collapse;width:100%}"
STYLE += "td,th{text-align:left;vertical-align:top;padding:.3em .6em;border-bottom:1px solid #ddd}"
STYLE += "b{display:inline-block;min-width:4.5em}@media(prefers-color-scheme:dark){body{background:#171717;color:#ddd}"
STYLE += "code{background:#2a2a2a}td,th{border-color:#333}a{color:#7db7ff}}"


def page_of(description: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI ``description``."""
    return "\n".join(_lines(description))


def _lines(description: Mapping[str, Any]) -> Iterator[str]:
    title = f"{description['info']['title']} {description['info']['version']}"
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}: HTTP</title><style>{STYLE}</style>"
    yield f"<h1>{_text(title)} over HTTP</h1>"
    yield "<p>For programs: <a href=/openapi.json>openapi.json</a>, <a href=/api/schema>the schema of a job</a>.</p>"
    yield "<table>"
    job: Mapping[str, Any] = {}
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            yield f"<tr><td><code><b>{method.upper()}</b>{_text(path)}</code><td>{_text(route.get('description', ''))}"
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            job = content.get("schema", job)
    yield "</table><h2>A job</h2><table><tr><th>key<th>value<th>meaning"
    for key, about in job.get("properties", {}).items():
        yield f"<tr><td><code>{_text(key)}</code><td>{_text(_values(about))}<td>{_text(about['description'])}"
    yield "</table></html>"


def _values(about: Mapping[str, Any]) -> str:
    kinds = about["type"] if isinstance(about["type"], list) else [about["type"]]
    values = (
        ", ".join(str(each) for each in about["enum"] if each is not None) if "enum" in about else " or ".join(kinds)
    )
    low, high = about.get("minimum"), about.get("maximum")
    bounds = f"{low} to {high}" if high is not None else f"{low} or more" if low is not None else ""
    return f"{values}{f', {bounds}' if bounds else ''}"


def _text(value: str) -> str:
    return html.escape(" ".join(value.split()))
