"""What holds a sandbox of tier `landlock`, attacked from inside; each attack succeeds in one that
has lost the wall in question. As root the rights of its own user stand behind some of the walls;
the suite also runs as an ordinary user (tests/e2e/test_landlock.py), where nothing else does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import CapabilityError, IsolationUnavailableError
from tests.security.boxes import LandlockSandbox, wait_for_processes, wait_until_gone
from tests.security.landlocked import (
    Bare,
    OpenFiles,
    Unfiltered,
    Unscoped,
    UnscopedAndUnfiltered,
    as_caller,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.boxes.process_sandbox import ProcessSandbox


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder of the host that everybody may read and write, with a file in it."""
    folder = Path(tempfile.mkdtemp(prefix="outside-"))
    folder.chmod(0o777)
    (folder / "canary").write_text("secret")
    (folder / "canary").chmod(0o666)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory, in which sandboxes get theirs."""
    folder = Path(tempfile.mkdtemp(prefix="in-memory-", dir="/dev/shm"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@contextmanager
def somebody_else() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the caller's that no sandbox has to do with."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "bystander"],
        env={"SECRET": "in the environment"},
        start_new_session=True,  # a group that can be named in whatever namespace this runs in
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(box: ProcessSandbox, code: str) -> str:
    """What code prints; for an OSError the name of its number."""
    whole = "import errno, os, socket, sys\ntry:\n"
    whole += "".join(f"    {line}\n" for line in code.splitlines())
    whole += "except OSError as error:\n    print(errno.errorcode[error.errno])\n"
    result = await box.run_code(whole, timeout=30)
    assert result.stderr == "", result.stderr
    return result.stdout.strip()


# --- files --------------------------------------------------------------------------------------

WAYS = {
    "by its path": "print(open({path!r}).read())",
    "upwards": "print(open('../' * 30 + {path!r}[1:]).read())",
    "by a link": "os.symlink({path!r}, 'link'); print(open('link').read())",
    "by the root of a process": "print(open('/proc/self/root' + {path!r}).read())",
    "by a folder's descriptor": (
        "os.chdir(os.path.dirname({path!r})); print(open('canary').read())"
    ),
    "by a second name": "os.link({path!r}, 'second'); print(open('second').read())",
    "by moving it": "os.rename({path!r}, 'mine'); print(open('mine').read())",
    "by another program": "os.execvp('cat', ['cat', {path!r}])",
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_file_of_the_host_cannot_be_read(outside: Path, way: str) -> None:
    code = WAYS[way].format(path=str(outside / "canary"))
    async with LandlockSandbox() as box:
        result = await box.run_code("import os\n" + code)
    assert "secret" not in result.stdout
    assert "secret" not in result.stderr
    assert result.exit_code != 0
    assert (outside / "canary").read_text() == "secret"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "by a second name"])
async def test_control_without_rules_a_file_can_be_read(outside: Path, way: str) -> None:
    async with OpenFiles() as box:
        result = await box.run_code("import os\n" + WAYS[way].format(path=str(outside / "canary")))
    assert result.stdout.strip() == "secret", result.stderr


CHANGES = {
    "write": "open({path!r}, 'w').write('changed')",
    "cut": "os.truncate({path!r}, 0)",
    "remove": "os.remove({path!r})",
    "rename": "os.rename({path!r}, {path!r} + '2')",
    "make": "open({path!r} + '2', 'x')",
    "make a folder": "os.mkdir({path!r} + '2')",
    "make a link": "os.symlink('x', {path!r} + '2')",
    "put": "open('mine', 'w'); os.rename('mine', {path!r})",
}


def state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return (
        status.st_mode, status.st_nlink, status.st_uid, status.st_size, status.st_mtime_ns,
        status.st_ctime_ns,
    )  # fmt: skip


def state_of(folder: Path) -> list[tuple[str, str]]:
    return sorted(
        (path.name, path.read_text() if path.is_file() else "") for path in folder.iterdir()
    )


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_of_the_host_cannot_be_changed(outside: Path, change: str) -> None:
    before = state_of(outside)
    code = CHANGES[change].format(path=str(outside / "canary"))
    async with LandlockSandbox() as box:
        assert await said(box, code) in ("EACCES", "EXDEV")
    assert state_of(outside) == before


@pytest.mark.parametrize("change", CHANGES)
async def test_control_without_rules_a_file_can_be_changed(outside: Path, change: str) -> None:
    before = state_of(outside)
    async with OpenFiles() as box:
        assert await said(box, CHANGES[change].format(path=str(outside / "canary"))) == ""
    assert state_of(outside) != before


async def test_the_mode_and_the_times_of_a_file_of_the_host_cannot_be_changed(
    outside: Path,
) -> None:
    canary = outside / "canary"
    os.utime(canary, (1000, 1000))
    attacks = [
        "os.chmod(P, 0o600)",
        "os.utime(P, (5, 5))",
        "os.utime(P)",
        "os.chown(P, os.getuid(), os.getgid())",
        "os.setxattr(P, 'user.x', b'1')",
        "os.symlink(P, 'l'); os.chmod('l', 0o600)",
        "os.chdir(os.path.dirname(P)); os.chmod('canary', 0o600)",
        "os.chmod('../' * 30 + P[1:], 0o600)",
        "os.chmod('/proc/self/root' + P, 0o600)",
        "os.fchmod(os.open(P, os.O_PATH), 0o600)",
        "os.chmod('/proc/self/fd/%d' % os.open(P, os.O_PATH), 0o600)",
        "os.chmod('canary', 0o600, dir_fd=os.open(os.path.dirname(P), os.O_PATH))",
        "os.utime('canary', dir_fd=os.open(os.path.dirname(P), os.O_PATH))",
        "os.fchmod(os.open(os.path.realpath(sys.executable), os.O_RDONLY), 0o600)",
    ]
    async with LandlockSandbox() as box:
        for attack in attacks:
            answer = await said(box, f"P = {str(canary)!r}\n{attack}\nprint('done')")
            assert answer in ("EPERM", "EACCES", "ENOTSUP", "EBADF", "EXDEV", "EROFS"), attack
    status = canary.stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o666, 1000)


async def test_the_mode_and_the_times_of_its_own_files_can_be_changed() -> None:
    async with LandlockSandbox() as box:
        code = (
            "open('f', 'w'); os.mkdir('d'); os.chmod('f', 0o640); os.utime('f', (5, 6))\n"
            "os.chmod(os.path.abspath('d'), 0o711)\n"
            "os.chdir('d'); os.chmod('../f', 0o604)\n"
            "fd = os.open('../f', os.O_RDONLY); os.fchmod(fd, 0o404); os.utime(fd, (7, 8))\n"
            "s = os.stat(fd); print(oct(s.st_mode & 0o7777), s.st_atime, s.st_mtime)\n"
            "print(oct(os.stat('.').st_mode & 0o7777))"
        )
        assert (await said(box, code)).split() == ["0o404", "7.0", "8.0", "0o711"]


async def test_files_move_between_its_folders() -> None:
    async with LandlockSandbox() as box:
        code = (
            "open('f', 'w').write('x'); os.makedirs('a/b'); os.rename('f', 'a/b/f')\n"
            "os.link('a/b/f', 'g'); os.rename('a/b', os.environ['TMPDIR'] + '/b')\n"
            "print(open(os.environ['TMPDIR'] + '/b/f').read(), os.stat('g').st_nlink)"
        )
        assert await said(box, code) == "x 2"


async def test_one_sandbox_cannot_see_into_another() -> None:
    async with LandlockSandbox() as one, LandlockSandbox() as other:
        await other.files.write("mine", "secret")
        folder = other.config.working_dir
        for code in (f"print(open({folder + '/mine'!r}).read())", f"print(os.listdir({folder!r}))",
                     f"os.chdir({folder!r}); print(os.listdir('.'))",
                     f"open({folder + '/new'!r}, 'w')"):  # fmt: skip
            assert await said(one, code) == "EACCES", code
        assert [file.name for file in await other.files.list(".")] == ["mine"]


@pytest.mark.skipif(not as_caller(), reason="as root it is another user's folder, rules or not")
async def test_control_without_rules_one_sandbox_sees_another() -> None:
    async with OpenFiles() as one, LandlockSandbox() as other:
        await other.files.write("mine", "secret")
        path = f"{other.config.working_dir}/mine"
        assert await said(one, f"print(open({path!r}).read())") == "secret"


@pytest.mark.parametrize(
    "attack",
    ["open(P, 'w')", "os.link(P, 'l')", "os.rename(P, 'l')", "os.remove(P)", "os.chmod(P, 0o600)",
     "os.fchmod(os.open(P, os.O_RDONLY), 0o600)", "os.utime(os.open(P, os.O_RDONLY), (5, 5))",
     "os.symlink(P, 'l'); os.chmod('l', 0o600)", "os.truncate(P, 0)"],
)  # fmt: skip
async def test_a_volume_that_is_only_read_is_not_changed(outside: Path, attack: str) -> None:
    canary = outside / "canary"
    before = state(canary)
    volume = {str(outside): {"bind": str(outside), "mode": "ro"}}
    async with LandlockSandbox({"volumes": volume}) as box:
        assert await said(box, f"print(open({str(canary)!r}).read())") == "secret"
        answer = await said(box, f"P = {str(canary)!r}\n{attack}\nprint('done')")
        assert answer in ("EACCES", "EPERM", "EXDEV"), answer
    assert (state(canary), canary.read_text()) == (before, "secret")


@pytest.mark.skipif(not as_caller(), reason="as root the sandbox's user owns no folder of the host")
async def test_an_ordinary_user_can_give_a_folder_of_his_own_to_write(outside: Path) -> None:
    volume = {str(outside): {"bind": str(outside), "mode": "rw"}}
    async with LandlockSandbox({"volumes": volume}) as box:
        assert await said(box, f"open({str(outside / 'canary')!r}, 'w').write('changed')") == ""
        assert await said(box, f"os.chmod({str(outside / 'canary')!r}, 0o604)") == ""
    assert (outside / "canary").stat().st_mode & 0o777 == 0o604
    assert (outside / "canary").read_text() == "changed"


async def test_nobody_else_may_enter_its_folder() -> None:
    async with LandlockSandbox() as box:
        for path in (Path(box.config.working_dir), Path(box.config.working_dir).parent):
            assert path.stat().st_mode & 0o077 == 0


# --- other processes ----------------------------------------------------------------------------

REACH = {
    "signal": "os.kill(PID, 9)",
    "signal by a descriptor": "import signal; signal.pidfd_send_signal(os.pidfd_open(PID), 9)",
    "signal to its group": "os.killpg(os.getpgid(PID), 9)",
    "limit": "import resource; resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1))",
    "priority": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "processors": "os.sched_setaffinity(PID, {0})",
    "environment": "print(open(f'/proc/{PID}/environ').read())",
    "memory": "open(f'/proc/{PID}/mem', 'r+b')",
    "open files": "print(os.readlink(f'/proc/{PID}/fd/0'))",
    "folder": "print(os.readlink(f'/proc/{PID}/cwd'))",
    "trace": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        "if c.ptrace(0x4206, PID, 0, 0): raise OSError(ctypes.get_errno(), '')"
    ),
}


@pytest.mark.parametrize("way", REACH)
async def test_a_process_of_the_host_cannot_be_reached(way: str) -> None:
    with somebody_else() as other:
        async with LandlockSandbox() as box:
            answer = await said(box, f"PID = {other.pid}\n{REACH[way]}\nprint('done')")
        assert answer in ("EPERM", "EACCES"), answer
        assert other.poll() is None


@pytest.mark.skipif(not as_caller(), reason="as root it is another user's process, rules or not")
@pytest.mark.parametrize(
    ("way", "weak"),
    [("signal", Unscoped), ("signal by a descriptor", Unscoped), ("limit", Unfiltered),
     ("priority", Unfiltered), ("processors", Unfiltered)],
)  # fmt: skip
async def test_control_a_process_of_the_callers_can_be_reached(
    way: str, weak: type[LandlockSandbox]
) -> None:
    with somebody_else() as other:
        async with weak() as box:
            answer = await said(box, f"PID = {other.pid}\n{REACH[way]}\nprint('done')")
        assert answer == "done"


async def test_everything_it_can_kill_is_its_own() -> None:
    with somebody_else() as other:
        async with LandlockSandbox() as box, LandlockSandbox() as neighbour:
            await box.files.write("before", "x")
            for _ in range(3):
                await box.execute_command("kill -9 -1; kill -9 0", timeout=20)
            assert await box.files.read("before") == b"x"
            assert (await box.execute_command("echo alive")).stdout == "alive\n"
            assert (await neighbour.execute_command("echo alive")).stdout == "alive\n"
        assert other.poll() is None


KILL_THE_NEWEST = """\
import os
while True:
    with open("/proc/loadavg") as file:
        newest = int(file.read().split()[-1])
    try:
        os.kill(newest, 9)
    except OSError:
        pass  # it is gone, or somebody else's
"""


async def test_what_is_killed_while_it_is_made_has_ended_and_nothing_failed() -> None:
    async with LandlockSandbox() as box:
        killer = await box.start_command(["python3", "-c", KILL_THE_NEWEST])
        ends: list[int | None] = []
        # As many as it takes: how often the killer's turn comes in time is the machine's to say.
        while len(ends) < 30 or (128 + signal.SIGKILL not in ends and len(ends) < 600):
            ends.append((await box.execute_command("echo alive", timeout=20)).exit_code)
        assert set(ends) <= {0, 128 + signal.SIGKILL}
        assert 128 + signal.SIGKILL in ends, "nothing was ever killed"
        await killer.kill()
        assert (await box.execute_command("echo alive")).stdout == "alive\n"


async def test_a_program_that_stops_everything_holds_up_nobody() -> None:
    async with LandlockSandbox() as box:
        await box.files.write("before", "x")
        stopped = await box.execute_command("kill -STOP -1; echo stopped", timeout=20)
        assert stopped.stdout == "stopped\n"
        again = await box.execute_command("echo alive", timeout=20)
        assert (again.stdout, again.execution_time < 5) == ("alive\n", True)
        assert await box.files.read("before") == b"x"


async def test_calls_of_one_sandbox_can_signal_each_other() -> None:
    async with LandlockSandbox() as box:
        started = await box.execute_command("sleep 600 >/dev/null 2>&1 & echo $!")
        pid = int(started.stdout)
        assert (await box.execute_command(f"kill -9 {pid}")).exit_code == 0


async def test_which_processes_there_are_is_no_secret() -> None:
    """Documented, and so tested: `/proc` is the host's."""
    with somebody_else() as other:
        async with LandlockSandbox() as box:
            assert "bystander" in await said(
                box, f"print(open('/proc/{other.pid}/cmdline').read())"
            )
        assert box.isolation.guards["pid_namespace"] == "off"


# --- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"])
async def test_there_are_no_sockets(kind: str) -> None:
    async with LandlockSandbox() as box:
        kinds = "SOCK_RAW" if kind in ("AF_NETLINK", "AF_PACKET") else "SOCK_STREAM"
        assert await said(box, f"socket.socket(socket.{kind}, socket.{kinds})") == "EPERM"
        assert (
            await said(box, "a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))") == "b'x'"
        )


async def test_a_pair_of_datagram_sockets_is_refused(outside: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(outside / "s"))
        listener.setblocking(False)
        (outside / "s").chmod(0o777)
        code = (
            "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            f"a.sendto(b'out', {str(outside / 's')!r})"
        )
        async with LandlockSandbox() as box:
            assert await said(box, code) == "EPERM"
        with pytest.raises(BlockingIOError):
            listener.recv(10)
        async with Unfiltered() as box:  # the control
            await said(box, code)
        assert listener.recv(10) == b"out"


async def test_services_of_the_host_are_reached_only_without_the_filter(outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(outside / "s"))
        listener.listen()
        (outside / "s").chmod(0o777)
        code = f"socket.socket(socket.AF_UNIX).connect({str(outside / 's')!r}); print('in')"
        async with LandlockSandbox() as box:
            assert await said(box, code) == "EPERM"
        async with Unfiltered() as box:
            assert await said(box, code) == "in"


async def test_abstract_sockets_are_held_twice() -> None:
    name = f"\0ms-enclave-{os.getpid()}"
    code = f"socket.socket(socket.AF_UNIX).connect({name!r}); print('in')"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        for weak, answer in (
            (LandlockSandbox, "EPERM"), (Unscoped, "EPERM"), (Unfiltered, "EPERM"),
            (UnscopedAndUnfiltered, "in"),
        ):  # fmt: skip
            async with weak() as box:
                assert await said(box, code) == answer, weak


async def test_the_network_is_held_twice() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        connect = f"socket.socket().connect({address!r}); print('in')"
        serve = "s = socket.socket(); s.bind(('127.0.0.1', 0)); print('in')"
        for weak, answer in ((LandlockSandbox, "EPERM"), (Unfiltered, "EACCES")):
            async with weak() as box:
                assert await said(box, connect) == answer
                assert await said(box, serve) == answer
        async with Bare() as box:  # its ports are held by Landlock still: the control is UDP
            code = (
                "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); print('in')"
            )
            assert await said(box, code) == "in"


@pytest.mark.parametrize(
    "call",
    ["shmget(0, 4096, 0o1600)", "semget(0, 1, 0o1600)", "msgget(0, 0o1600)",
     "mq_open(b'/ms-enclave-test', 0o102, 0o600, None)"],
)  # fmt: skip
async def test_nothing_of_the_hosts_ipc_can_be_used(call: str) -> None:
    code = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        f"if c.{call} < 0: raise OSError(ctypes.get_errno(), '')\n"
        "print('done')"
    )
    async with LandlockSandbox() as box:
        assert await said(box, code) == "EPERM"


# --- what it is left with -----------------------------------------------------------------------


async def test_it_has_no_rights_and_no_descriptors_but_its_streams() -> None:
    async with LandlockSandbox() as box:
        status = (await box.execute_command("cat /proc/self/status")).stdout
        rows = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {rows[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert (rows["NoNewPrivs"], rows["Seccomp"]) == ("1", "2")
        users = set(rows["Uid"].split())
        assert users == {str(os.getuid())} if as_caller() else "0" not in users
        assert (await box.execute_command("ls /proc/self/fd")).stdout.split()[:3] == ["0", "1", "2"]
        listed = (await box.execute_command("ls /proc/self/fd")).stdout.split()
        assert len(listed) == 4  # and the one that lists


async def test_nobody_inside_can_look_into_what_serves_it() -> None:
    async with LandlockSandbox() as box:
        code = (
            "parent = os.getppid()\n"
            "for name in ('environ', 'mem', 'maps', 'fd', 'cwd'):\n"
            "    try:\n"
            "        p = f'/proc/{parent}/{name}'\n"
            "        (os.listdir if name == 'fd' else os.readlink if name == 'cwd' else open)(p)\n"
            "        print('looked into', name)\n"
            "    except OSError as error: print(errno.errorcode[error.errno])\n"
            "os.kill(parent, 9)"
        )
        assert set((await said(box, code)).split()) <= {"EACCES", "EPERM"}
        assert (await box.execute_command("echo alive")).stdout == "alive\n"


async def test_an_older_kernels_walls_are_attested() -> None:
    async with Unscoped() as box:
        assert box.isolation.guards["landlock_scopes"] == "off"
        assert box.isolation.versions["landlock"] == "5"
        assert (await box.execute_command("echo works")).stdout == "works\n"
    with pytest.raises(IsolationUnavailableError, match="landlock_scopes"):
        await Unscoped({"require": ["landlock_scopes"]}).start()


@pytest.mark.parametrize(
    "more", [{"rootfs": "/usr"}, {"volumes": {"/usr": {"bind": "/data", "mode": "ro"}}},
             {"network_enabled": True}, {"on_owner_death": "keep"}],
)  # fmt: skip
async def test_what_it_cannot_do_is_refused(more: dict[str, object]) -> None:
    with pytest.raises((CapabilityError, IsolationUnavailableError)):
        await LandlockSandbox(more).start()


# --- ends ---------------------------------------------------------------------------------------

STORM = """
import os, sys, time
marker = sys.argv[1]
if os.fork() == 0:
    os.setsid()
    until = time.monotonic() + 60
    while time.monotonic() < until:  # always somebody new, and his parent gone
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", [marker, "600"])
        time.sleep(0.001)
print("begun", flush=True)
"""


@pytest.mark.parametrize("weak", [LandlockSandbox, Unscoped])
async def test_daemons_that_always_fork_end_with_the_sandbox(weak: type[LandlockSandbox]) -> None:
    marker = f"storm-{weak.__name__}-{os.getpid()}"
    async with weak({"pids_limit": 200}) as box:
        await box.files.write("storm.py", STORM)
        started = await box.execute_command(
            f"python3 storm.py {marker} >/dev/null 2>&1; echo ok", timeout=20
        )
        assert started.stdout == "ok\n"
        wait_for_processes(marker, 2)
    assert wait_until_gone(marker, 2.0) == []


@pytest.mark.parametrize("weak", [LandlockSandbox, Unscoped])
async def test_daemons_that_always_fork_end_with_a_time_out(weak: type[LandlockSandbox]) -> None:
    marker = f"late-{weak.__name__}-{os.getpid()}"
    async with weak({"pids_limit": 200}) as box:
        await box.files.write("storm.py", STORM)
        result = await box.execute_command(f"python3 storm.py {marker}; sleep 600", timeout=1)
        assert result.verdict == "wall_timeout"
        assert wait_until_gone(marker, 2.0) == []
        assert (await box.execute_command("echo alive")).stdout == "alive\n"


async def test_who_stores_too_much_is_ended() -> None:
    async with LandlockSandbox({"disk_limit": "8m"}) as box:
        code = "for n in range(100):\n    open(str(n), 'wb').write(bytes(1 << 20))\n"
        code += "import time; time.sleep(20)\n"
        result = await box.run_code(code, timeout=30)
        assert result.verdict == "disk_limit"
        small = await box.execute_command("rm -rf *; echo again > x; cat x")
        assert small.stdout == "again\n"
    async with LandlockSandbox({"disk_limit": "512m"}) as box:
        result = await box.run_code(code.replace("sleep(20)", "sleep(0.5)"), timeout=30)
        assert result.verdict == "ok"


async def test_who_stores_too_many_files_is_ended_where_empty_ones_take_no_bytes(
    in_memory: Path,
) -> None:
    many = "for n in range(1100):\n    open(str(n), 'w').close()\nimport time; time.sleep(20)\n"
    more = "import time\nfor n in range(800):\n    open(f'more{n}', 'w').close(); time.sleep(.01)\n"
    async with LandlockSandbox({"disk_limit": "8m"}) as box:
        assert box.config.working_dir.startswith(str(in_memory))
        assert (await box.run_code(many, timeout=30)).verdict == "disk_limit"
        # Whoever finds it full of files may store bytes, remove files, and make no more of them.
        result = await box.execute_command("echo again > 1; sleep 0.3; cat 1")
        assert (result.verdict, result.stdout) == ("ok", "again\n")
        assert (await box.run_code(more + "time.sleep(20)", timeout=30)).verdict == "disk_limit"
        assert (await box.execute_command("rm -rf *; echo > x; ls")).stdout == "x\n"
        assert (await box.run_code("open('y', 'w')")).verdict == "ok"


async def test_who_finds_far_too_many_files_adds_none() -> None:
    more = (
        "import time\nfor n in range(2000):\n    open(f'more{n}', 'w').close(); time.sleep(.01)\n"
    )
    async with LandlockSandbox({"disk_limit": "8m"}) as box:
        for number in range(3000):  # as if somebody had been quicker than the first look
            (Path(box.config.working_dir) / str(number)).touch()
        await box.execute_command("sleep 0.5")  # may be held to blame for the last of them
        assert (await box.execute_command("sleep 0.5")).verdict == "ok"
        assert (await box.run_code(more, timeout=60)).verdict == "disk_limit"


async def test_a_tree_deeper_than_a_path_can_be_is_removed() -> None:
    code = "for _ in range(3000):\n    os.mkdir('d' * 50); os.chdir('d' * 50)\nopen('f', 'w')\n"
    async with LandlockSandbox() as box:
        folder = Path(box.config.working_dir).parent
        await box.run_code("import os\n" + code + "os.chmod('.', 0)", timeout=30)
    assert not folder.exists()


async def test_a_keeper_that_is_killed_takes_its_sandbox_along() -> None:
    marker = f"orphan-{os.getpid()}"
    async with LandlockSandbox() as box, LandlockSandbox() as neighbour:
        await box.execute_command(f"setsid sh -c 'exec -a {marker} sleep 600' >/dev/null 2>&1 &"
                                  .replace("sh -c", "bash -c"))  # fmt: skip
        daemon = wait_for_processes(marker)[0]
        with open(f"/proc/{daemon}/stat") as file:
            keeper = int(file.read().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        assert wait_until_gone(marker) == []
        assert (await neighbour.execute_command("echo alive")).stdout == "alive\n"


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def end(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_door_that_is_killed_before_it_stands_is_made_again() -> None:
    """Who kills a run one by one may do that before he knows of it. How often it is killed in time
    is the machine's to say."""
    async with LandlockSandbox() as box:
        marker = f"beside-{os.getpid()}"
        command = await box.start_command(["bash", "-c", f"exec -a {marker} sleep 600"])
        daemon = wait_for_processes(marker)[0]
        with open(f"/proc/{daemon}/stat") as file:
            keeper = int(file.read().rpartition(")")[2].split()[1])
        for _ in range(30):
            before = set(children_of(keeper))
            end(before - {daemon})
            with anyio.fail_after(20):
                while not (fresh := set(children_of(keeper)) - before):
                    await anyio.sleep(0)
            end(fresh)
            assert (await box.execute_command("echo alive")).stdout == "alive\n"
        await command.kill()
