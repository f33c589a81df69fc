"""A service that speaks SandboxFusion's `/run_code` and really runs what it is asked to run.

Without walls: for tests, on what the tests themselves send. It notes every request, how many were
under way at a time, and whether whoever asked went away before the answer.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reply", "Request", "Service"]


@dataclass(frozen=True)
class Request:
    """What came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What goes back in place of a result."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    endless: bool = False
    """Whether the body is followed by more, until nobody takes it any longer."""


# Language: the file's name, what compiles it, what runs it.
_LANGUAGES: dict[str, tuple[str, list[str] | None, list[str]]] = {
    "python": ("main.py", None, [sys.executable, "main.py"]),
    "bash": ("main.sh", None, ["bash", "main.sh"]),
    "cpp": ("main.cpp", ["g++", "main.cpp", "-o", "main"], ["./main"]),
    "R": ("main.R", None, ["cat", "main.R"]),  # it shows that it was asked
    "special": ("main.py", None, [sys.executable, "-c", "print('special')"]),
}


class Service:
    """Listens on a port of the loopback address from `with` to its end.

    Args:
        key: what the header `Authorization` has to be; None for anything.
        reply: given a request, what to answer in place of running it; None from it runs it.
        certificate: a PEM file with a certificate and its key, to speak TLS.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        path: str = "/run_code",
        reply: Callable[[Request], Reply | None] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.key, self.path, self.reply = key, path, reply
        self.requests: list[Request] = []
        self.under_way = 0
        self.most_under_way = 0
        self.gone = threading.Event()
        """Set when whoever asked went away before the answer."""
        self.arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            block_on_close = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # --- one request ---

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.path, headers, json.loads(data))
        with self._lock:
            self.requests.append(request)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        self.arrived.release()
        try:
            answer = self._answer(request, handler)
        finally:
            with self._lock:
                self.under_way -= 1
        if answer is None:
            handler.close_connection = True
            self.gone.set()
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if not answer.endless:
            handler.send_header("Content-Length", str(len(answer.body)))
        # No connection stays open: a thread would wait on it, and the service could not end.
        handler.send_header("Connection", "close")
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(answer.body)
            while answer.endless:
                handler.wfile.write(bytes(1 << 16))

    def _answer(self, request: Request, handler: BaseHTTPRequestHandler) -> Reply | None:
        if self.key is not None and request.headers.get("authorization") != self.key:
            return Reply(401, b'{"detail": "who are you?"}')
        instead = None if self.reply is None else self.reply(request)
        if instead is not None:
            return instead
        if request.path != self.path:
            return Reply(404, b'{"detail": "Not Found"}')
        if request.body["language"] not in _LANGUAGES:
            return Reply(422, b'{"detail": [{"msg": "Input should be \'python\' or \'cpp\'"}]}')
        result = _run(request.body, lambda: _has_gone(handler))
        return None if result is None else Reply(200, json.dumps(result).encode())


def _has_gone(handler: BaseHTTPRequestHandler) -> bool:
    readable, _, _ = select.select([handler.connection], [], [], 0)
    return bool(readable)  # nothing more is sent before the answer: it is the end


def _run(body: dict[str, Any], has_gone: Callable[[], bool]) -> dict[str, Any] | None:
    name, compiler, command = _LANGUAGES[body["language"]]
    with tempfile.TemporaryDirectory() as folder:
        for path, content in body.get("files", {}).items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(base64.b64decode(content))
        Path(folder, name).write_text(body["code"])
        compiled = ran = None
        if compiler is not None:
            compiled = _step(compiler, folder, "", body.get("compile_timeout", 10), has_gone)
        if compiled is None or compiled["return_code"] == 0:
            stdin = body.get("stdin") or ""
            ran = _step(command, folder, stdin, body.get("run_timeout", 10), has_gone)
            if ran is None:
                return None
    steps = [step for step in (compiled, ran) if step is not None]
    good = all(step["return_code"] == 0 for step in steps)
    return {
        "status": "Success" if good else "Failed",
        "message": "",
        "compile_result": compiled,
        "run_result": ran,
        "executor_pod_name": None,
        "files": {},
    }


def _step(
    command: list[str], folder: str, stdin: str, seconds: float, has_gone: Callable[[], bool]
) -> dict[str, Any] | None:
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with tempfile.TemporaryFile() as source:
            source.write(stdin.encode())
            source.seek(0)
            process = subprocess.Popen(
                command, cwd=folder, stdin=source, stdout=out, stderr=err, start_new_session=True
            )
        late = gone = False
        while process.poll() is None and not late and not gone:
            time.sleep(0.005)
            late = time.monotonic() - began > seconds
            gone = has_gone()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if gone:
            return None
        texts: list[str] = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    return {
        "status": "TimeLimitExceeded" if late else "Finished",
        "execution_time": time.monotonic() - began,
        "return_code": None if late else code,
        "stdout": texts[0],
        "stderr": texts[1],
    }
