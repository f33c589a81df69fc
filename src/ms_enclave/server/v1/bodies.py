"""What the bodies of requests have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ms_enclave import wire

__all__ = ["Body", "Running", "Settings"]


class Body(BaseModel):
    """A body: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Settings(Body):
    """How a program is run."""

    timeout: float | None = None
    """Seconds."""
    cwd: str | None = None
    env: dict[str, str] | None = None
    user: str | int | None = None
    limits: dict[str, Any] | None = None

    def said(self) -> dict[str, Any]:
        """As keywords of a sandbox's methods."""
        return {name: getattr(self, name) for name in Settings.model_fields}


class Running(Settings):
    """How a program is run to its end."""

    stdin: str | None = Field(default=None, description="What it reads, in base64.")

    def all_said(self) -> dict[str, Any]:
        """As keywords of a sandbox's methods."""
        return {**self.said(), "stdin": wire.decode_bytes(self.stdin)}
