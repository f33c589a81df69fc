"""What kernels give: the outcome of a cell, what happens on the way, and what there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from ms_enclave.model.enums import Verdict
from ms_enclave.model.results import Outcome, UtcTime

__all__ = ["CellError", "Execution", "KernelEvent", "KernelInfo", "KernelStatus", "OnInput"]

KernelStatus: TypeAlias = Literal["idle", "busy", "dead"]

OnInput: TypeAlias = Callable[[str], "Awaitable[str] | str"]
"""Answers what a cell asks by `input`: an async function, or one that a worker thread calls."""


class CellError(BaseModel, defer_build=True):
    """What a cell raised, or what became of its kernel."""

    name: str
    value: str
    traceback: list[str] = Field(default_factory=list[str])
    """Lines as the kernel shows them; IPython's have colours."""


class Execution(Outcome):
    """What one cell did.

    `truncated` counts, besides the streams, `displays`: bytes of what was shown but not kept.
    """

    execution_count: int | None = None
    """The cell's number, as the kernel counts."""
    stdout: str = ""
    stderr: str = ""
    result: dict[str, Any] | None = None
    """The value of the last expression by MIME type; None where there is none."""
    displays: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    """What was displayed, each by MIME type, as it was at the end of the cell."""
    error: CellError | None = None


class KernelEvent(BaseModel, defer_build=True):
    """One message of a running cell. `type` is Jupyter's `msg_type`, `content` Jupyter's shape."""

    type: str
    content: dict[str, Any]
    execution: Execution | None = None
    """The whole outcome, with the last message (`execute_reply`)."""


class KernelInfo(BaseModel, defer_build=True):
    """A kernel of a sandbox."""

    id: str
    name: str
    status: KernelStatus
    death: Verdict | None = None
    """Why it is dead."""
    execution_count: int = 0
    """Cells that it has run."""
    preload: list[str] = Field(default_factory=list[str])
    implementation: str = ""
    """`ipython`, or `python` where the sandbox has no IPython."""
    implementation_version: str = ""
    python_version: str = ""
    created_at: UtcTime
    cell_since: datetime | None = None
    """When the cell began that is running."""
