"""A hub on 127.0.0.1 that has one repository: a folder. As much of its protocol as fetching a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``fails_after`` answers with 503 to all files but so many; ``requests`` counts what was asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.folder = folder
        self.requests: list[str] = []
        self.fails_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server
        hub.requests.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{hub.name}/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": file.relative_to(hub.folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in hub.files()
            ]
            self._send(json.dumps(entries).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{hub.name}"):
            siblings = [{"rfilename": file.relative_to(hub.folder).as_posix()} for file in hub.files()]
            about = {"id": hub.name, "modelId": hub.name, "sha": COMMIT, "siblings": siblings}
            self._send(json.dumps(about).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(f"/{hub.name}/resolve/"):
            fetched = sum(line.startswith("GET") and "/resolve/" in line for line in hub.requests)
            if body and hub.fails_after is not None and fetched > hub.fails_after:
                self._send(b"", body, {}, 404)
                return
            file = hub.folder / path.removeprefix(f"/{hub.name}/resolve/").partition("/")[2]
            if not file.is_file():
                self._send(b"", body, {"X-Error-Code": "EntryNotFound"}, 404)
                return
            data = file.read_bytes()
            self._send(data, body, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(b"", body, {"X-Error-Code": "RepoNotFound"}, 404)

    def _send(self, data: bytes, body: bool, headers: dict[str, str], code: int = 200) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(name: str, folder: Path) -> Iterator[Hub]:
    with Hub(name, folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join(5)
