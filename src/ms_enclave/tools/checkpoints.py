"""`checkpoint` and `rollback`: a model keeps how its sandbox is, and goes back to that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from typing_extensions import override

from ms_enclave.errors import ConfigError, ForkRefusedError
from ms_enclave.model import ExecutionStatus, SandboxType, ToolResult, Verdict
from ms_enclave.tools._program import BuiltinTool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ms_enclave.context import CheckpointContext, SandboxContext
    from ms_enclave.model import Checkpoint
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["CheckpointTool", "RollbackTool"]

_SHOWN = 8
"""Checkpoints that a refusal names, the last ones."""


class _AboutCheckpoints(BuiltinTool):
    """One that any sandbox serves which has checkpoints, and no other one of the same type."""

    has_checkpoints: ClassVar[bool] = True
    _sandbox_types: ClassVar[Sequence[str] | None] = (SandboxType.PROCESS,)
    _capabilities: ClassVar[frozenset[str] | None] = frozenset({"checkpoint"})

    @override
    def is_compatible_with(self, context: SandboxContext) -> bool:
        """Whether this sandbox has checkpoints: that is not a matter of its type alone."""
        return "checkpoint" in context.capabilities

    def _done(self, output: str, kept: Checkpoint) -> ToolResult:
        return ToolResult(
            tool_name=self.name,
            status=ExecutionStatus.SUCCESS,
            verdict=Verdict.OK,
            output=output,
            metadata={"checkpoint": kept.id, "name": kept.name, "memory": kept.memory},
        )


class CheckpointTool(_AboutCheckpoints):
    """Keeps how the sandbox is."""

    _name = "checkpoint"
    _description = (
        "Keep how the sandbox is now: its files, and the variables of its Python notebook if it "
        "has one. `rollback` brings that back, as often as you like. Use it before you try what "
        "may go wrong. Programs in the background cannot be kept: end them first."
    )
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "name": {
                "type": "string",
                "description": "A short name to go back by, of letters, digits, '-' and '_'.",
            },
        },
    }

    @override
    async def _run(self, context: SandboxContext, **arguments: Any) -> ToolResult:
        try:
            kept = await cast("CheckpointContext", context).checkpoint(arguments.get("name"))
        except ForkRefusedError as error:
            return ToolResult(
                tool_name=self.name,
                status=ExecutionStatus.ERROR,
                verdict=Verdict.ERROR,
                output="",
                error=f"Nothing was kept. In the way: {'; '.join(error.blockers)}",
                metadata={"blockers": list(error.blockers)},
            )
        what = "Files and variables are" if kept.memory else "The files are"
        return self._done(f"{what} kept as {kept.name or kept.id}", kept)


class RollbackTool(_AboutCheckpoints):
    """Has the sandbox be as it was."""

    _name = "rollback"
    _description = (
        "Have the sandbox be again as it was at a checkpoint: files, and the variables of its "
        "Python notebook. Everything that runs in it ends, and what was done since is gone. What "
        "lies outside of the sandbox is not undone."
    )
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "checkpoint": {
                "type": "string",
                "description": "Its name or id. Default: the last one that was made.",
            },
        },
    }

    @override
    async def _run(self, context: SandboxContext, **arguments: Any) -> ToolResult:
        keeper = cast("CheckpointContext", context)
        asked = arguments.get("checkpoint")
        there = await keeper.tree()
        wanted = next((one for one in reversed(there) if asked in (None, one.id, one.name)), None)
        if wanted is None:
            names = [one.name or one.id for one in there[-_SHOWN:]]
            which = f"none {asked!r}, only {', '.join(names)}" if names else "none yet"
            raise ConfigError(f"Of checkpoints there is {which}")
        await keeper.rollback(wanted)
        what = "Files and variables are"
        if not wanted.memory:
            what = "Its variables were not kept, and are gone; the files are"
        return self._done(f"{what} as they were at {wanted.name or wanted.id}", wanted)
