"""The filter of system calls as container engines take it, from the table of the `process` sandbox.

Engines hand it to libseccomp, which knows rules that allow and one answer for all the rest; so
what is to be refused for some arguments is written as what is allowed for the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.errors import SandboxStartError
from ms_enclave.spawner import seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["profile", "profile_file"]

_ENOSYS, _EPERM = 38, 1
_WORD = 32

Condition = tuple[int, int, int]
"""Argument, mask, value: as in `seccomp.CHECKED`."""


@cache
def profile() -> str:
    """The profile as JSON."""
    rows = [_row(sorted(seccomp.ALLOWED), "SCMP_ACT_ALLOW")]
    for name, (if_one, _, alternatives) in seccomp.checked_calls("namespaces").items():
        given = alternatives if if_one == seccomp.ALLOW else _all_but(alternatives)
        rows += [_row([name], "SCMP_ACT_ALLOW", conditions) for conditions in given]
    refused = set(seccomp.DENIED) | (set(seccomp.TRACED) - {"clone3"})
    rows.append(_row(sorted(refused), "SCMP_ACT_ERRNO", errno=_EPERM))
    rows.append(_row(["clone3"], "SCMP_ACT_ERRNO", errno=_ENOSYS))
    document: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rows,
    }
    return json.dumps(document)


def profile_file() -> str:
    """The path of a file with the profile, in the user's cache. Blocks.

    Raises:
        SandboxStartError: it cannot be written.
    """
    text = profile().encode()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "ms-enclave"
    path = folder / f"seccomp-{hashlib.sha256(text).hexdigest()[:16]}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != text:
            new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            new.write_bytes(text)
            new.replace(path)
    except OSError as error:
        raise SandboxStartError(
            f"The profile of system calls cannot be written to {path}: {error.strerror}",
            remedy="set XDG_CACHE_HOME to a folder of your own",
        ) from error
    return str(path)


def _row(
    names: list[str], action: str, conditions: Iterable[Condition] = (), errno: int | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"names": names, "action": action}
    arguments = [
        {"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value}
        for index, mask, value in conditions
    ]
    if arguments:
        row["args"] = arguments
    if errno is not None:
        row["errnoRet"] = errno
    return row


def _all_but(alternatives: list[list[Condition]]) -> list[list[Condition]]:
    """Every value of one argument's low word that is none of some: as few rules as can be.

    A value differs from all of them in a bit that they share, or has in their other bits a pattern
    that none of them has.
    """
    index = alternatives[0][0][0]
    values = [conditions[0][2] for conditions in alternatives]
    bits = [1 << number for number in range(_WORD)]
    shared = [bit for bit in bits if len({value & bit for value in values}) == 1]
    rules = [[(index, bit, ~values[0] & bit)] for bit in shared]
    others = [bit for bit in bits if bit not in shared]
    mask = sum(others)
    taken = {value & mask for value in values}
    patterns = (sum(chosen) for chosen in product(*((0, bit) for bit in others)))
    return rules + [[(index, mask, pattern)] for pattern in patterns if pattern not in taken]
