"""A page in a real browser, driven through its debugging pipe: what is waited for are conditions, not times."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from fcn_batch.pipeline.raster.gdal import accept_pixel_space

WIDTH, HEIGHT = 1200, 700
_PATIENCE_S = 120.0
READY = "document.documentElement.dataset.ready"


def browser() -> str:
    """The program; without one the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    return found


@dataclass(slots=True)
class Tab:
    """A tab of a running browser."""

    commands: int
    """File descriptor that commands are written to: JSON, each ended by a zero byte."""
    answers: int
    """File descriptor that answers and events are read from."""
    session: str | None = None
    said: list[str] = field(default_factory=list)
    """What the page or the browser wrote to the console, and errors that nobody caught."""
    _count: int = 0
    _buffer: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do what the DevTools protocol calls `method`."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self.answers], [], [], max(0.0, end - time.monotonic()))
            assert readable, f"no answer in {_PATIENCE_S} s"
            part = os.read(self.answers, 2**20)
            assert part, "the browser ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(answer["params"]))
        return answer

    def value(self, expression: str) -> Any:
        """What JavaScript makes of it; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until it holds; a change of any attribute is what it can hold after."""
        self.value(
            f"new Promise((done) => {{ const look = () => ({condition}) && done(); "
            "new MutationObserver(look).observe(document, {attributes: true, subtree: true}); look(); })"
        )

    def picture(self) -> NDArray[np.int64]:
        """(rows, cols, 3) of what is shown, after the next frame is drawn."""
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => 1)")
        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        with accept_pixel_space(), MemoryFile(shot) as file, file.open() as dataset:
            shown: NDArray[np.uint8] = dataset.read()
            return np.moveaxis(shown[:3], 0, -1).astype(np.int64)


@contextmanager
def opened(
    page: str, folder: Path, *options: str, state: str = "", before: str = "", size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Iterator[Tab]:
    """The page in a browser, from a file and with `state` in its address; the script `before` runs before it does."""
    path = folder / "page.html"
    path.write_text(page, "utf-8")
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb",
        f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", *options, "about:blank",
    ]  # fmt: skip
    hears, commands = os.pipe()
    answers, tells = os.pipe()
    bound = ["bash", "-c", f'exec "$@" 3<&{hears} 4>&{tells}', "bash", *command]  # where a browser looks for them
    running = subprocess.Popen(
        bound, pass_fds=(hears, tells), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(hears)
    os.close(tells)
    try:
        tab = Tab(commands, answers)
        target = next(one for one in tab.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        tab.session = tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **metrics)
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        tab.call("Page.navigate", url=f"{path.as_uri()}{state}")
        while tab.value("location.protocol === 'file:' && document.readyState") != "complete":
            time.sleep(0.02)
        yield tab
    finally:
        running.kill()
        running.wait()
        os.close(commands)
        os.close(answers)
