"""What a sandbox's files are kept as, for others to begin with."""

from __future__ import annotations

from pydantic import BaseModel

from ms_enclave.model.results import UtcTime

__all__ = ["SnapshotInfo"]


class SnapshotInfo(BaseModel, defer_build=True):
    """The files of a sandbox as they were at one moment, under a name."""

    name: str
    id: str
    """The digest of its content: the same for two that hold the same."""
    size: int
    """Bytes in its files."""
    files: int
    """Files, folders and links in it."""
    created_at: UtcTime
