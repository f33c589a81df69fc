"""Runs cases against sandboxes and says what came of them."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import anyio
import anyio.to_thread

from ms_enclave.attack.cases import CASES
from ms_enclave.attack.inside.prelude import MARK
from ms_enclave.attack.inside.theft import PLACES, digest_of
from ms_enclave.errors import ConfigError, EnclaveError
from ms_enclave.spawner import seccomp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from ms_enclave.attack.cases import Case
    from ms_enclave.boxes.base import Sandbox

__all__ = ["Finding", "Outcome", "judge", "run_case", "run_cases"]

Outcome = Literal["held", "bounded", "open", "vacuous"]
"""Everything was refused; what went through is what a guard holds that the sandbox says it lacks;
something went through that is not to; the case could not be tried."""

_INSIDE = Path(__file__).parent / "inside"
_SECONDS = 60.0
_CANARY = "MS_ENCLAVE_CANARY"
_FUTURE = "from __future__ import annotations\n"  # only at the beginning of a program


@dataclass(frozen=True)
class Finding:
    """What came of one case in one sandbox."""

    case: Case
    outcome: Outcome
    went: Mapping[str, str] = field(default_factory=dict[str, str])
    """What went through, and how."""
    tried: int = 0
    detail: str = ""
    """Why it could not be tried."""


async def run_cases(
    make: Callable[[], Sandbox], cases: Sequence[Case] = CASES
) -> AsyncIterator[Finding]:
    """Run cases, each in a sandbox of its own, and give what came of each.

    Raises:
        ConfigError: as `run_case`.
        EnclaveError: a sandbox could not be made.
    """
    for case in cases:
        async with make() as sandbox:
            yield await run_case(sandbox, case)


async def run_case(sandbox: Sandbox, case: Case) -> Finding:
    """Run one case in a running sandbox, which may be worth nothing afterwards.

    Raises:
        ConfigError: it has no walls at all, so what is tried would be done to this machine.
    """
    if sandbox.isolation.tier == "none":
        raise ConfigError(f"A sandbox of type {sandbox.sandbox_type} has no walls to attack")
    word = secrets.token_hex(16)
    canary = await anyio.to_thread.run_sync(_write_canary, word)
    try:
        os.environ[_CANARY] = word
        program = await anyio.to_thread.run_sync(_program, case, word, canary)
        result = await sandbox.run_code(program, timeout=_SECONDS)
    except EnclaveError as error:
        return Finding(case, "vacuous", detail=str(error))
    finally:
        os.environ.pop(_CANARY, None)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(os.unlink, canary)
    lines = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        return Finding(case, "vacuous", detail=(result.error or result.stderr)[-500:])
    tried = cast("dict[str, list[str]]", json.loads(lines[-1][len(MARK) :]))
    return judge(case, tried, sandbox.isolation.guards)


def judge(case: Case, tried: Mapping[str, Sequence[str]], guards: Mapping[str, str]) -> Finding:
    """What it means that these tries had these ends, in a sandbox with these guards. Pure.

    Args:
        tried: by what was tried: what came of it, and the name of the guard against it or "".
    """
    went = {name: row for name, row in tried.items() if row[0] == "ok" or row[0][:4] == "ok: "}
    said = {name: row[0] for name, row in went.items()}
    if not tried:
        return Finding(case, "vacuous", detail="nothing was tried")
    if not went:
        return Finding(case, "held", tried=len(tried))
    lacking = all(guards.get(row[1]) == "off" for row in went.values())
    return Finding(case, "bounded" if lacking else "open", said, len(tried))


def _write_canary(word: str) -> str:
    """A file of the caller's with that word in it."""
    descriptor, path = tempfile.mkstemp(prefix="canary-")
    with os.fdopen(descriptor, "w") as file:
        file.write(word)
    return path


def _program(case: Case, word: str, file: str) -> str:
    """The program that tries a case."""
    given = {
        "NUMBERS": {name: numbers for name, (_, numbers) in seccomp.ARCHITECTURES.items()},
        "CANARY": word,
        "CANARY_FILE": file,
        "HOST": {path: digest for path in PLACES if (digest := digest_of(path))},
    }
    parts = [_source("prelude"), _source(case.group)]
    parts += [f"{name} = {value!r}" for name, value in given.items()]
    parts.append(f"PASSED = set({_passed()}[platform.machine()])")
    parts += [f"{case.name}()", "tell()"]
    return _FUTURE + "\n".join(parts).replace(_FUTURE, "")


@cache
def _source(name: str) -> str:
    return (_INSIDE / f"{name}.py").read_text(encoding="utf-8")


@cache
def _passed() -> dict[str, list[int]]:
    """By machine, the numbers of the calls that a sandbox's filter lets through, at least some."""
    names = {*seccomp.ALLOWED, *seccomp.CHECKED}
    return {
        machine: sorted(number for name, number in numbers.items() if name in names)
        for machine, (_, numbers) in seccomp.ARCHITECTURES.items()
    }
