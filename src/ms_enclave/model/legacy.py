"""Words of earlier versions that are still understood, and nowhere else spoken of."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ms_enclave.model.enums import SandboxStatus

__all__ = [
    "OLD_DEFAULTS",
    "OLD_FIELDS",
    "OLD_STATES",
    "OldStates",
    "add_old_states",
    "drop_old_fields",
    "old_state",
    "undefaulted",
]

OLD_STATES: Mapping[str, str] = {"initializing": "created", "idle": "running", "busy": "running"}
"""States that were, by the value of the state that took their place."""


class OldStates:
    """Makes the old states readable: as attributes, and as values (`SandboxStatus("idle")`)."""

    if TYPE_CHECKING:
        INITIALIZING: ClassVar[SandboxStatus]
        IDLE: ClassVar[SandboxStatus]
        BUSY: ClassVar[SandboxStatus]

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        now = OLD_STATES.get(value) if isinstance(value, str) else None
        return None if now is None else cls(now)  # pyright: ignore[reportCallIssue]


def add_old_states(status: type[SandboxStatus]) -> None:
    """Give the enum the names of the old states. They are no members: nobody iterates over them."""
    for old, now in OLD_STATES.items():
        setattr(status, old.upper(), status(now))


OLD_FIELDS: Mapping[str, Any] = {"docker_executor_workers": 8}
"""Fields of Docker's config that have no use any more, with the value they used to have."""


def drop_old_fields(values: dict[str, Any]) -> None:
    """Take the fields without use out of what a config is made from.

    Callers that send a whole config with its defaults did not ask for anything, so only another
    value is worth a warning.
    """
    for name, default in OLD_FIELDS.items():
        if name in values and values.pop(name) not in (default, None):
            warnings.warn(f"{name} has no effect any more", DeprecationWarning, stacklevel=4)


OLD_DEFAULTS: Mapping[str, Any] = {
    "timeout": 30, "tools_config": {}, "working_dir": "/sandbox", "env_vars": {},
    "resource_limits": {}, "entrypoint": None, "command": None, "volumes": {}, "ports": {},
    "network": "bridge", "extra_hosts": {}, "platform": None, "memory_limit": "4g",
    "cpu_limit": 2.0, "network_enabled": True, "privileged": False, "remove_on_exit": True,
    "pull_progress": False, "pull_progress_interval": 3.0, "docker_executor_workers": 8,
    "host": "127.0.0.1", "port": 8888, "token": None,
}  # fmt: skip
"""What the fields of a config were by default, for clients that send all of them."""

_OLD_IMAGES: Mapping[str, str] = {
    "docker": "python:3.11-slim",
    "docker_notebook": "jupyter-kernel-gateway",
}


def undefaulted(config: Mapping[str, Any] | None, sandbox_type: str) -> dict[str, Any] | None:
    """What a client of the old routes asked for: all that is not as it was by default."""
    if not config:
        return None
    defaults = {**OLD_DEFAULTS, "image": _OLD_IMAGES.get(sandbox_type)}
    return {
        name: value
        for name, value in config.items()
        if name not in defaults or not _same(value, defaults[name])
    }


def _same(value: Any, default: Any) -> bool:
    # True is 1 and 30.0 is 30, of which only the second is the same to who asks.
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def old_state(status: SandboxStatus) -> str:
    """A state as clients of the old routes know it."""
    value = status.value
    return "initializing" if value in {"created", "starting"} else value
