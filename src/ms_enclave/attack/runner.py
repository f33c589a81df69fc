"""Runs cases against sandboxes and says what came of them."""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread

from ms_enclave.attack import outside
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
"""Everything was refused; what went through is what a guard holds that the sandbox says it lacks,
or was answered by a kernel of its own; something went through that is not to; the case could not be
tried."""

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
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """What came of the other tries."""
    detail: str = ""
    """Why it could not be tried."""


async def run_cases(
    make: Callable[[Mapping[str, Any]], Sandbox], cases: Sequence[Case] = CASES
) -> AsyncIterator[Finding]:
    """Run cases, each in a sandbox of its own, and give what came of each.

    Args:
        make: gives a sandbox that has not been started, with these limits in its config.

    Raises:
        ConfigError, CapabilityError: as `run_case`.
        EnclaveError: a sandbox could not be made.
    """
    for case in cases:
        async with make(case.limits) as sandbox:
            yield await run_case(sandbox, case)


async def run_case(sandbox: Sandbox, case: Case) -> Finding:
    """Run one case in a running sandbox, which may be worth nothing afterwards.

    A bomb is to be run in a sandbox that was made with its `limits`.

    Raises:
        ConfigError: it has no walls at all, so what is tried would be done to this machine.
        CapabilityError: the case is a bomb, and nothing outside holds the sandbox's memory or its
            processes.
    """
    if sandbox.isolation.tier == "none":
        raise ConfigError(f"A sandbox of type {sandbox.sandbox_type} has no walls to attack")
    return await (_set_off if case.limits else _try_out)(sandbox, case)


async def _try_out(sandbox: Sandbox, case: Case) -> Finding:
    word = secrets.token_hex(16)
    canary = await anyio.to_thread.run_sync(_write_canary, word)
    try:
        os.environ[_CANARY] = word
        program = await anyio.to_thread.run_sync(_probe, case, word, canary)
        result = await sandbox.run_code(program, timeout=_SECONDS)
    except EnclaveError as error:
        return Finding(case, "vacuous", detail=str(error))
    finally:
        os.environ.pop(_CANARY, None)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(os.unlink, canary)
    tried = outside.read(result.stdout, MARK)
    if not tried:
        return Finding(case, "vacuous", detail=(result.error or result.stderr)[-500:])
    return judge(case, tried, sandbox.isolation.guards)


async def _set_off(sandbox: Sandbox, case: Case) -> Finding:
    outside.check_bound(sandbox)
    name = f"bomb-{secrets.token_hex(5)}"
    program = await anyio.to_thread.run_sync(_bomb, case, name)
    try:
        result, seen = await outside.watch(sandbox, case, program, name)
    except EnclaveError as error:
        return Finding(case, "vacuous", detail=str(error))
    if "wall_timeout" in case.ends and not seen.visible:
        detail = "its processes cannot be seen from here, so nobody can say whether one is left"
        return Finding(case, "vacuous", detail=detail)
    tried = {**outside.read(result.stdout, MARK)}
    tried |= outside.rows_of(case, sandbox.config.resolve_limits(), seen)
    if not tried:
        return Finding(case, "vacuous", detail=f"{seen.verdict}: {result.stderr[-500:]}")
    return judge(case, tried, sandbox.isolation.guards)


def judge(case: Case, tried: Mapping[str, Sequence[str]], guards: Mapping[str, str]) -> Finding:
    """What it means that these tries had these ends, in a sandbox with these guards. Pure.

    Args:
        tried: by what was tried: what came of it, and the names of the guards of which one is
            against it, or "".
    """
    went = {name: row for name, row in tried.items() if row[0] == "ok" or row[0][:4] == "ok: "}
    said = {name: row[0] for name, row in went.items()}
    refused = {name: row[0] for name, row in tried.items() if name not in went}
    if not tried:
        return Finding(case, "vacuous", detail="nothing was tried")
    if not went:
        return Finding(case, "held", tried=len(tried), refused=refused)
    lacking = all(
        any(guards.get(guard) == "off" for guard in row[1].split()) for row in went.values()
    )
    inside = case.by_kernel and guards.get("own_kernel") == "on"
    return Finding(case, "bounded" if lacking or inside else "open", said, len(tried), refused)


def _write_canary(word: str) -> str:
    """A file of the caller's with that word in it."""
    descriptor, path = tempfile.mkstemp(prefix="canary-")
    with os.fdopen(descriptor, "w") as file:
        file.write(word)
    return path


def _probe(case: Case, word: str, file: str) -> str:
    """The program that tries a case."""
    given = {
        "CANARY": word,
        "CANARY_FILE": file,
        "HOST": {path: digest for path in PLACES if (digest := digest_of(path))},
    }
    parts = [f"{name} = {value!r}" for name, value in given.items()]
    parts.append(f"PASSED = set({_passed()}[platform.machine()])")
    return _program(case, *parts, f"{case.name}()", "tell()")


def _bomb(case: Case, name: str) -> str:
    """The program that sets off a bomb, and fails where it was refused anything."""
    return _program(
        case, f"take_name({name!r})", f"{case.name}()", "tell()", "raise SystemExit(was_refused())"
    )


def _program(case: Case, *lines: str) -> str:
    numbers = {name: numbers for name, (_, numbers) in seccomp.ARCHITECTURES.items()}
    parts = (_source("prelude"), _source(case.group), f"NUMBERS = {numbers!r}", *lines)
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
