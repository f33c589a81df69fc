"""The tier `landlock` where it is meant for: in a container with Docker's own system-call filter,
which lets nobody make a namespace."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.engine import docker_run, why_no_engine

SHOW = """
import asyncio, json
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import IsolationUnavailableError

async def main():
    shown = {}
    try:
        async with ProcessSandbox():
            pass
    except IsolationUnavailableError as error:
        shown["refusal"] = [error.message, error.remedy]
    async with ProcessSandbox({"isolation": "best"}) as box:
        ran = await box.run_code("import os; print(os.getuid(), 6 * 7)")
        shown["ran"] = [ran.stdout.split(), ran.isolation]
        shown["tier"] = box.isolation.tier
        shown["guards"] = box.isolation.guards
    print(json.dumps(shown))

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def engine() -> None:
    reason = why_no_engine()
    if reason is not None:
        pytest.skip(reason)


pytestmark = [pytest.mark.docker, pytest.mark.leaves("containers of an engine that others use too")]


@pytest.mark.parametrize("user", ["0", "12345"])
def test_the_best_that_can_be_had_there_is_landlock(user: str) -> None:
    done = docker_run(["python3", "-c", SHOW], f"--user={user}")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[0])
    said, remedy = shown["refusal"]
    assert "namespaces" in said
    assert "--security-opt seccomp=unconfined" in remedy
    (uid, answer), isolation = shown["ran"]
    assert (answer, isolation, shown["tier"]) == ("42", "landlock", "landlock")
    assert (uid == "12345") == (user == "12345")
    assert uid != "0"
    assert shown["guards"]["own_ids"] == ("on" if user == "0" else "off")
    assert shown["guards"]["landlock"] == shown["guards"]["seccomp"] == "on"


def test_doctor_says_there_how_the_container_has_to_be_started() -> None:
    code = "from ms_enclave.cli import run_cmd; run_cmd()"
    done = docker_run(["python3", "-c", code, "doctor", "process", "--fix", "--apply"])
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith("start the container with: docker run --security-opt seccomp=unconfined")
    assert "not for this program" in done.stderr


def test_root_that_may_not_become_anybody_is_refused_with_what_to_do() -> None:
    code = (
        "from ms_enclave import blocking\n"
        "try: print(blocking.run('print(1)', config={'isolation': 'landlock'}).stdout)\n"
        "except Exception as error: print(error)"
    )
    done = docker_run(["python3", "-c", code], "--cap-drop=ALL")
    assert "ordinary user" in done.stdout, done.stdout + done.stderr
    given = re.findall(r"--cap-add \w+", done.stdout)
    assert len(given) == 4
    done = docker_run(["python3", "-c", code], "--cap-drop=ALL", *" ".join(given).split())
    assert done.stdout == "1\n\n", "that is all it takes"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("user", "chosen"),
    [("0", "TestLandlockLife"), ("12345", "TestLandlock and not Groups and not Life")],
)
def test_it_keeps_the_promises_of_a_sandbox_there(user: str, chosen: str) -> None:
    words = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["tests/contract/test_sandbox.py", "-k", chosen]
    done = docker_run(words, f"--user={user}", seconds=280)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    passed = int(done.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > (10 if user == "0" else 100), done.stdout[-400:]
