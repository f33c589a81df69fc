"""How one program is run: what its caller said, merged with what the sandbox says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from ms_enclave.boxes._relay import Sink
    from ms_enclave.model.limits import ResolvedLimits

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of one program."""

    stdin: bytes | BinaryIO | None
    cwd: str
    env: dict[str, str]
    user: str | int | None
    limits: ResolvedLimits
    on_output: Sink | None
