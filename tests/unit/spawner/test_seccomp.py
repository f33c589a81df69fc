"""The filter is its policy: compared instruction by instruction with an interpreter of BPF, with
libseccomp as a reference of the format, and with what a real kernel does."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_enclave
from ms_enclave.spawner import seccomp

MACHINES = sorted(seccomp.ARCHITECTURES)
INTERESTING = [0, 1, 2, 8, 9, 10, 16, 17, 40, 0x5412, 0x541C, 1024, 1026, 0x40000, 0x10000000,
               0x7E020000, 0o060644, 0o100644, 0xFFFFFFFF]  # fmt: skip
arguments = st.tuples(
    *[
        st.one_of(
            st.sampled_from([*INTERESTING, *(value | 1 << 32 for value in INTERESTING)]),
            st.integers(0, 2**64 - 1),
        )
        for _ in range(6)
    ]
)


def interpret(program: bytes, number: int, audit: int, values: tuple[int, ...]) -> int:
    """What the kernel returns for a call: the classic BPF that a filter may hold."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *values)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, yes, no, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x15:
            at += yes if accumulator == constant else no
        elif operation == 0x25:
            at += yes if accumulator > constant else no
        elif operation == 0x35:
            at += yes if accumulator >= constant else no
        elif operation == 0x05:
            at += constant
        elif operation == 0x06:
            return constant
        else:
            pytest.fail(f"an operation that this interpreter does not know: {operation:#x}")


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=600, deadline=None)
@given(number=st.integers(0, 600) | st.integers(0, 2**32 - 1), values=arguments)
def test_the_program_does_what_the_policy_says(
    machine: str, traced: bool, number: int, values: tuple[int, ...]
) -> None:
    program = seccomp.compile_filter(machine, traced=traced)
    audit, _ = seccomp.ARCHITECTURES[machine]
    expected = seccomp.action_of(machine, number, values, traced=traced)
    assert interpret(program, number, audit, values) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_does_what_the_policy_says(machine: str) -> None:
    program = seccomp.compile_filter(machine, traced=True)
    audit, _ = seccomp.ARCHITECTURES[machine]
    for number in range(1200):
        for values in ((0,) * 6, (2**64 - 1,) * 6):
            expected = seccomp.action_of(machine, number, values, traced=True)
            assert interpret(program, number, audit, values) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_ends_the_program(machine: str) -> None:
    program = seccomp.compile_filter(machine, traced=True)
    audit, _ = seccomp.ARCHITECTURES[machine]
    for other in (0x40000003, 0x40000028, audit ^ 1):
        assert interpret(program, 1, other, (0,) * 6) == seccomp.KILL


def test_the_lists_do_not_overlap_and_every_name_has_a_number() -> None:
    lists = [seccomp.ALLOWED, seccomp.DENIED, seccomp.TRACED, frozenset(seccomp.CHECKED)]
    assert sum(len(names) for names in lists) == len(frozenset().union(*lists))
    known = {name for _, numbers in seccomp.ARCHITECTURES.values() for name in numbers}
    assert frozenset().union(*lists) <= known


def test_it_is_small_enough_for_the_kernel() -> None:
    for machine in MACHINES:
        assert len(seccomp.compile_filter(machine, traced=True)) // 8 <= 4096


HIGH_BITS = [
    ("ioctl", (3, 0x100005412, 0, 0, 0, 0), seccomp.EPERM),
    ("ioctl", (3, 0x5401, 0, 0, 0, 0), seccomp.ALLOW),
    ("clone", (0x10000011, 0, 0, 0, 0, 0), seccomp.EPERM),
    ("clone", (0x00000011, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("socket", (16, 3, 6, 0, 0, 0), seccomp.EPERM),
    ("socket", (16, 3, 0, 0, 0, 0), seccomp.ALLOW),
    ("socket", (1 << 32 | 38, 5, 0, 0, 0, 0), seccomp.EPERM),
    ("seccomp", (1, 8, 0, 0, 0, 0), seccomp.EPERM),
    ("seccomp", (1, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("personality", (0x0040000, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("personality", (0x0080000, 0, 0, 0, 0, 0), seccomp.EPERM),
]


@pytest.mark.parametrize(("name", "values", "expected"), HIGH_BITS)
def test_arguments_are_compared_as_the_kernel_takes_them(
    name: str, values: tuple[int, ...], expected: int
) -> None:
    audit, numbers = seccomp.ARCHITECTURES["x86_64"]
    program = seccomp.compile_filter("x86_64", traced=True)
    assert interpret(program, numbers[name], audit, values) == expected


class _Compare(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


MASKED_EQUAL = 7


def reference(path: Path, *, traced: bool) -> bytes:
    """The same policy, compiled by libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp.so.2 is not installed: apt-get install libseccomp2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(seccomp.ENOSYS))
    numbers = seccomp.ARCHITECTURES["x86_64"][1]

    def add(action: int, name: str, *compared: tuple[int, int, int]) -> None:
        rows = (_Compare * max(1, len(compared)))(
            *[_Compare(index, MASKED_EQUAL, mask, value) for index, mask, value in compared]
        )
        done = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), numbers[name], len(compared), rows
        )
        assert done == 0, (name, done)

    for name in numbers:
        if name in seccomp.CHECKED:
            match, otherwise, alternatives = seccomp.CHECKED[name]
            for alternative in alternatives:
                add(match, name, *alternative)
        else:
            action = seccomp.action_of("x86_64", numbers[name], traced=traced)
            if action == seccomp.TRACE:
                action = 0x7FF00000
            if action != seccomp.ENOSYS:
                add(action, name)
    with path.open("wb") as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
    library.seccomp_release(context)
    return path.read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for the machine it runs on")
def test_libseccomp_makes_the_same_of_the_same_policy(tmp_path: Path) -> None:
    """Wherever a call has no argument rule the two agree for every number; where it has one, on
    the alternatives (what libseccomp does in the other case is its default, not ours)."""
    theirs = reference(tmp_path / "reference.bpf", traced=True)
    ours = seccomp.compile_filter("x86_64", traced=True)
    audit, numbers = seccomp.ARCHITECTURES["x86_64"]
    checked = {numbers[name]: name for name in seccomp.CHECKED if name in numbers}
    samples = [(0,) * 6, *((value,) * 6 for value in INTERESTING)]
    for number in range(600):
        for values in samples:
            mine = interpret(ours, number, audit, values)
            other = interpret(theirs, number, audit, values)
            if number in checked:
                match = seccomp.CHECKED[checked[number]][0]
                assert (mine == match) == (other == match), (checked[number], values)
            else:
                assert mine == other, (number, values)


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
import ctypes, errno, os, subprocess
from ms_enclave.spawner import _calls, seccomp
_calls.set_seccomp(seccomp.filter_for(traced=False))
print(subprocess.run(['/bin/sh', '-c', 'echo works'], capture_output=True).stdout)
libc = ctypes.CDLL(None, use_errno=True)
for number in (101, 272, 435, 425, 999):
    libc.syscall(number, 0, 0, 0, 0)
    print(errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="numbers of x86-64 Linux"
)
def test_the_kernel_does_it(tmp_path: Path) -> None:
    sources = str(Path(ms_enclave.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, sources],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={"PATH": os.defpath},
    )
    assert done.stdout.split() == ["b'works\\n'", "EPERM", "EPERM", "ENOSYS", "EPERM", "ENOSYS"]
