"""The filter that engines are given says what the one of the process sandbox says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ms_enclave.boxes._docker_seccomp import profile
from ms_enclave.spawner import seccomp

PROFILE = json.loads(profile())


def verdict(name: str, *arguments: int) -> tuple[str, int | None]:
    """What libseccomp would answer: a rule that fits, or the default."""
    for row in PROFILE["syscalls"]:
        if name in row["names"] and all(_fits(rule, arguments) for rule in row.get("args", [])):
            return row["action"], row.get("errnoRet")
    return PROFILE["defaultAction"], PROFILE["defaultErrnoRet"]


def _fits(rule: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    given = [*arguments, 0, 0, 0, 0, 0, 0][rule["index"]]
    return given & rule["value"] == rule["valueTwo"]


@pytest.mark.parametrize("name", sorted(seccomp.ALLOWED))
def test_what_is_allowed_there_is_allowed_here(name: str) -> None:
    assert verdict(name) == ("SCMP_ACT_ALLOW", None)


@pytest.mark.parametrize("name", sorted(seccomp.DENIED | {"setns", "unshare", "capset"}))
def test_what_is_denied_there_is_denied_here(name: str) -> None:
    assert verdict(name) == ("SCMP_ACT_ERRNO", 1)


def test_what_nobody_knows_does_not_exist() -> None:
    assert verdict("a_call_of_next_year") == ("SCMP_ACT_ERRNO", 38)
    assert verdict("clone3") == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("ioctl", (0, 0x5412), False),
        ("ioctl", (0, 0x541C), False),
        ("ioctl", (0, (1 << 32) | 0x5412), False),
        *(("ioctl", (0, 0x5412 ^ (1 << bit)), True) for bit in range(32)),
        *(("ioctl", (0, 0x5410 | low), low not in (2, 0xC)) for low in range(16)),
        ("fcntl", (0, 1024), False),
        ("fcntl", (0, 1026), False),
        *(("fcntl", (0, number), True) for number in (0, 1, 2, 1025, 1027, 1031, 1033)),
        ("clone", (0x10000000,), False),
        ("clone", (0x01200011,), True),
        ("socket", (1, 1, 0), True),
        ("socket", (2, 1, 6), True),
        ("socket", (38, 5, 0), False),
        ("socket", (17, 3, 0), False),
        ("personality", (0xFFFFFFFF,), True),
        ("personality", (8,), False),
        ("mknod", (0, 0o010644), True),
        ("mknod", (0, 0o020644), False),
    ],
)
def test_arguments_count(name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    assert (verdict(name, *arguments)[0] == "SCMP_ACT_ALLOW") is allowed
