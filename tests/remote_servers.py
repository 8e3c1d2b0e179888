"""Servers on loopback that rasters are fetched from."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_HEAD = 2**14
"""Bytes that GDAL asks for first."""
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Served:
    """A folder over HTTP with ranges; counts what was asked for."""

    folder: Path
    url: str = ""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """Name and bytes of each answer that had some."""
    fail_every: int = 0
    """Every so many'th request gets an error of the server; 0: none."""
    cut_every: int = 0
    """Of every so many'th answer with more than a head of a file only half arrives; 0: of none."""
    answered: int = 0
    asked: int = 0
    paths: set[str] = field(default_factory=set)
    """All that was asked for."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fails(self) -> bool:
        """One more request; whether this one fails."""
        with self.lock:
            self.asked += 1
            return bool(self.fail_every) and self.asked % self.fail_every == 0

    def cuts(self, count: int) -> bool:
        """One more answer of so many bytes; whether this one breaks off."""
        with self.lock:
            self.answered += count > _HEAD
            return count > _HEAD and bool(self.cut_every) and self.answered % self.cut_every == 0

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.ranges)


def _part(asked: str, length: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a header of a range asks for; None without one."""
    found = _RANGE.fullmatch(asked)
    if found is None:
        return None
    if not found[1]:
        return max(0, length - int(found[2])), length
    return int(found[1]), min(int(found[2] or length) + 1, length)


@contextmanager
def s3_server() -> Iterator[Any]:
    """A real server that speaks S3, with an empty bucket; gives a client."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "knows")
        patch.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="images")
        try:
            yield client
        finally:
            client.close()
            server.stop()


@contextmanager
def slow_bucket(seconds: float) -> Iterator[list[str]]:
    """A server of S3 that takes whatever is put there, slowly; gives the paths."""
    taken: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            taken.append(self.path)
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with _listening(Handler) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "knows")
        patch.setenv("AWS_REGION", "us-east-1")
        yield taken


@contextmanager
def _listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def http_server(folder: Path) -> Iterator[Served]:
    """Serves a folder until the context ends."""
    served = Served(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            served.paths.add(self.path)
            path = folder / unquote(urlsplit(self.path).path).lstrip("/")
            if served.fails() or not path.is_file():
                self._head(404 if not path.is_file() else 503, {"Content-Length": "0"})
                return
            status = path.stat()
            first, stop, code = 0, status.st_size, 200
            facts = {"ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"', "Accept-Ranges": "bytes"}
            facts["Last-Modified"] = self.date_time_string(status.st_mtime)
            if part := _part(self.headers.get("Range", ""), status.st_size):
                (first, stop), code = part, 206
                facts["Content-Range"] = f"bytes {first}-{stop - 1}/{status.st_size}"
            self._head(code, {**facts, "Content-Length": str(stop - first)})
            if body:
                served.ranges.append((path.name, stop - first))
                self.close_connection = served.cuts(stop - first)
                self.wfile.write(path.read_bytes()[first : (first + stop) // 2 if self.close_connection else stop])

        def _head(self, code: int, facts: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in facts.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with _listening(Handler) as served.url:
        yield served
