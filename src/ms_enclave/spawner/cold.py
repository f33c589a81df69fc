"""A process in a slot without ptrace: a copy of the station that enters, gives up everything, and
executes an interpreter. For machines (or root file systems) where a carrier cannot be had; it pays
an interpreter's start each time."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
from time import monotonic

from . import _calls as calls
from . import carrier, survey, tracer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from ._shapes import ResourceLimits, User
    from .cgroups import Group
    from .slot import Slot

__all__ = ["ToldError", "hear", "hear_last_words", "only", "set_limit", "spawn"]

_PATIENCE = 10.0
_LOOK = 0.05

_ALL_BUT_PID = calls.EVERY_NAMESPACE & ~calls.CLONE_NEWPID
_SECUREBITS = 0xEB  # as in blob.S


def spawn(
    words: list[str],
    environment: Mapping[str, str],
    slot: Slot,
    channel: int,
    user: User,
    group: Group,
    limits: ResourceLimits,
    program: bytes,
    processors: set[int],
) -> int:
    """Execute `words` in the slot with `channel` as descriptor 3; returns its pid.

    `program` is the seccomp filter. Raises OSError, or tracer.InterferedError if somebody in the
    slot stopped or killed it before it was made, and then nothing is left running.
    """
    go_read, go_write = os.pipe()
    # Packets: two processes write one after the other, and what each says must not run together.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = middle = 0
    try:
        middle = calls.clone(0)
        if middle == 0:
            ours.close()
            os.close(go_write)
            _enter(
                words, environment, slot, channel, user, limits, program, processors,
                go_read, theirs.fileno(),
            )  # fmt: skip
        theirs.close()
        group.admit(middle)
        os.write(go_write, b"g")
        # Its pid, and that it has given up everything and waits: either may come first.
        pid = hear(ours)
        pid = max(pid, hear(ours, pid))
        os.waitpid(middle, 0)
        if not pid:
            raise OSError(errno.ESRCH, "a new process ended before it was one")
        carrier.check_walls(pid)
        group.settle(pid, slot.outside(user))
        os.write(go_write, b"g")
        hear(ours, pid)  # nothing, from an exec that closed its end
    except BaseException as error:
        tracer.end_made(pid, middle, error)
        raise
    finally:
        ours.close()
        theirs.close()
        os.close(go_read)
        os.close(go_write)
    return pid


class ToldError(OSError):
    """What a new process failed with, in its own words: it has ended for that, and for nothing that
    anybody did to it."""


def hear(ours: socket.socket, pid: int = 0) -> int:
    """A number that the child `pid` tells, 0 for its end. Raises ToldError, or
    tracer.InterferedError.

    One that is in the slot can be stopped by whoever else is there, and must not stop the station.
    """
    deadline = monotonic() + _PATIENCE
    while not select.select([ours], [], [], _LOOK)[0]:
        if pid and survey.is_stopped(pid):
            raise tracer.InterferedError(signal.SIGKILL)
        if monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "a new process does not get on")
    message = ours.recv(256)
    if message[:1] != b"!":
        return int(message or b"0")
    step, number = message[1:].decode().split("|")
    raise ToldError(int(number), f"{step}: {os.strerror(int(number))}")


def hear_last_words(ours: socket.socket) -> None:
    """Listen to a process that has ended, as far as it was not heard. Raises ToldError if it had
    failed by itself."""
    while select.select([ours], [], [], 0)[0]:
        if not hear(ours):
            return


def _enter(
    words: list[str],
    environment: Mapping[str, str],
    slot: Slot,
    channel: int,
    user: User,
    limits: ResourceLimits,
    program: bytes,
    processors: set[int],
    go: int,
    told: int,
) -> NoReturn:
    """The copy's side, twice: the first makes the second, which is born inside. Never returns."""
    step = "wait"
    try:
        calls.prctl(4, 0)  # SET_DUMPABLE: until it executes, what it remembers is the station's
        os.read(go, 1)
        step = "enter the slot"
        inside = calls.pidfd_open(slot.init)
        calls.setns(inside, calls.CLONE_NEWPID)
        born = calls.clone(calls.CLONE_PARENT)
        if born:
            os.write(told, str(born).encode())
            os._exit(0)
        calls.setns(inside, _ALL_BUT_PID)
        os.chdir("/")
        step = "descriptors"  # before the limits: of those that are the station's there are more
        go, told = only(channel, go, told)
        step = "set limits"
        os.sched_setaffinity(0, processors)
        for kind, pair in limits.items():
            set_limit(kind, pair)
        step = "give up capabilities"
        _give_up(user)
        step = "seccomp"
        calls.set_seccomp(program)
        os.write(told, b"0")
        os.read(go, 1)
        step = "execute the interpreter"
        os.execve(words[0], words, environment)
    except OSError as error:
        os.write(told, f"!{step}|{error.errno}".encode())
    finally:
        os._exit(125)


def set_limit(kind: int, pair: tuple[int, int]) -> None:
    """Set a limit of this process, within what it may have. Raises OSError, also where Python calls
    a refusal of the kernel a wrong value."""
    try:
        resource.setrlimit(kind, carrier.within(pair, resource.getrlimit(kind)[1]))
    except ValueError as error:
        raise PermissionError(errno.EPERM, f"limit {kind} to {pair}: {error}") from None


def only(channel: int, go: int, told: int) -> tuple[int, int]:
    """Keep /dev/null on 0 to 2, the channel on 3, and two of our own that an exec closes."""
    high = [os.dup(descriptor) for descriptor in (channel, go, told)]
    while min(high) < 10:
        high = [os.dup(descriptor) for descriptor in high]
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.dup2(high[0], 3)
    for old, new in ((high[1], 4), (high[2], 5)):
        os.dup2(old, new, inheritable=False)
    calls.close_range(6)
    return 4, 5


def _give_up(user: User) -> None:
    calls.prctl(28, _SECUREBITS)
    calls.drop_bounding_set()
    if user[0]:
        os.setgroups([])
        os.setresuid(0, 0, 0)
        os.setresgid(user[1], user[1], user[1])
        os.setresuid(user[0], user[0], user[0])
    calls.drop_all_capabilities()
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
