"""The folder in which a manager's sandboxes are found by the next one: whose it is, what is in it.

One manager at a time has it, by a lock that the kernel takes away when that manager's process ends,
however it ends. Below it is a folder a type of sandbox, which is that type's own business.
"""

from __future__ import annotations

import os
import sys
import weakref
from urllib.parse import quote, unquote

from ms_enclave.errors import ConfigError, SandboxStateError

__all__ = ["State", "snapshots_in"]

_LOCK = "owner.lock"
_SNAPSHOTS = ".snapshots"
"""No type of sandbox is called so: `quote` leaves its dot, and a name has none in front."""

_open: weakref.WeakSet[State] = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked child must not go on holding its parent's lock."""
    for state in list(_open):
        state.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


class State:
    """The folder, from when it is locked until `close`. Making one blocks."""

    def __init__(self, path: str) -> None:
        """Lock it, made if needed.

        Raises:
            ConfigError: it cannot be made or opened, is somebody else's, or is open to others.
            SandboxStateError: another manager has it.
        """
        self.path = os.path.abspath(os.path.expanduser(path))
        self._lock = -1
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            _require_private(self.path)
            self._lock = os.open(
                f"{self.path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ConfigError(f"state_dir {self.path} cannot be used: {error.strerror}") from error
        import fcntl  # not on every system that can import this module

        _open.add(self)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 100, 0).decode("utf-8", "replace").strip()
            self.close()
            raise SandboxStateError(
                f"state_dir {self.path} is in use by the manager of process {owner or '?'}"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def types(self) -> list[str]:
        """The types of sandboxes that something may be left of."""
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
        return sorted(unquote(name) for name in names if name != _SNAPSHOTS)

    def folder_of(self, sandbox_type: str) -> str:
        """Where a type keeps what it needs; made by whoever uses it."""
        return f"{self.path}/{quote(sandbox_type, safe='')}"

    def close(self) -> None:
        """Let the next manager have it. Idempotent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def snapshots_in(state_dir: str) -> str:
    """Where the snapshots of a manager with that folder are."""
    return os.path.join(os.path.abspath(os.path.expanduser(state_dir)), _SNAPSHOTS)


def _require_private(path: str) -> None:
    state = os.stat(path)
    if state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise ConfigError(
            f"state_dir {path} must belong to this user and be closed to everybody else",
            remedy=f"chmod 0700 {path}",
        )
