"""SandboxFusion's `/run_code`: what is sent, and what an answer means. Pure.

A request has the code, its language, a time-out for compiling and one for running, input, and
files in base64. The answer says `Success`, `Failed` (a program's doing) or `SandboxError` (the
service's), and has a result of compiling and one of running. Whatever else comes is a failure of
the service and never a result.
"""

from __future__ import annotations

import base64
import json
import posixpath
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ms_enclave.boxes._execution import Capture, format_seconds, judge
from ms_enclave.channel.process import Exit
from ms_enclave.errors import (
    AuthenticationError,
    ConfigError,
    EnclaveError,
    QuotaExceededError,
    SandboxLostError,
    ServerUnreachableError,
)
from ms_enclave.model import CommandResult, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ms_enclave.http_client import Answer
    from ms_enclave.model.limits import ResolvedLimits

__all__ = [
    "LANGUAGES",
    "MOST_ANSWER",
    "Run",
    "document",
    "most_bytes",
    "python_source",
    "read_answer",
    "shell_source",
    "to_result",
]

LANGUAGES = {"r": "R", "d_ut": "D_ut", "js": "nodejs", "ts": "typescript"}
"""Our names of languages that the service has under another one."""

MOST_ANSWER = 64 << 20
"""Bytes of an answer, whatever the limits of output are."""

_MOST_WORDS = 500
"""Characters of what the service says that go into a message."""


@dataclass(frozen=True)
class Run:
    """One program, as the service is asked to run it."""

    code: str
    language: str
    limits: ResolvedLimits
    stdin: str | None = None
    files: Mapping[str, bytes] | None = None
    compile_timeout: float | None = None
    """Seconds; None where nothing is compiled."""


# --- what is sent ---


def document(run: Run) -> dict[str, Any]:
    """The body of a request."""
    body: dict[str, Any] = {
        "code": run.code,
        "language": run.language,
        "run_timeout": run.limits.timeout,
    }
    if run.compile_timeout is not None:
        body["compile_timeout"] = run.compile_timeout
    if run.limits.memory is not None:
        body["memory_limit_MB"] = max(1, run.limits.memory >> 20)
    if run.stdin is not None:
        body["stdin"] = run.stdin
    if run.files:
        body["files"] = {
            name: base64.b64encode(content).decode() for name, content in run.files.items()
        }
    return body


def most_bytes(limits: ResolvedLimits) -> int:
    """Bytes of an answer that are read: two streams at their limits, each letter escaped."""
    return min(MOST_ANSWER, 12 * limits.output + (1 << 20))


def shell_source(command: str | Sequence[str], cwd: str | None, env: Mapping[str, str]) -> str:
    """A script for bash that is a shell line, or that becomes a program."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    if cwd is not None:
        lines.append(f"cd -- {shlex.quote(cwd)} || exit 126")
    lines.append(command if isinstance(command, str) else f"exec -- {shlex.join(command)}")
    return "\n".join(lines)


def python_source(code: str, args: Sequence[str], cwd: str | None, env: Mapping[str, str]) -> str:
    """A program that is the given one with arguments, a folder and an environment of its own: the
    service has no field for those."""
    lines: list[str] = []
    if env:
        lines.append(f"os.environ.update({dict(env)!r})")
    if cwd is not None:
        lines.append(f"os.chdir({cwd!r})")
    if args:
        lines.append(f"sys.argv[1:] = {list(args)!r}")
    if not lines:
        return code
    before = "; ".join(["import os, sys", *lines, "del os, sys"])
    return f"{before}\nexec(compile({code!r}, '<code>', 'exec'))\n"


def folder_of_run(cwd: str, working_dir: str) -> str | None:
    """A folder as the program's: each run has a new one, which stands for the working folder."""
    if cwd == working_dir:
        return None
    inside = working_dir.rstrip("/") + "/"
    return posixpath.relpath(cwd, working_dir) if cwd.startswith(inside) else cwd


# --- what is answered ---


class _Step(BaseModel):
    """The result of one command."""

    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    execution_time: float | None = None
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class _Body(BaseModel):
    """What the service answers."""

    status: Literal["Success", "Failed", "SandboxError"]
    message: str | None = ""
    compile_result: _Step | None = None
    run_result: _Step | None = None
    executor_pod_name: str | None = Field(default=None)


def read_answer(answer: Answer, shown: str, secrets: Sequence[str]) -> _Body:
    """The answer to a request that was understood and carried out.

    Raises:
        AuthenticationError: the key is missing or wrong.
        QuotaExceededError: the service has too much to do.
        ConfigError: it refuses the request: a language that it does not have, say.
        ServerUnreachableError: what answers is not the service, or it does not work.
        SandboxLostError: it says itself that it failed, or what it says means nothing.
    """
    if answer.status != 200:
        raise _refusal(answer, shown, secrets)
    if not answer.whole:
        raise SandboxLostError(
            f"{shown} answered more than {len(answer.body)} bytes",
            remedy="raise output_limit, or let the program print less",
        )
    try:
        body = _Body.model_validate(json.loads(answer.body))
    except (ValueError, ValidationError):
        raise SandboxLostError(
            f"{shown} answered what is no result of a run: {_words(answer.body, secrets)}",
            remedy="see that base_url and run_code_path name SandboxFusion's /run_code",
        ) from None
    failed = [step for step in (body.compile_result, body.run_result) if _is_failure(step)]
    if body.status == "SandboxError" or failed or not (body.run_result or body.compile_result):
        said = body.message or "".join(step.stderr or "" for step in failed if step is not None)
        words = _words(said.encode(), secrets) or "it does not say why"
        raise SandboxLostError(f"{shown} could not run the program: {words}")
    return body


def _is_failure(step: _Step | None) -> bool:
    if step is None or step.status == "TimeLimitExceeded":
        return False
    return step.status == "Error" or step.return_code is None


def _refusal(answer: Answer, shown: str, secrets: Sequence[str]) -> EnclaveError:
    status = answer.status
    words = _words(answer.body, secrets)
    text = f"{shown} answered {status}" + (f": {words}" if words else "")
    if status in {401, 403}:
        return AuthenticationError(f"{shown} refuses the key ({status})", remedy="set api_key")
    if status == 429:
        return QuotaExceededError(text, retry_after=_seconds(answer.headers.get("retry-after")))
    if 300 <= status < 400:
        return ServerUnreachableError(
            f"{shown} answered {status}: it is somewhere else",
            remedy="set base_url to where it really is; a redirect is not followed with a key",
        )
    if status in {404, 405}:
        return ServerUnreachableError(
            text, remedy="see that base_url and run_code_path name SandboxFusion's /run_code"
        )
    if status in {400, 413, 422}:
        return ConfigError(text, remedy="ask for what the service has: a language, a smaller file")
    return ServerUnreachableError(text, remedy="see what the service's own log says")


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None


def _words(data: bytes, secrets: Sequence[str]) -> str:
    """What the service says, for a message: short, on one line, and without the key."""
    text = data[: 8 * _MOST_WORDS].decode(errors="replace")
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= _MOST_WORDS else line[:_MOST_WORDS] + " …"


# --- what it means ---


def to_result(
    body: _Body,
    run: Run,
    command: str | list[str],
    *,
    began: datetime,
    wall: float,
    metadata: Mapping[str, Any],
) -> CommandResult:
    """A program's result: of its run, or of the compiler's where it came no further."""
    compiled, ran = body.compile_result, body.run_result
    step = ran or compiled
    assert step is not None  # noqa: S101 - `read_answer` has seen to it
    limits = run.limits
    out, out_lost = _captured(step.stdout, limits)
    err, err_lost = _captured(step.stderr, limits)
    code = step.return_code or 0
    signal = -code if code < 0 else None
    late = step.status == "TimeLimitExceeded"
    said = judge(
        Exit(128 - code if code < 0 else code, signal=signal),
        limits,
        timed_out=late,
        output_killed=limits.output_action == "kill" and bool(out_lost or err_lost),
    )
    error = said.error
    if ran is None and error is not None:
        if late:
            seconds = format_seconds(run.compile_timeout or limits.timeout)
            error = f"Command timed out after {seconds} seconds"
        error = f"Compilation failed: {error}"
    more = dict(metadata)
    if compiled is not None:
        more["compile"] = {
            "exit_code": compiled.return_code,
            "stdout": compiled.stdout or "",
            "stderr": compiled.stderr or "",
            "execution_time": compiled.execution_time,
        }
    more["stage"] = "run" if ran is not None else "compile"
    return CommandResult(
        command=command,
        status=said.status,
        exit_code=said.exit_code,
        stdout=out,
        stderr=err,
        truncated={n: lost for n, lost in (("stdout", out_lost), ("stderr", err_lost)) if lost},
        execution_time=wall if step.execution_time is None else step.execution_time,
        timestamp=began,
        verdict=said.verdict,
        signal=said.signal,
        usage=Usage(wall=wall, source="remote"),
        isolation="remote",
        error=error,
        metadata=more,
    )


def _captured(text: str | None, limits: ResolvedLimits) -> tuple[str, int]:
    capture = Capture(limits.output)
    capture.feed((text or "").encode(errors="replace"))
    return capture.text()
