"""A registry of images on this machine's loopback, which engines ask without encryption."""

from __future__ import annotations

import gzip
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Registry", "registry"]

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Has one image, from an archive of its files, by every name and tag but `missing`."""

    def __init__(self, archive: bytes, architecture: str) -> None:
        layer = gzip.compress(archive, 1, mtime=0)
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(archive)]},
            }
        ).encode()
        self._blobs = {_digest(data): data for data in (layer, config)}
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _entry(_CONFIG, config),
                "layers": [_entry(_LAYER, layer)],
            }
        ).encode()
        self.asked = 0
        """How often somebody wanted to know what the image is."""
        self.url = ""
        """What the name of an image begins with that is to come from here."""

    def find(self, path: str) -> tuple[str, bytes] | None:
        """What there is at a path, and of what kind."""
        _, _, name = path.rpartition("/")
        if "/manifests/" in path:
            self.asked += 1
            return None if name == "missing" else (_MANIFEST, self._manifest)
        data = self._blobs.get(name) if "/blobs/" in path else b"{}" if path == "/v2/" else None
        return None if data is None else ("application/octet-stream", data)


def _entry(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


@contextmanager
def registry(archive: bytes, architecture: str) -> Generator[Registry]:
    """A registry for as long as the block takes."""
    made = Registry(archive, architecture)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = made.find(self.path)
            kind, data = found or ("application/json", _UNKNOWN)
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", _digest(data))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
