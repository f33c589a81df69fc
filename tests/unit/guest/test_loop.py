"""The guest's loop alone."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.guest.loop import READ, Cancelled, Loop, Task

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Ends(list[Any]):
    def __call__(self, failure: object, result: object) -> None:
        self.append(result if failure is None else type(failure))


def until(loop: Loop, ends: Ends, count: int) -> None:
    for _ in range(1000):
        if len(ends) >= count:
            return
        loop.poll(1)
        loop.run_ready()
    pytest.fail("it never ended")


def test_operations_take_turns(loop: Loop) -> None:
    ends, seen = Ends(), []

    def steps(name: str) -> Generator[float | None, None, str]:
        for number in range(3):
            seen.append(f"{name}{number}")
            yield 0
        return name

    for name in "ab":
        loop.start(Task(steps(name), ends))
    until(loop, ends, 2)
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert ends == ["a", "b"]


def test_one_that_waits_is_woken_by_a_descriptor_by_time_and_by_others(loop: Loop) -> None:
    ends = Ends()
    readable, writable = os.pipe()
    os.set_blocking(readable, False)

    def reader() -> Generator[float | None, None, bytes]:
        while True:
            try:
                return os.read(readable, 10)
            except BlockingIOError:
                loop.watch(readable, READ, first)
                yield None

    def sleeper() -> Generator[float | None, None, str]:
        yield 0.01
        os.write(writable, b"x")
        return "slept"

    first = Task(reader(), ends)
    loop.start(first)
    loop.start(Task(sleeper(), ends))
    until(loop, ends, 2)
    assert ends == ["slept", b"x"]
    loop.unwatch(readable)
    loop.unwatch(readable)
    os.close(readable)
    os.close(writable)


def test_a_cancelled_one_cleans_up_in_its_own_time(loop: Loop) -> None:
    ends, seen = Ends(), []

    def steps() -> Generator[float | None, None, None]:
        try:
            yield None
        except Cancelled:
            yield 0.001
            seen.append("clean")
            raise

    task = Task(steps(), ends)
    loop.start(task)
    loop.run_ready()
    loop.cancel(task)
    until(loop, ends, 1)
    assert (ends, seen) == ([Cancelled], ["clean"])
    loop.wake(task)
    loop.run_ready()
    assert len(ends) == 1


def test_a_failure_is_the_owners_to_judge(loop: Loop) -> None:
    ends = Ends()

    def steps() -> Generator[float | None, None, None]:
        yield 0
        raise KeyError

    loop.start(Task(steps(), ends))
    until(loop, ends, 1)
    assert ends == [KeyError]


def test_children_are_collected_owned_or_not(loop: Loop) -> None:
    statuses: list[int] = []
    owned = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    loop.own_child(owned, lambda status, _usage: statuses.append(status))
    assert loop.owned == {owned}
    orphan = os.posix_spawn("/bin/true", ["true"], {})
    for _ in range(100):
        loop.poll(0.1)
        if statuses and not _is_child(orphan):
            break
    assert [os.WEXITSTATUS(status) for status in statuses] == [7]
    assert loop.owned == set()
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan, os.WNOHANG)


def _is_child(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_closing_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    Loop().close()
    assert signal.getsignal(signal.SIGCHLD) == before
