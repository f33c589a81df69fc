"""Numbers against libseccomp's tables for both machines, and what a call does with its answer."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import signal
import sys
import threading

import pytest

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner import seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_the_numbers_are_those_that_libseccomp_knows(machine: str) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp.so.2 is not installed: apt-get install libseccomp2")
    audit, numbers = seccomp.ARCHITECTURES[machine]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    known = {
        name: library.seccomp_syscall_resolve_name_arch(audit, name.encode()) for name in numbers
    }
    # A negative answer: the library is older than the call.
    wrong = {name: number for name, number in known.items() if 0 <= number != numbers[name]}
    assert wrong == {}
    assert sum(number >= 0 for number in known.values()) > 250


@pytest.mark.skipif(platform.machine() not in seccomp.ARCHITECTURES, reason="no table")
def test_what_the_station_calls_has_the_filters_numbers() -> None:
    _, numbers = seccomp.ARCHITECTURES[platform.machine()]
    mine = calls._NUMBERS  # pyright: ignore[reportPrivateUsage]
    assert {name: numbers.get(name) for name in mine} == mine


def test_a_failed_call_says_which_and_why() -> None:
    with pytest.raises(OSError, match=r"setns: Bad file descriptor") as caught:
        calls.setns(-1, 0)
    assert caught.value.errno == errno.EBADF
    with pytest.raises((FileNotFoundError, PermissionError), match="open_tree"):
        calls.open_tree("/nowhere")  # who may not do it at all learns that first
    with pytest.raises(OSError, match="fsopen"):
        calls.make_filesystem("no-such-file-system", {}, 0)


def test_a_process_descriptor_tells_of_the_end() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    descriptor = calls.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)
        os.waitpid(pid, 0)


def test_a_range_of_descriptors_is_closed() -> None:
    first = os.open("/dev/null", os.O_RDONLY)
    high = 900
    os.dup2(first, high)
    os.dup2(first, high + 1)
    os.close(first)
    calls.close_range(high, high + 1)
    for descriptor in (high, high + 1):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_blocked_signals_of_children_can_be_waited_for() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    descriptor = calls.child_events()
    try:
        assert not select.select([descriptor], [], [], 0)[0]
        signal.pthread_kill(threading.get_ident(), signal.SIGCHLD)
        assert select.select([descriptor], [], [], 10)[0]
        assert os.read(descriptor, 128)[:4] == signal.SIGCHLD.to_bytes(4, sys.byteorder)
    finally:
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
