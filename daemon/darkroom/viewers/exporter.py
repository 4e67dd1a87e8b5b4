"""Where the metrics go: a small HTTP server, and a file for node_exporter. Neither is worth a job.

A port that is taken, or a folder that is not there, is said in the log and tried again; pictures are made meanwhile.
"""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from darkroom.config import MetricsSettings
from darkroom.errors import StorageTrouble, plainly
from darkroom.health import Health
from darkroom.spool import Disk
from darkroom.viewers.metrics import Metrics

EVERY_S = 15.0
"""How often the file is written, and what failed is tried again."""
STUCK_S = 30.0
"""A loop that has not come by for so long does not live."""
REQUEST_S = 10.0

Answer = tuple[int, str, bytes]

_TEXT = "text/plain; charset=utf-8"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Exporter:
    """Serves and writes from ``start`` to ``close``."""

    def __init__(self, settings: MetricsSettings, metrics: Metrics, health: Health, logger: Any) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._logger = logger
        self._disk = Disk()
        self._closed = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._complaints: dict[str, str] = {}

    @property
    def port(self) -> int | None:
        """Where it listens; None while it does not."""
        return self._server.server_address[1] if self._server is not None else None

    def start(self) -> None:
        """Listen at once where that is possible, go on in a thread."""
        self._listen()
        self._thread.start()

    def close(self) -> None:
        """Write the file for the last time, listen no more."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(1)
        self._write()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str) -> Answer:
        """What a path says: its status, its kind, its text."""
        match path.partition("?")[0]:
            case "/metrics":
                return 200, _EXPOSITION, self._metrics.exposition()
            case "/healthz":
                age_s = self._health.age_s()
                if age_s <= STUCK_S:
                    return 200, _TEXT, b"ok\n"
                return 503, _TEXT, f"the loop has not come by for {age_s:.0f} s\n".encode()
            case "/readyz":
                report = self._health.report
                ready = report.state in ("idle", "working", "paused") and not report.trouble
                why = f": {report.why}" if report.why else ""
                return (200 if ready else 503), _TEXT, f"{report.state}{why}\n".encode("utf-8", "backslashreplace")
        return 404, _TEXT, b"there are /metrics, /healthz and /readyz\n"

    def _run(self) -> None:
        while True:
            self._write()
            if self._closed.wait(EVERY_S):
                return
            self._listen()

    def _listen(self) -> None:
        if self._settings.listen is None or self._server is not None:
            return
        host, _, port = self._settings.listen.rpartition(":")
        host = host.strip("[]")
        try:
            self._server = _server(host, int(port), self)
        except OSError as error:
            self._complain("listen", f"cannot listen on {self._settings.listen}: {error.strerror}")
            return
        threading.Thread(target=self._server.serve_forever, name="metrics-http", daemon=True).start()
        self._complaints.pop("listen", None)
        self._logger.info("metrics.listening", address=host, port=self.port)

    def _write(self) -> None:
        if self._settings.textfile is None:
            return
        try:
            self._disk.replace(self._settings.textfile, self._metrics.exposition(), sync=False)
        except (OSError, StorageTrouble) as error:
            self._complain("textfile", f"cannot write {self._settings.textfile}: {plainly(error)}")
        else:
            self._complaints.pop("textfile", None)

    def _complain(self, about: str, why: str) -> None:
        """Once, however long it lasts."""
        if self._complaints.get(about) != why:
            self._complaints[about] = why
            self._logger.warning("metrics.unavailable", why=why)


def _server(host: str, port: int, exporter: Exporter) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S
        server_version = "darkroom"
        sys_version = ""

        def do_GET(self) -> None:
            status, kind, text = exporter.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody wants a line for each scrape."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is no event."""

    return Server((host, port), Handler)
