"""What holds for every test: the event-loop backend, no blocking on a loop, nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster

from ms_enclave import loop
from ms_enclave.model import SandboxConfig
from ms_enclave.testing._suite import HasItError  # pyright: ignore[reportPrivateUsage]
from tests import leaks
from tests.support.engine import why_no_engine
from tests.support.machine import ForeignProcessorError
from tests.support.postgres import why_no_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

CI = os.environ.get("CI") == "true"
NEVER_SKIPPED_IN_CI = ("docker", "toolchain")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a temporary folder of its own, and make its orphans ours.

    Whatever appears in that folder was made by this run, however many runs share the machine.
    """
    leaks.become_subreaper()
    leaks.watch_for_engines()
    scratch = tempfile.mkdtemp(prefix="ms-enclave-tests-", dir="/tmp")
    os.chmod(scratch, 0o755)  # sandboxes' users pass through it
    os.environ["TMPDIR"] = scratch
    tempfile.tempdir = scratch
    config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def private_loop() -> Iterator[None]:
    """End our loop thread after the last test."""
    yield
    loop.shutdown()


async def _nothing() -> None:
    """Do nothing, on our loop: that starts it."""


@pytest.fixture(scope="session", autouse=True)
def no_blocking_on_a_loop() -> Iterator[None]:
    """Turn a blocking call that our code makes on any event loop into an error."""
    detector = BlockBuster(scanned_modules=["ms_enclave"])
    for allowed in ("os.stat", "os.readlink", "os.access", "os.path.abspath", "os.getcwd"):
        detector.functions.pop(allowed, None)  # answered from memory; never waits for anybody
    SandboxConfig()  # the first model that pydantic builds makes it look for plug-ins on the disk
    with contextlib.suppress(ModuleNotFoundError):  # the rest can be tested without a server
        import prometheus_client  # noqa: F401 - reads /proc once, when it is imported
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()


@functools.cache
def _why_no_namespaces() -> str | None:
    """What this machine lacks for the process sandbox, and what to do; None where it works."""
    from ms_enclave.boxes.factory import SandboxFactory

    diagnosis = loop.call(SandboxFactory.get_class("process").diagnose)
    if diagnosis.works:
        return None
    lines = [f"{problem.what}: {problem.remedy}" for problem in diagnosis.problems]
    return "; ".join(lines) or "the process sandbox does not work here"


def _why_no_runsc() -> str | None:
    return None if shutil.which("runsc") else "there is no runsc here: apt install runsc"


WANTED = {
    "namespaces": _why_no_namespaces,
    "docker": why_no_engine,
    "runsc": _why_no_runsc,
    "postgres": why_no_postgres,
}
"""By mark, what says why what it stands for cannot be had."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test where what its marks say cannot be had, saying why; fail it in CI. Before any
    fixture, also one of its class, needs it."""
    if item.get_closest_marker("runsc") is not None and os.geteuid() != 0:
        pytest.skip("runsc takes root, which an ordinary user's run does not have")
    for name, why_not in WANTED.items():
        reason = why_not() if item.get_closest_marker(name) is not None else None
        if reason is not None:
            (pytest.fail if CI else pytest.skip)(reason)


@pytest.fixture(autouse=True)
def nothing_left_behind(
    request: pytest.FixtureRequest,
    private_loop: None,
    no_blocking_on_a_loop: None,
) -> Iterator[None]:
    """Fail a test that leaves a process, mount, cgroup, folder, open file, thread or container of
    ours."""
    if request.node.get_closest_marker("leaves") is not None:
        yield
        return
    loop.call(_nothing)  # running before the test, so that its thread is nobody's leak
    on_an_engine = request.node.get_closest_marker("docker") is not None
    before = leaks.Snapshot.take(containers=on_an_engine)
    leaks.engine_was_asked()
    yield
    if leaks.engine_was_asked() and not on_an_engine:
        # A mark that was forgotten hides nothing: whoever turns to an engine is looked after.
        before = replace(before, containers=frozenset())
    left = leaks.wait_until_gone(before)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Refuse, in continuous integration, to skip what that machine was set up to run."""
    if not CI or call.excinfo is None or not call.excinfo.errisinstance(pytest.skip.Exception):
        return
    if isinstance(call.excinfo.value, (HasItError, ForeignProcessorError)):
        return
    if any(item.get_closest_marker(name) for name in NEVER_SKIPPED_IN_CI):
        complaint = AssertionError(f"skipped in continuous integration: {call.excinfo.value}")
        call.excinfo = pytest.ExceptionInfo.from_exc_info(
            (AssertionError, complaint, call.excinfo.tb)
        )
