"""What every request passes first: host, origin, token, size; and the user's space, by a cookie."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tave.app.spaces import FULL, Spaces, now
from tave.config import AppOptions

SPACE, TOKEN = "tave_space", "tave_token"
SMALL = 1_000_000  # bytes of a request that is no upload
UPLOADS = ("/api/uploads", "/gradio_api/upload")
FILE = b"content-disposition"  # begins each file of a form, the way of Gradio's own uploads
KEPT = 3600.0  # s that Gradio keeps a file
# The page asks no other host. Gradio's own scripts are inline and compile their templates.
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
POLICY += "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
POLICY += "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class TooMuch(Exception):  # noqa: N818 - it ends a request, and is answered
    """A request holds more than it may: status and line of the answer."""


class Guard:
    """ASGI middleware. ``scope["state"]["space"]`` holds the user's space afterwards.

    A browser's page of another origin can't use this one: its cookies don't come along (SameSite), its requests carry
    an ``Origin`` that is refused, and a name that it points at this machine is no ``Host`` of it. Without a token only
    names of this machine are taken as hosts.
    """

    def __init__(self, app: Any, options: AppOptions, spaces: Spaces) -> None:
        self.app, self.options, self.spaces = app, options, spaces
        self._given: deque[tuple[float, str]] = deque()  # when, in which space: files that Gradio keeps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        cookies = _cookies(headers.get("cookie", ""))
        refusal = self._refused(scope, headers, cookies)
        if refusal and scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if refusal:
            await _answer(send, *refusal)
            return
        if self._asks_with_token(scope):
            await self._enter(scope, send)
            return
        given = cookies.get(SPACE, "")
        space = given if self.spaces.valid(given) else self.spaces.issue()
        scope.setdefault("state", {})["space"] = space
        begun, ended = False, list[TooMuch]()

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if ended and not begun:
                return  # what a mounted app says to the end of its request
            if message["type"] == "http.response.start":
                begun = True
                added = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                if space != given:
                    added.append((b"set-cookie", _cookie(SPACE, space)))
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        form = headers.get("content-type", "").lower().startswith("multipart/")
        if form and self.spaces.full():
            await _answer(send, 429, FULL)
            return
        body = self._bounded(receive, self._most(scope["path"]), space if form else None, ended)
        with suppress(TooMuch):
            await self.app(scope, body, answer)
        if ended and not begun:
            await _answer(send, *ended[0].args)

    def _bounded(self, receive: Receive, most: int, space: str | None, ended: list[TooMuch]) -> Receive:
        """``receive`` that raises :class:`TooMuch`, kept in ``ended``, once a body holds more than ``most`` bytes, or
        brings one more file of a form than its ``space`` may give.
        """
        seen, tail = 0, b""

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal seen, tail
            message = await receive()
            body = message.get("body", b"") if message["type"] == "http.request" else b""
            seen += len(body)
            if seen > most:
                ended.append(TooMuch(413, f"the request is larger than {most // 10**6} MB"))
            elif space is not None:
                text = tail + body.lower()
                tail = text[1 - len(FILE) :]
                if not all(self._takes(space) for _ in range(text.count(FILE))):
                    line = f"you gave {self.options.limits.uploads} files within an hour: wait until old ones go"
                    ended.append(TooMuch(429, line))
            if ended:
                raise ended[0]
            return message

        return bounded

    def _takes(self, space: str) -> bool:
        """Count another file of a ``space`` that Gradio will keep; whether it may be given."""
        at = now()
        while self._given and at - self._given[0][0] > KEPT:
            self._given.popleft()
        if sum(whose == space for _, whose in self._given) >= self.options.limits.uploads:
            return False
        self._given.append((at, space))
        return True

    def _most(self, path: str) -> int:
        return self.options.limits.megabytes * 1_000_000 + SMALL if path.startswith(UPLOADS) else SMALL

    def _refused(self, scope: Scope, headers: dict[str, str], cookies: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.options.token is None and not _is_own(urlsplit(f"//{host}").hostname):
            return 421, "this server answers on 127.0.0.1 and localhost alone: start it with host=... for others"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return 403, "a page of another origin may not use this server"
        if headers.get("content-length", "0").isdigit() is False:
            return 400, "content-length is no number"
        if int(headers.get("content-length", "0")) > self._most(scope["path"]):
            return 413, f"the request is larger than {self._most(scope['path']) // 10**6} MB"
        if self.options.token is not None and not self._knows(scope, headers, cookies):
            return (
                401,
                "a token is needed: open the address that the server printed, or send Authorization: Bearer TOKEN",
            )
        return None

    def _knows(self, scope: Scope, headers: dict[str, str], cookies: dict[str, str]) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = [cookies.get(TOKEN, ""), bearer.strip() if kind.lower() == "bearer" else "", *_asked(scope)]
        wanted = str(self.options.token).encode()
        return any(hmac.compare_digest(each.encode("utf-8", "replace"), wanted) for each in given)

    def _asks_with_token(self, scope: Scope) -> bool:
        return self.options.token is not None and scope["type"] == "http" and bool(_asked(scope))

    async def _enter(self, scope: Scope, send: Send) -> None:
        """Keep the token of the address in a cookie, and drop it from the address."""
        cookie = _cookie(TOKEN, str(self.options.token))
        place = b"/" + scope["path"].lstrip("/\\").encode()  # one that begins with two slashes leads to another host
        headers = [(b"location", place), (b"set-cookie", cookie), (b"referrer-policy", b"no-referrer")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _asked(scope: Scope) -> list[str]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])


def _is_own(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cookies(header: str) -> dict[str, str]:
    try:
        return {key: morsel.value for key, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def _cookie(name: str, value: str) -> bytes:
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000".encode()


async def _answer(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"application/json"), *((k.encode(), v.encode()) for k, v in HEADERS.items())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": line}).encode()})
