"""libseccomp as a second opinion: what it makes of the same policy, on both architectures.

Rule by rule: each rule about arguments is compiled by itself, with what is said where it does not
hold as libseccomp's default, so that the two must agree on every value and not only on some.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest

from ms_enclave.spawner import seccomp
from tests.support.bpf import interpret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS: tuple[seccomp.Setting, ...] = ("carrier", "namespaces", "host")
MACHINES = sorted(seccomp.ARCHITECTURES)
CHECKED = sorted({name for setting in SETTINGS for name in seccomp.checked_calls(setting)})
ZEROES = (0,) * 6

_MASKED_EQUAL = 7
_BAD_ARCHITECTURE = 2  # SCMP_FLTATR_ACT_BADARCH
_UNKNOWN = -1
_FIRST_SHARED = 424
"""From here on a call has the same number on every architecture (asm-generic/unistd.h)."""

Rule = tuple[int, str, list[tuple[int, int, int]]]
"""Action, call, and (argument, mask, value) that all have to hold."""

pytestmark = pytest.mark.toolchain("libseccomp2")


class Compare(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


class Library:
    """The few functions of libseccomp that the tests need."""

    def __init__(self) -> None:
        self.raw = ctypes.CDLL("libseccomp.so.2")
        self.raw.seccomp_init.restype = ctypes.c_void_p
        self.raw.seccomp_arch_native.restype = ctypes.c_uint32

    def number(self, machine: str, name: str) -> int:
        """The call's number there; negative if it has none, `_UNKNOWN` if the name is not known."""
        audit = ctypes.c_uint32(seccomp.ARCHITECTURES[machine][0])
        return self.raw.seccomp_syscall_resolve_name_arch(audit, name.encode())

    def compile(self, path: Path, machine: str, default: int, rules: list[Rule]) -> bytes:
        """A filter for one architecture, whichever this one is."""
        context = ctypes.c_void_p(self.raw.seccomp_init(ctypes.c_uint32(default)))
        try:
            audit = seccomp.ARCHITECTURES[machine][0]
            native = self.raw.seccomp_arch_native()
            if audit != native:
                self._did(self.raw.seccomp_arch_add(context, ctypes.c_uint32(audit)))
                self._did(self.raw.seccomp_arch_remove(context, ctypes.c_uint32(native)))
            kill = ctypes.c_uint32(seccomp.KILL)
            self._did(self.raw.seccomp_attr_set(context, _BAD_ARCHITECTURE, kill))
            for action, name, conditions in rules:
                self._add(context, action, name, conditions)
            with path.open("wb") as file:
                self._did(self.raw.seccomp_export_bpf(context, file.fileno()))
        finally:
            self.raw.seccomp_release(context)
        return path.read_bytes()

    def _add(
        self,
        context: ctypes.c_void_p,
        action: int,
        name: str,
        conditions: list[tuple[int, int, int]],
    ) -> None:
        rows = (Compare * max(1, len(conditions)))(
            *[Compare(index, _MASKED_EQUAL, mask, value) for index, mask, value in conditions]
        )
        number = self.raw.seccomp_syscall_resolve_name(name.encode())
        verdict = ctypes.c_uint32(action)
        self._did(
            self.raw.seccomp_rule_add_array(context, verdict, number, len(conditions), rows), name
        )

    @staticmethod
    def _did(returned: int, what: str = "libseccomp") -> None:
        assert returned == 0, f"{what}: {os.strerror(-returned)}"


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library()
    except OSError:
        pytest.skip("libseccomp.so.2 is not installed: apt-get install libseccomp2")


def neighbourhood(alternatives: list[list[tuple[int, int, int]]]) -> Iterator[tuple[int, ...]]:
    """Arguments that each alternative holds for, and for each of their bits the other way round."""
    yield ZEROES
    yield (2**64 - 1,) * 6
    for alternative in alternatives:
        holds = list(ZEROES)
        for index, _, value in alternative:
            holds[index] = value
        yield tuple(holds)
        for index in {index for index, _, _ in alternative}:
            for bit in range(64):
                other = [*holds]
                other[index] ^= 1 << bit
                yield tuple(other)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_has_the_number_that_libseccomp_knows(library: Library, machine: str) -> None:
    tables = [numbers for _, numbers in seccomp.ARCHITECTURES.values()]
    for name, number in seccomp.ARCHITECTURES[machine][1].items():
        known = library.number(machine, name)
        if known == _UNKNOWN:  # newer than this libseccomp
            assert number >= _FIRST_SHARED, name
            assert {table[name] for table in tables} == {number}, name
        else:
            assert known == number, name


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("machine", MACHINES)
def test_it_makes_the_same_of_calls_without_a_rule_about_arguments(
    library: Library, tmp_path: Path, machine: str, setting: seccomp.Setting
) -> None:
    audit, numbers = seccomp.ARCHITECTURES[machine]
    left_out = set(seccomp.checked_calls(setting))
    left_out |= {name for name in numbers if library.number(machine, name) == _UNKNOWN}
    rules: list[Rule] = []
    for name in numbers.keys() - left_out:
        action = seccomp.action_of(machine, numbers[name], setting=setting)
        if action != seccomp.ENOSYS:
            rules.append((action, name, []))
    theirs = library.compile(tmp_path / "bpf", machine, seccomp.ENOSYS, rules)
    ours = seccomp.compile_filter(machine, setting)
    skipped = {numbers[name] for name in left_out if name in numbers}
    for number in {*range(1200), 0x3FFFFFFF, 0x40000000, 0x40000027, 2**32 - 2} - skipped:
        for values in (ZEROES, (2**64 - 1,) * 6):
            other = interpret(theirs, number, audit, values)
            assert interpret(ours, number, audit, values) == other, (number, values)
    for foreign in (0x40000003, 0x40000028, 0xC00000B7 ^ 0xC000003E ^ audit):
        assert interpret(ours, 1, foreign, ZEROES) == interpret(theirs, 1, foreign, ZEROES)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("machine", MACHINES)
def test_it_makes_the_same_of_a_rule_about_arguments(
    library: Library, tmp_path: Path, machine: str, setting: seccomp.Setting, name: str
) -> None:
    audit, numbers = seccomp.ARCHITECTURES[machine]
    rows = seccomp.checked_calls(setting)
    if name not in rows or name not in numbers:
        return  # held by no rule about arguments there: the test above has it
    match, otherwise, alternatives = rows[name]
    rules: list[Rule] = [(match, name, alternative) for alternative in alternatives]
    theirs = library.compile(tmp_path / "bpf", machine, otherwise, rules)
    ours = seccomp.compile_filter(machine, setting)
    said: set[int] = set()
    for values in neighbourhood(alternatives):
        mine = interpret(ours, numbers[name], audit, values)
        assert mine == interpret(theirs, numbers[name], audit, values), values
        said.add(mine)
    assert said == {match, otherwise}
