"""Words of earlier versions that are still understood, and nowhere else spoken of."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ms_enclave.model.enums import SandboxStatus

__all__ = ["OLD_FIELDS", "OLD_STATES", "OldStates", "add_old_states", "drop_old_fields"]

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
