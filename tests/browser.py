"""Opens a page in a real Chromium without a window, by its DevTools over a pipe, and tells what it looks like."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def binary() -> str | None:
    """Return the path of a Chromium or Chrome, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclasses.dataclass
class Page:
    """One tab. `said`: errors on its console; `fetched`: what it asked the network or the disk for."""

    process: subprocess.Popen[bytes]
    writing: int
    reading: int
    session: str = ""
    number: int = 0
    rest: bytes = b""
    said: list[str] = dataclasses.field(default_factory=list)
    fetched: list[str] = dataclasses.field(default_factory=list)
    loaded: bool = False

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a DevTools command."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self.number:
            self._heard(found)
        assert "error" not in found, (method, found["error"])
        return found["result"]

    def open(self, path: pathlib.Path, width: int, dark: bool) -> None:
        """Show a file at this width of the screen."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.ask("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._heard(self._next())

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: pathlib.Path) -> None:
        """Write a picture of the whole page."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            data = os.read(self.reading, 2**16)
            assert data, "the browser has ended"
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def _heard(self, event: dict[str, Any]) -> None:
        match event.get("method"), event.get("params", {}):
            case "Page.loadEventFired", _:
                self.loaded = True
            case "Network.requestWillBeSent", told:
                self.fetched.append(told["request"]["url"])
            case "Log.entryAdded", told:
                self.said.append(told["entry"]["text"])
            case "Runtime.exceptionThrown", told:
                self.said.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled", told:
                self.said.append(json.dumps(told["args"]))


@contextlib.contextmanager
def browser() -> Generator[Page]:
    """Yield a tab of a fresh browser, which is gone afterwards."""
    program, home = binary(), tempfile.mkdtemp()
    assert program is not None
    to_read, writing = os.pipe()
    reading, to_write = os.pipe()

    def pipes() -> None:
        # Chromium reads commands from 3 and writes to 4; copies first, since they may be these numbers already.
        one, two = os.dup(to_read), os.dup(to_write)
        os.dup2(one, 3)
        os.dup2(two, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={home}", "about:blank"],
        preexec_fn=pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        page = Page(process, writing, reading)
        target = page.ask("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.ask(f"{domain}.enable")
        yield page
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(writing)
        os.close(reading)
        _gone(pathlib.Path(home))


def _gone(home: pathlib.Path) -> None:
    """Remove the browser's folder, which its helpers may still write for a moment."""
    for _ in range(20):
        shutil.rmtree(home, ignore_errors=True)
        if not home.exists():
            return
        time.sleep(0.1)
