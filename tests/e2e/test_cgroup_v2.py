"""Control groups of version 2 for real: every limit, as root and as a user to whom a part of the
tree was delegated, in a machine of the test's own whose kernel binds none to version 1.

What such a machine cannot show is the zygote, because user-mode Linux has no ptrace that reads all
registers: there programs start from new interpreters.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.somebody import SOMEBODY, words_of_somebody

ROOT = Path(__file__).parents[2]
HOME = Path("/tmp/home")
"""In the other machine, where nobody else is."""
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
LIMITS = [*PYTEST, "tests/security/test_limits.py", "-k"]

DELEGATE = f"""
set -e
top=/sys/fs/cgroup scope=/sys/fs/cgroup/user/app/run.scope
echo '+memory +pids +cpu' >$top/cgroup.subtree_control
mkdir -p $scope {HOME}
chown -R {SOMEBODY}:{SOMEBODY} {HOME}
for group in $top/user $top/user/app $scope; do
    for file in $group $group/cgroup.procs $group/cgroup.subtree_control $group/cgroup.threads; do
        chown {SOMEBODY}:{SOMEBODY} $file
    done
    {shlex.quote(sys.executable)} -c 'import os, sys
os.setxattr(sys.argv[1], "user.delegate", b"1")' $group
done
echo '+memory +pids +cpu' >$top/user/cgroup.subtree_control
echo '+memory +pids +cpu' >$top/user/app/cgroup.subtree_control
echo $$ >$scope/cgroup.procs
"""
"""As a service manager does for a user's own service manager, and that for a scope."""

SESSION = """
set -e
top=/sys/fs/cgroup
echo '+memory +pids +cpu' >$top/cgroup.subtree_control
mkdir $top/session.scope
echo $$ >$top/session.scope/cgroup.procs
"""
"""As for whoever logs in: a group with processes in it, which the service manager arranges."""

GUARDS = """
import asyncio, os
from ms_enclave.boxes.process_sandbox import ProcessSandbox
async def main():
    async with ProcessSandbox() as box:
        guards = box.isolation.guards
        assert guards["own_ids"] == ("on" if os.getuid() == 0 else "off"), guards
        for name in ("memory", "pids", "cpu", "kill"):
            assert guards[f"cgroup_{name}"] == "on", guards
        result = await box.run_code("print(6 * 7)")
        assert (result.stdout, result.usage.source) == ("42\\n", "cgroup-v2"), result
        print("every guard is on")
asyncio.run(main())
"""

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.slow,
    pytest.mark.toolchain("linux.uml"),
    pytest.mark.skipif(machine.KERNEL is None, reason="no user-mode Linux (`linux.uml`) here"),
]


def run(*programs: list[str], before: str = "", seconds: float) -> str:
    """Run programs of ours one after the other; every one must end well."""
    script = before + "".join(f"{shlex.join(words)} || exit\n" for words in programs)
    scratch = Path(tempfile.mkdtemp(prefix="machine-"))
    try:
        return machine.boot(
            script, scratch=scratch, folder=ROOT, python=sys.executable, seconds=seconds
        )
    finally:
        shutil.rmtree(scratch)


def passed(output: str) -> int:
    (line,) = [line for line in output.splitlines() if " passed" in line]
    return int(line.split(" passed")[0].split()[-1])


def boot_for_root() -> str:
    guards = [sys.executable, "-c", GUARDS]
    tests = [*LIMITS, "for_a_call and ProcessSandbox"]
    return run(guards, tests, before=SESSION, seconds=380)


def boot_for_a_user() -> str:
    words = [sys.executable, "-c", GUARDS]
    tests = [*LIMITS, "for_a_sandbox and ProcessSandbox"]
    both = ["sh", "-c", f"{shlex.join(words)} && {shlex.join(tests)}"]
    command, environment = words_of_somebody(HOME, both)
    settings = [f"{name}={value}" for name, value in environment.items()]
    return run(["env", *settings, *command], before=DELEGATE, seconds=380)


@pytest.fixture(scope="module")
def machines(request: pytest.FixtureRequest) -> dict[str, Future[str]]:
    """What the machines of the tests have printed: each has one processor, so they run together."""
    wanted = {item.name for item in request.session.items if item.path == request.path}
    both = {
        "test_every_limit_holds_for_calls_of_root": boot_for_root,
        "test_every_limit_holds_for_sandboxes_of_a_user_with_a_part_of_the_tree": boot_for_a_user,
    }
    with ThreadPoolExecutor(len(both)) as pool:
        return {
            name: pool.submit(boot)
            for name, boot in both.items()
            if name in wanted and (boot is boot_for_root or os.geteuid() == 0)
        }


@pytest.mark.timeout(400)
def test_every_limit_holds_for_calls_of_root(
    request: pytest.FixtureRequest, machines: dict[str, Future[str]]
) -> None:
    output = machines[request.node.name].result()
    assert "every guard is on" in output
    assert passed(output) >= 12


@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="shows to another user what this one may read")
def test_every_limit_holds_for_sandboxes_of_a_user_with_a_part_of_the_tree(
    request: pytest.FixtureRequest, machines: dict[str, Future[str]]
) -> None:
    output = machines[request.node.name].result()
    assert "every guard is on" in output
    assert passed(output) >= 12
