"""OCI archives for tests, right ones and wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LAYER", "Archive", "Member", "layer"]

LAYER = "application/vnd.oci.image.layer.v1.tar"
Member = tuple[str, Any] | tuple[str, Any, int]


def layer(*members: Member) -> bytes:
    """A tar. Content is bytes for a file, None for a folder, `-> x` for a link, `= x` for a second
    name, `dev` for a device."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, *mode in members:
            member = tarfile.TarInfo(name)
            member.mode = mode[0] if mode else 0o755
            member.mtime = 1_000_000_000
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                continue
            if content is None:
                member.type = tarfile.DIRTYPE
            elif content == "dev":
                member.type = tarfile.CHRTYPE
            else:
                member.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                member.linkname = content.split(" ", 1)[1]
            tar.addfile(member)
    return buffer.getvalue()


class Archive:
    """Builds an OCI archive; what is wrong with it is changed before it is written."""

    def __init__(self, *layers: bytes, packed: str = "+gzip") -> None:
        self.blobs: dict[str, bytes] = {}
        contents = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in layers]
        self.settings: dict[str, Any] = {
            "config": {"Env": ["PATH=/image/bin", "COLOUR=red=1"]},
            "rootfs": {"type": "layers", "diff_ids": contents},
        }
        self.layers = [
            self.add(gzip.compress(content) if packed else content, LAYER + packed)
            for content in layers
        ]
        self.index: dict[str, Any] | None = None

    def add(self, content: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return {"mediaType": kind, "digest": digest, "size": len(content), **more}

    def add_json(self, document: Any, kind: str, **more: Any) -> dict[str, Any]:
        return self.add(json.dumps(document).encode(), f"application/vnd.oci.image.{kind}", **more)

    def manifest(self, **more: Any) -> dict[str, Any]:
        settings = self.add_json(self.settings, "config.v1+json")
        document = {"schemaVersion": 2, "config": settings, "layers": self.layers}
        return self.add_json(document, "manifest.v1+json", **more)

    def write(self, path: Path) -> str:
        index = self.index or {"manifests": [self.manifest()]}
        with tarfile.open(path, "w") as tar:
            files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
            files["index.json"] = json.dumps(index).encode()
            files |= {f"blobs/{key.replace(':', '/')}": blob for key, blob in self.blobs.items()}
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return f"oci-archive:{path}"
