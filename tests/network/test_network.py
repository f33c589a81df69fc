"""Runs `on_a_host.py` on a host with an internet of its own, as root and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.internet import words_on_host
from tests.support.somebody import ROOT, SOMEBODY, words_of_somebody

SUITE = "tests/network/on_a_host.py"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", SUITE)

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can build a network of its own"),
    pytest.mark.skipif(
        not (shutil.which("pasta") and shutil.which("slirp4netns")),
        reason="pasta (package passt) or slirp4netns is missing",
    ),
]


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def as_root() -> subprocess.CompletedProcess[str]:
    return run(words_on_host(PYTEST, "127.0.0.53"), {})


def as_an_ordinary_user() -> subprocess.CompletedProcess[str]:
    home = Path(tempfile.mkdtemp(prefix="network-"))
    try:
        os.chown(home, SOMEBODY, SOMEBODY)
        home.chmod(0o755)
        words, environment = words_of_somebody(home, PYTEST)
        return run(words_on_host(words, "10.1.2.3"), environment)
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    """The runs of the tests, side by side: each has a host of its own and mostly waits."""
    wanted = {item.name for item in request.session.items if item.path == request.path}
    both = {
        "test_it_holds_as_root_with_a_name_server_on_the_host_itself": as_root,
        "test_it_holds_as_an_ordinary_user_with_a_private_name_server": as_an_ordinary_user,
    }
    with ThreadPoolExecutor(len(both)) as pool:
        return {name: pool.submit(begin) for name, begin in both.items() if name in wanted}


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-4000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 20, summary


@pytest.mark.timeout(300)
def test_it_holds_as_root_with_a_name_server_on_the_host_itself(
    request: pytest.FixtureRequest, ended: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    check(ended[request.node.name].result())


@pytest.mark.timeout(300)
def test_it_holds_as_an_ordinary_user_with_a_private_name_server(
    request: pytest.FixtureRequest, ended: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    check(ended[request.node.name].result())


def test_without_a_helper_the_refusal_names_the_package() -> None:
    hide = (
        'for name in pasta slirp4netns; do path=$(readlink -f "$(command -v $name)") && '
        'mount --bind /dev/null "$path"; done; exec "$@"'
    )
    words = [
        str(Path(sys.executable).with_name("ms-enclave")),
        "run",
        "--network",
        "-c",
        "print(1)",
    ]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "apt-get install passt" in done.stderr
