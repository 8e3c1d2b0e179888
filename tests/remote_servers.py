"""Servers on loopback that rasters are fetched from."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Served:
    """A folder over HTTP with ranges; counts what was asked for."""

    folder: Path
    url: str = ""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """Name and bytes of each answer that had some."""
    fail_every: int = 0
    """Every so many'th request gets an error of the server; 0: none."""
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fails(self) -> bool:
        """One more request; whether this one fails."""
        with self.lock:
            self.asked += 1
            return bool(self.fail_every) and self.asked % self.fail_every == 0

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.ranges)


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
            path = folder / unquote(urlsplit(self.path).path).lstrip("/")
            if served.fails() or not path.is_file():
                self._head(404 if not path.is_file() else 503, {"Content-Length": "0"})
                return
            status = path.stat()
            first, stop, code = 0, status.st_size, 200
            facts = {"ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"', "Accept-Ranges": "bytes"}
            facts["Last-Modified"] = self.date_time_string(status.st_mtime)
            if found := _RANGE.fullmatch(self.headers.get("Range", "")):
                first, stop, code = int(found[1]), min(int(found[2] or stop) + 1, stop), 206
                facts["Content-Range"] = f"bytes {first}-{stop - 1}/{status.st_size}"
            self._head(code, {**facts, "Content-Length": str(stop - first)})
            if body:
                served.ranges.append((path.name, stop - first))
                self.wfile.write(path.read_bytes()[first:stop])

        def _head(self, code: int, facts: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in facts.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
