"""Runs a cell in a kernel of the sandbox, for tools.

A dead kernel is replaced, and the model told.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ms_enclave.model import ToolResult, Verdict

if TYPE_CHECKING:
    from ms_enclave.context import KernelContext, SandboxContext
    from ms_enclave.model import Execution

__all__ = ["from_execution", "run_cell"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


async def run_cell(
    context: SandboxContext, tool_name: str, code: str, *, name: str = "default",
    timeout: float | None = None, stdin: str | None = None, anew: bool = False,
) -> ToolResult:  # fmt: skip
    """Run a cell in the kernel of that name, made where there is none.

    Args:
        stdin: lines that answer `input`, one after the other.
        anew: whether the kernel starts from nothing.

    Raises:
        CapabilityError: the sandbox has no kernels.
    """
    kernel = await context.kernel(name)
    metadata: dict[str, Any] = {"kernel": name}
    if kernel.death is not None:
        metadata["restarted"] = f"the kernel had died ({kernel.death.value}); variables are lost"
    if kernel.death is not None or anew:
        await kernel.restart()
    done = await _run(kernel, code, timeout, stdin)
    return from_execution(tool_name, done, metadata)


async def _run(
    kernel: KernelContext, code: str, timeout: float | None, stdin: str | None
) -> Execution:
    if stdin is None:
        return await kernel.run(code, timeout=timeout)
    lines = iter(stdin.splitlines())

    async def answer(_prompt: str) -> str:
        return next(lines, "")

    return await kernel.run(code, timeout=timeout, on_input=answer)


def from_execution(tool_name: str, done: Execution, metadata: dict[str, Any]) -> ToolResult:
    """The result of a tool that ran one cell: `output` is what a reader of the notebook sees.

    MIME bundles stand in `metadata`: `result` and `displays`.
    """
    shown = [_plain(bundle) for bundle in done.displays]
    if done.result is not None:
        shown.append(_plain(done.result))
    metadata |= {"execution_count": done.execution_count}
    if done.result is not None:
        metadata["result"] = done.result
    if done.displays:
        metadata["displays"] = done.displays
    output = done.stdout
    for text in filter(None, shown):
        output += f"{'' if not output or output.endswith(chr(10)) else chr(10)}{text}"
    return ToolResult(
        tool_name=tool_name,
        status=done.status,
        output=output,
        error=_error_text(done, metadata.get("restarted")),
        metadata=metadata,
        execution_time=done.execution_time,
        timestamp=done.timestamp,
        exit_code=_exit_code(done),
        stdout=done.stdout,
        stderr=done.stderr,
        truncated=done.truncated,
        verdict=done.verdict,
        usage=done.usage,
        isolation=done.isolation,
    )


def _plain(bundle: dict[str, Any]) -> str:
    text = bundle.get("text/plain")
    if isinstance(text, str):
        return text
    return f"<{', '.join(sorted(bundle))}>"


def _exit_code(done: Execution) -> int:
    if done.success:
        return 0
    return -1 if done.verdict is Verdict.WALL_TIMEOUT else 1


def _error_text(done: Execution, restarted: str | None) -> str | None:
    parts = [f"Note: {restarted}"] if restarted else []
    if done.error is not None:
        trace = "\n".join(done.error.traceback)
        said = f"{done.error.name}: {done.error.value}"
        last = _COLOURS.sub("", trace).strip()
        parts += [last] if done.error.name in last else [last, said]
    parts.append(done.stderr)
    return _COLOURS.sub("", "\n".join(filter(None, parts))) or None
