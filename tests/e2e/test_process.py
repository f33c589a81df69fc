"""What the embedded sandbox is given and what it refuses: interpreters, roots, folders, users."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    IsolationUnavailableError,
    SandboxStartError,
)
from tests.security.boxes import ColdSandbox
from tests.support.roots import make_bare_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

AS_ROOT = os.geteuid() == 0


@pytest.mark.parametrize("python", ["/nowhere/python3", "/etc/passwd", "/bin/sh"])
async def test_what_is_no_interpreter_is_said_so(python: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(python)):
        await ProcessSandbox({"python": python}).start()


@pytest.fixture
def bare_root(tmp_path: Path) -> Path:
    return make_bare_root(tmp_path)


CHILDREN = """
import json, multiprocessing, subprocess, sys
again = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import ssl; print([1])'])"
if __name__ == "__main__":
    said = subprocess.check_output([sys.executable, "-c", again])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(said, pool.map(2 .__mul__, [1, 2]))
"""


async def test_a_root_file_system_without_python_gets_the_hosts(bare_root: Path) -> None:
    before = sorted(str(path) for path in bare_root.rglob("*"))
    async with ProcessSandbox({"rootfs": str(bare_root)}) as box:
        assert (await box.execute_command("cat /etc/whoami")).stdout == "the image\n"
        code = "import sys, ssl, sqlite3; print(sys.version_info[:2], open('/etc/whoami').read())"
        result = await box.run_code(code)
        assert result.stdout == f"{sys.version_info[:2]} the image\n\n", result.stderr
        await box.files.write("/sandbox/x", "y")
        assert (await box.execute_command("cat x")).stdout == "y"
        assert (await box.execute_command("echo > /planted")).exit_code != 0
        assert (await box.execute_command("cat /usr/bin/env")).exit_code != 0
        assert box.isolation.guards["zygote"] == "off"
        children = await box.run_code(CHILDREN)
        assert children.stdout == "b'[1]\\n' [2, 4]\n", children.stderr
    assert sorted(str(path) for path in bare_root.rglob("*")) == before


async def test_a_root_file_system_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ConfigError, match="/nowhere"):
        await ProcessSandbox({"rootfs": "/nowhere"}).start()


async def test_folders_of_the_host_show_where_they_are_wanted(tmp_path: Path) -> None:
    given, taken = tmp_path / "given", tmp_path / "taken"
    for folder in (given, taken):
        folder.mkdir()
        if AS_ROOT:
            os.chown(folder, 12345, 12345)
    (given / "in").write_text("input")
    volumes = {
        str(given): {"bind": "/sandbox/data", "mode": "ro"},
        str(taken): {"bind": "/results", "mode": "rw"},
    }
    async with ProcessSandbox({"volumes": volumes}) as box:
        result = await box.execute_command("cat data/in > /results/out; echo x > data/no")
        assert "Read-only" in result.stderr
    assert (taken / "out").read_text() == "input"
    assert os.listdir(given) == ["in"]
    if AS_ROOT:
        assert (taken / "out").stat().st_uid == 12345


@pytest.mark.skipif(not AS_ROOT, reason="needs root: only root has folders of root's")
async def test_a_folder_of_roots_is_not_given_to_write_in(tmp_path: Path) -> None:
    volumes = {str(tmp_path): {"bind": "/data", "mode": "rw"}}
    with pytest.raises(SandboxStartError, match="belongs to root"):
        await ProcessSandbox({"volumes": volumes}).start()


BAD_VOLUMES = [
    {"/": {"bind": "/data"}},
    {"/proc": {"bind": "/data"}},
    {"/dev/null": {"bind": "/data"}},
    {"relative": {"bind": "/data"}},
    {"/nowhere/at/all": {"bind": "/data"}},
    {"/usr": {"bind": "/etc"}},
    {"/usr": {"bind": "relative"}},
    {"/usr": {"bind": "/a/../etc"}},
    {"/usr": {"bind": "/run/enclave/guest"}},
    {"/usr": {"bind": "/data", "mode": "x"}},
]


@pytest.mark.parametrize("volumes", BAD_VOLUMES, ids=str)
async def test_a_volume_that_must_not_be_is_refused(volumes: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ConfigError):
        await ProcessSandbox({"volumes": volumes}).start()


@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox])
async def test_preloaded_modules_are_there(kind: type[ProcessSandbox]) -> None:
    code = "import sys; print('decimal' in sys.modules)"
    async with kind({"preload": ["decimal", "csv"]}) as box:
        for _ in range(3):
            assert (await box.run_code(code)).stdout == "True\n"


async def test_a_module_that_is_not_there_cannot_be_preloaded() -> None:
    with pytest.raises(ConfigError, match="no_such_module"):
        await ProcessSandbox({"preload": ["no_such_module"]}).start()


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/tmp/deep/er", "/a/b", "/home/user"])
async def test_the_work_folder_can_be_anywhere_of_its_own(folder: str) -> None:
    async with ProcessSandbox({"working_dir": folder}) as box:
        await box.files.write("x", "y")
        result = await box.execute_command("pwd; cat x; echo z > more; echo $HOME")
        assert result.stdout == f"{folder}\ny{folder}\n", result.stderr
        assert (await box.run_code("import os; print(os.getcwd())")).stdout == f"{folder}\n"


@pytest.mark.parametrize("folder", ["/", "/usr/x", "/proc", "/etc/x", "/run/enclave/guest"])
async def test_the_work_folder_covers_nothing_of_the_system(folder: str) -> None:
    with pytest.raises(ConfigError, match="working_dir"):
        await ProcessSandbox({"working_dir": folder}).start()


async def test_runs_are_random_unless_seeded() -> None:
    code = "import random; print(random.random())"
    async with ProcessSandbox() as box:
        assert len({(await box.run_code(code)).stdout for _ in range(4)}) == 4
    async with ProcessSandbox({"seed": 7}) as box:
        assert len({(await box.run_code(code)).stdout for _ in range(4)}) == 1


@pytest.mark.skipif(not AS_ROOT, reason="needs root: an ordinary user has one id to give")
async def test_another_user_is_another_user() -> None:
    async with ProcessSandbox() as box:
        code = "import os; print(os.getuid(), os.getgid())"
        assert (await box.run_code(code, user=1234)).stdout == "1234 1234\n"
        assert (await box.run_code(code, user="nobody")).stdout == "65534 65534\n"
        assert (await box.execute_command("id -u", user="sandbox")).stdout == "1000\n"


async def test_nobody_is_root() -> None:
    async with ProcessSandbox() as box:
        for user in (0, "root"):
            with pytest.raises(CapabilityError):
                await box.execute_command("id", user=user)
        with pytest.raises(ConfigError):
            await box.execute_command("id", user="somebody")


async def test_a_required_guard_that_is_off_is_a_refusal() -> None:
    async with ProcessSandbox({"require": ["seccomp", "pid_namespace"]}):
        pass
    with pytest.raises(IsolationUnavailableError) as caught:
        await ColdSandbox({"require": ["zygote"]}).start()
    assert caught.value.missing == ["zygote"]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"on_owner_death": "keep"}, CapabilityError),
    ],
)
async def test_what_it_cannot_do_it_refuses(
    config: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await ProcessSandbox(config).start()


async def test_a_program_looks_as_started_by_python_itself() -> None:
    code = (
        "import sys, threading, os\n"
        "print(sys.argv, __name__, sys.flags.isolated, sys.flags.no_site, sys.path[0] == '')\n"
        "print(threading.get_native_id() == os.getpid(), sys.prefix == sys.argv[1])\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'guest'])\n"
    )
    async with ProcessSandbox() as box:
        result = await box.run_code(code, args=[sys.prefix])
        lines = result.stdout.splitlines()
        assert lines[0] == f"['-c', {sys.prefix!r}] __main__ 0 0 True"
        assert lines[1] == "True True"
        assert lines[2] == "[]"


async def test_children_of_a_program_find_the_packages() -> None:
    code = (
        "import multiprocessing, subprocess, sys\n"
        "def work(number):\n    import pydantic\n    return number * 2\n"
        "if __name__ == '__main__':\n"
        "    print(subprocess.check_output([sys.executable, '-c', 'import pydantic; print(1)']))\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        print(pool.map(work, [1, 2]))\n"
    )
    async with ProcessSandbox() as box:
        result = await box.run_code(code)
        assert result.stdout == "b'1\\n'\n[2, 4]\n", result.stderr


async def test_exit_codes_and_endings_are_pythons_own() -> None:
    async with ProcessSandbox() as box:
        assert (await box.run_code("import sys; sys.exit(7)")).exit_code == 7
        assert (await box.run_code("raise SystemExit('words')")).stderr == "words\n"
        assert (await box.run_code("import os; os._exit(3)")).exit_code == 3
        ended = await box.run_code("import atexit; atexit.register(print, 'bye'); print('hi')")
        assert ended.stdout == "hi\nbye\n"
        broken = await box.run_code("def f(:\n")
        assert broken.exit_code == 1
        assert "SyntaxError" in broken.stderr
        raised = await box.run_code("x = 1\nraise KeyError('k')")
        assert raised.stderr.splitlines()[0] == "Traceback (most recent call last):"
        assert 'File "<string>", line 2, in <module>' in raised.stderr
        assert "instance.py" not in raised.stderr
        killed = await box.run_code("import os; os.abort()")
        assert (killed.signal, killed.exit_code, killed.verdict) == (6, 134, "signal")
        not_late = await box.run_code("import os; os.kill(os.getpid(), 24)")  # SIGXCPU
        assert (not_late.signal, not_late.verdict) == (24, "signal")
        interrupted = await box.run_code("raise KeyboardInterrupt")
        assert interrupted.signal == 2


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_a_volume_that_was_swapped_for_a_link_is_not_followed(
    tmp_path: Path, mode: str
) -> None:
    """Between the check of a volume and its opening by host root somebody may change it."""
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    if AS_ROOT:
        os.chown(folder, 12345, 12345)
    link.symlink_to(folder)

    class Late(ProcessSandbox):
        def _station_plan(self) -> dict[str, Any]:
            plan = json.dumps(super()._station_plan())
            return json.loads(plan.replace(f'"{folder}"', f'"{link}"'))

    with pytest.raises(SandboxStartError, match="symbolic links"):
        await Late({"volumes": {str(folder): {"bind": "/data", "mode": mode}}}).start()


async def test_an_output_that_ends_after_more_than_is_kept_is_seen_to_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By what a command left running that ended before its output was watched; what is printed
    beside that keeps it listened to."""
    beside = "for i in $(seq 60); do echo x >&2; sleep .002; done"
    line = f"({beside}) >&- & (sleep .04; head -c 5000 /dev/zero) 2>&- &"
    async with ProcessSandbox({"output_limit": 1000}) as box:
        with anyio.fail_after(60):
            while (result := await box.execute_command(line)).stderr.count("x") < 60:
                pass  # it was quiet for too long
    assert result.truncated == {"stdout": 4000}
    assert [row.getMessage() for row in caplog.records if row.name == "asyncio"] == []
