"""Finds out whether a type of sandbox works on this machine: by making one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.errors import EnclaveError
from ms_enclave.model.diagnosis import Diagnosis, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.boxes.base import Sandbox

__all__ = ["diagnose_by_starting"]

_PROGRAM = ["/bin/sh", "-c", "exit 0"]


async def diagnose_by_starting(
    sandbox_class: type[Sandbox],
    hints: Sequence[Problem] = (),
    config: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Start a sandbox of a type, run a program in it, and say what that showed.

    Args:
        hints: what is known of the machine. Where the start fails they explain it better than the
            error can, so they go before it.
    """
    name = sandbox_class.sandbox_type
    try:
        async with sandbox_class(config) as sandbox:
            result = await sandbox.execute_command(_PROGRAM, timeout=30)
            report = sandbox.isolation
    except EnclaveError as error:
        return Diagnosis(sandbox_type=name, works=False, problems=_explain(error, hints))
    problems = [hint for hint in hints if not hint.blocks]
    if result.exit_code != 0:
        text = f"a program that does nothing ended with exit code {result.exit_code}"
        problems = [Problem(what=text, remedy="look at: " + (result.error or result.stderr))]
    return Diagnosis(
        sandbox_type=name,
        works=result.exit_code == 0,
        tier=report.tier,
        guards=dict(report.guards),
        problems=problems,
    )


def _explain(error: EnclaveError, hints: Sequence[Problem]) -> list[Problem]:
    blocking = [hint for hint in hints if hint.blocks]
    said = {hint.remedy for hint in blocking}
    remedy = error.remedy or ""
    if remedy in said or (blocking and not remedy):
        return list(hints)
    own = Problem(what=error.message or type(error).__name__, remedy=remedy or "see the message")
    return [own, *hints]
