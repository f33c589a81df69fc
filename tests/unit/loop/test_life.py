"""The life of the loop thread: interrupts, shutdown, the end of the interpreter, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import anyio
import pytest

from ms_enclave import loop

PRELUDE = """
import anyio, os, sys, threading, time
from ms_enclave import loop
from ms_enclave.errors import SandboxLostError

def say(*words):
    print(*words, flush=True)

async def open_resource(name, last=False):
    async def close():
        await anyio.sleep(0.01)
        say("closed", name)
    loop.add_closer(name, close, last=last)

async def nothing():
    return "nothing"
"""


def run_program(text: str) -> str:
    """Run it in a Python of its own; return what it printed, warnings of the loop's included."""
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-W", "ignore::DeprecationWarning", "-c",
         PRELUDE + textwrap.dedent(text)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_cancels_the_inner_work_and_waits_for_its_clean_up() -> None:
    log: list[str] = []

    async def work() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            log.append("cleaned")

    main = threading.main_thread().ident
    assert main is not None
    with pytest.raises(KeyboardInterrupt):
        loop.call(work)
    assert log == ["cleaned"]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_a_second_ctrl_c_does_not_wait() -> None:
    release = threading.Event()
    ended = threading.Event()

    async def work() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                signal.pthread_kill(main, signal.SIGINT)
                await anyio.to_thread.run_sync(release.wait)
            ended.set()

    main = threading.main_thread().ident
    assert main is not None
    with pytest.raises(KeyboardInterrupt):
        loop.call(work)
    assert not ended.is_set()
    release.set()
    assert ended.wait(5)


def test_at_exit_what_asked_for_it_is_closed_and_its_owner_last() -> None:
    out = run_program("""
        loop.call(open_resource, "owner", last=True)
        loop.call(open_resource, "box")
        loop.call(open_resource, "forgotten")
        async def forget():
            loop.remove_closer("forgotten")
        loop.call(forget)
        say("main ends")
    """)
    assert out.splitlines() == ["main ends", "closed box", "closed owner"]


def test_a_call_after_the_end_is_refused_and_does_not_hang() -> None:
    out = run_program("""
        import atexit

        def late():
            try:
                loop.call(nothing)
            except RuntimeError as error:
                say(error)

        atexit.register(late)  # before the loop's own, so that it runs after it
        say(loop.call(nothing))
    """)
    assert out.splitlines() == ["nothing", "the interpreter is exiting"]


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 2), reason="CPython gh-113964: no threads at exit"
)
def test_a_closer_can_still_use_worker_threads() -> None:
    out = run_program("""
        async def register():
            async def close():
                await anyio.to_thread.run_sync(time.sleep, 0.01)
                say("closed")
            loop.add_closer("box", close)
        loop.call(register)
    """)
    assert out == "closed\n"


def test_threads_of_the_program_may_work_on_after_main_has_ended() -> None:
    out = run_program("""
        loop.call(open_resource, "box")
        def work():
            threading.main_thread().join()
            time.sleep(0.1)
            say(loop.call(nothing))
        threading.Thread(target=work).start()
    """)
    assert out.splitlines() == ["nothing", "closed box"]


def test_a_closer_that_fails_does_not_keep_the_others_open() -> None:
    out = run_program("""
        import logging
        logging.disable()
        async def register():
            async def bad():
                raise ValueError
            loop.add_closer("bad", bad)
        loop.call(open_resource, "a")
        loop.call(register)
        loop.call(open_resource, "b")
    """)
    assert sorted(out.splitlines()) == ["closed a", "closed b"]


def test_after_a_shutdown_the_next_use_starts_anew() -> None:
    out = run_program("""
        loop.call(open_resource, "box")
        first = threading.enumerate()
        loop.shutdown()
        loop.shutdown()
        say(loop.call(nothing), len(threading.enumerate()) == len(first))
    """)
    assert out.splitlines() == ["closed box", "nothing True"]


def test_a_call_that_a_shutdown_ends_says_so_and_its_caller_is_not_cancelled() -> None:
    out = run_program("""
        entered = threading.Event()
        async def wait():
            entered.set()
            await anyio.sleep_forever()
        def work():
            try:
                loop.call(wait)
            except SandboxLostError as error:
                say(error)
        thread = threading.Thread(target=work)
        thread.start()
        entered.wait()
        loop.shutdown()
        thread.join()
    """)
    assert "ms-enclave has shut down" in out


def test_calls_racing_with_shutdowns_are_answered_or_refused_but_never_hang() -> None:
    out = run_program("""
        answers = []
        def work():
            for _ in range(200):
                try:
                    answers.append(loop.call(nothing))
                except SandboxLostError:
                    answers.append("refused")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for _ in range(20):
            time.sleep(0.003)
            loop.shutdown()
        for thread in threads: thread.join()
        say(len(answers))
    """)
    assert out == "800\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_a_loop_of_its_own_and_lets_go_of_the_parent_s_channels() -> None:
    out = run_program("""
        import socket
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        async def watch():
            import asyncio
            asyncio.get_running_loop().add_reader(ours, lambda: None)
        async def unwatch():
            import asyncio
            asyncio.get_running_loop().remove_reader(ours)
        loop.call(watch)
        loop.call(open_resource, "parent's")
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            loop.call(open_resource, "child's")
            say("child", loop.call(nothing))
            loop.shutdown()
            os.read(ready, 1)  # the child lives while the parent hangs up
            os._exit(0)
        say("parent", loop.call(nothing))
        loop.call(unwatch)
        ours.close()
        theirs.settimeout(5)
        say("hung up", theirs.recv(1) == b"")
        os.write(go, b"x")
        os.waitpid(pid, 0)
        theirs.close()
    """)
    assert sorted(out.splitlines()) == [
        "child nothing",
        "closed child's",
        "closed parent's",
        "hung up True",
        "parent nothing",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_multiprocessing_child_closes_what_it_opened() -> None:
    out = run_program("""
        import multiprocessing
        def work():
            loop.call(open_resource, "child's")
        child = multiprocessing.get_context("fork").Process(target=work)
        loop.call(nothing)
        child.start()
        child.join()
        say("exit", child.exitcode)
    """)
    assert out.splitlines() == ["closed child's", "exit 0"]


async def test_closers_are_registered_on_the_loop_thread_only() -> None:
    with pytest.raises(RuntimeError, match="event-loop thread"):
        loop.add_closer("x", anyio.sleep_forever)
    loop.remove_closer("x")
    assert not loop.on_loop_thread()
