"""A real Chromium that a test drives as a person would: keys, mouse, what is on the screen.

It speaks the DevTools protocol over a pair of pipes, so that no port is open; names below .example are this machine.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S, eventually

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Delete": ("Delete", 46, ""),
    "F2": ("F2", 113, ""),
}
"""Code, virtual key code and text of the keys that tests press by name."""
SHIFT, CONTROL = 8, 2
"""Modifiers of ``Page.press``."""


class ScriptError(Exception):
    """JavaScript on the page has thrown."""


class Chromium:
    """The browser; ``page`` opens a tab of a fresh profile."""

    def __init__(self, process: subprocess.Popen[bytes], to_browser: int, from_browser: int) -> None:
        self._process = process
        self._to, self._from = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        """Events that the browser has sent: messages with ``method``, ``params`` and ``sessionId``."""

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol.

        Raises:
            ScriptError: the browser refuses the command.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        _write(self._to, json.dumps(message).encode() + b"\0")
        until_s = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(until_s)
            if answer.get("id") == number:
                if "error" in answer:
                    raise ScriptError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)

    def _next(self, until_s: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, until_s - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._from, 1 << 20)
            if not piece:
                raise ScriptError(f"the browser has ended with {self._process.wait()}")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    @contextmanager
    def trace(self, *categories: str) -> Iterator[list[dict[str, Any]]]:
        """Record what the browser does; the list has the events, in the format of Chrome's traces, after the block."""
        found: list[dict[str, Any]] = []
        self.call("Tracing.start", transferMode="ReportEvents", traceConfig={"includedCategories": list(categories)})
        yield found
        begin = len(self.events)
        self.call("Tracing.end")
        until_s = time.monotonic() + PATIENCE_S
        while not any(event["method"] == "Tracing.tracingComplete" for event in self.events[begin:]):
            self.events.append(self._next(until_s))
        for event in self.events[begin:]:
            if event["method"] == "Tracing.dataCollected":
                found += event["params"]["value"]
        self.events[begin:] = [event for event in self.events[begin:] if not event["method"].startswith("Tracing.")]

    @contextmanager
    def page(self, url: str = "", *, context: str | None = None) -> Iterator[Page]:
        """A tab, in a profile of its own unless ``context`` names that of another tab; shows ``url`` if given."""
        own = context is None
        context = context or str(self.call("Target.createBrowserContext")["browserContextId"])
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        try:
            if url:
                page.open(url)
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)
            if own:
                self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self.context = context
        """The profile, to open a second tab with the same storage."""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol for this tab."""
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Go to ``url`` and wait until the page and its modules are loaded."""
        self.call("Page.navigate", url=url)
        eventually(
            "the page is loaded",
            lambda: self.js("document.readyState === 'complete' && location.href !== 'about:blank'"),
        )

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise what it resolves to.

        Raises:
            ScriptError: the expression throws.
        """
        told = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description") or details["text"])
        return told["result"].get("value")

    def until(self, expression: str, what: str = "") -> Any:
        """Wait until a JavaScript expression is true, and return its value.

        An expression that throws is not true yet, since an element that it reads may still come.
        """
        return eventually(what or expression, lambda: self._js_if_there(expression))

    def becomes(self, expression: str, value: Any) -> None:
        """Wait until a JavaScript expression has ``value``: texts are drawn a little later than what is beside them."""
        eventually(f"{expression} is {value!r}", lambda: bool(self._js_if_there(expression) == value))

    def _js_if_there(self, expression: str) -> Any:
        """The value of an expression; None where it throws."""
        try:
            return self.js(expression)
        except ScriptError:
            return None

    def click(self, selector: str) -> None:
        """Click with the mouse into the middle of the element, which must be there, visible and uncovered."""
        found = json.dumps(selector)
        self.until(f"!!document.querySelector({found})", f"{selector} is there")
        place = (
            f"(() => {{ const e = document.querySelector({found}); e.scrollIntoView({{block: 'nearest'}});"
            " const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " const hit = document.elementFromPoint(x, y);"
            " return [x, y, r.width > 0 && !!hit && (e.contains(hit) || hit.contains(e))]; })()"
        )
        x, y = eventually(f"{selector} can be clicked", lambda: _if_hit(self.js(place))) or (0, 0)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release one key: a name such as ``Enter``, or a letter."""
        code, number, text = _KEYS.get(key) or (
            f"Key{key.upper()}",
            ord(key.upper()),
            "" if modifiers & CONTROL else key,
        )
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screen(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        """Have a screen of this size in CSS pixels; a phone's has touch."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, **features: str) -> None:
        """Set media features, such as ``prefers_color_scheme="dark"``."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=given)

    def picture(self, file: Path) -> None:
        """Write the contents of the screen to ``file`` as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def told(self, method: str) -> list[Mapping[str, Any]]:
        """The parameters of all events ``method`` of this tab so far."""
        self.js("0")  # events that came before this answer have been read then
        mine = (event for event in self._browser.events if event.get("sessionId") == self._session)
        return [event["params"] for event in mine if event["method"] == method]

    def forget(self) -> None:
        """Forget the events so far, such as complaints that a test has provoked."""
        self.js("0")
        self._browser.events = [event for event in self._browser.events if event.get("sessionId") != self._session]

    def complaints(self) -> list[str]:
        """Errors of scripts and of the content policy, as the console shows them."""
        thrown = [str(one["exceptionDetails"]) for one in self.told("Runtime.exceptionThrown")]
        logged = [str(one["entry"]) for one in self.told("Log.entryAdded") if one["entry"]["level"] == "error"]
        return thrown + logged


@contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """A browser with its profiles below ``folder``, which ends with the block."""
    assert BROWSER is not None
    inner_in, to_browser = os.pipe()
    from_browser, inner_out = os.pipe()
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP *.example 127.0.0.1", "--proxy-server=direct://", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{inner_in} 4>&{inner_out}', "bash", BROWSER, *options],
        pass_fds=(inner_in, inner_out),
        env={**os.environ, "EDGEPP_TEST_RUN": "shared"},  # several tests may share it; it ends with the block anyway
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(inner_in)
    os.close(inner_out)
    try:
        yield Chromium(process, to_browser, from_browser)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)


def _if_hit(place: list[Any]) -> tuple[float, float] | None:
    return (place[0], place[1]) if place[2] else None


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
