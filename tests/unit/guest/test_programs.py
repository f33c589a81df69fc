"""Programs run by a real guest: streams, ends, limits, and all that they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.channel import SpawnRequest
from ms_enclave.errors import ConfigError
from ms_enclave.model.limits import ResolvedLimits
from tests.support.guests import AHEAD, PROGRAM, local_guest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import ByteReceiveStream

    from ms_enclave.channel import Exit, Process
    from tests.support.guests import Guest

ENV = {"PATH": os.defpath, "NAME": "é"}
MIB = 1 << 20
OF_PROGRAMS = ~(0b11 << 31)
"""Signals but 32 and 33: those are the C library's own, which ignores them where it spawns."""


def request(*argv: str, **options: Any) -> SpawnRequest:
    options.setdefault("cwd", ".")
    options.setdefault("env", ENV)
    return SpawnRequest(argv=argv or None, **options)


async def read_all(stream: ByteReceiveStream) -> bytes:
    data = bytearray()
    try:
        while True:
            data += await stream.receive()
    except anyio.EndOfStream:
        return bytes(data)


async def run(guest: Guest, wanted: SpawnRequest, stdin: bytes = b"") -> tuple[Exit, bytes, bytes]:
    """Run to the end, everything at the same time."""
    process = await guest.connection.spawn(wanted)
    try:
        async with anyio.create_task_group() as group:

            async def feed() -> None:
                if process.stdin is not None:
                    try:
                        await process.stdin.send(stdin)
                    except anyio.BrokenResourceError:
                        return
                    await process.stdin.aclose()

            found: dict[str, bytes] = {}

            async def take(name: str) -> None:
                found[name] = await read_all(getattr(process, name))

            group.start_soon(feed)
            group.start_soon(take, "stdout")
            group.start_soon(take, "stderr")
        return await process.wait(), found["stdout"], found["stderr"]
    finally:
        await process.aclose()


def alive(marker: str) -> list[int]:
    """Processes with a word in their command line."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(entry))
    return found


async def appears(path: Any) -> None:
    with anyio.fail_after(10):
        while not path.exists():
            await asyncio.sleep(0.005)


def below(pid: int) -> list[int]:
    """The children of a process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return []


def descriptors(pid: int) -> list[str]:
    try:
        return sorted(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return []


async def waits(guest: Guest) -> int:
    """What waits for the next program, once it does."""
    with anyio.fail_after(10):
        while True:
            for pid in below(guest.child.pid):
                if is_waiting(pid):
                    return pid
            await asyncio.sleep(0.005)


def is_waiting(pid: int) -> bool:
    """Whether a process has what it gets its orders by, and nothing else."""
    numbers = descriptors(pid)
    try:
        places = {os.readlink(f"/proc/{pid}/fd/{number}") for number in numbers}
    except OSError:
        return False
    return numbers == ["0", "1", "2", "3"] and [place[:6] for place in places] == ["socket"]


async def is_dead(pid: int) -> None:
    """Wait until a process has ended, whether it was reaped or not."""
    with anyio.fail_after(10):
        while True:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] in "ZX":
                        return
            except (FileNotFoundError, ProcessLookupError):
                return
            await asyncio.sleep(0.005)


@pytest.fixture(params=[PROGRAM, AHEAD], ids=["asked", "ahead"])
def how(request: pytest.FixtureRequest) -> str:
    """Whether a guest makes a program's processes when it is asked for it, or before."""
    return request.param


@pytest.fixture
async def guest(python: str, how: str) -> AsyncGenerator[Guest]:
    """A guest; of one that makes them before, they are there."""
    async with local_guest(python, how) as started:
        if how is AHEAD:
            await run(started, request("true"))
            await waits(started)
        yield started


@pytest.fixture
async def early(python: str) -> AsyncGenerator[Guest]:
    """A guest with the processes of the next program there."""
    async with local_guest(python, AHEAD) as started:
        await run(started, request("true"))
        await waits(started)
        yield started


async def test_streams_come_back_apart_and_the_status_too(guest: Guest) -> None:
    ended, out, err = await run(guest, request("sh", "-c", "echo out; echo err >&2; exit 5"))
    assert (ended.exit_code, ended.signal, ended.cause) == (5, None, None)
    assert (out, err) == (b"out\n", b"err\n")
    assert ended.source == "rusage"
    assert 0 <= ended.cpu_user < 5
    assert ended.peak_memory
    assert ended.peak_memory > 100_000


async def test_a_signal_is_told_apart_from_a_status(guest: Guest) -> None:
    ended, _, _ = await run(guest, request("sh", "-c", "kill -SEGV $$"))
    assert (ended.exit_code, ended.signal) == (139, signal.SIGSEGV)


async def test_it_has_its_folder_its_environment_and_no_more_descriptors(guest: Guest) -> None:
    (guest.folder / "sub").mkdir()
    _, out, _ = await run(guest, request("sh", "-c", "pwd; env", cwd="sub"))
    lines = out.decode().splitlines()
    assert lines[0] == f"{guest.folder}/sub"
    assert {line for line in lines[1:] if line[:2] not in ("_=", "PW", "SH", "OL")} == {
        f"PATH={os.defpath}",
        "NAME=é",
    }
    _, out, _ = await run(guest, request("ls", "/proc/self/fd"))
    assert out.split() == [b"0", b"1", b"2", b"3"]  # the last is the folder that it reads
    _, out, _ = await run(guest, request("sh", "-c", "umask; ulimit -c; cat /proc/self/status"))
    assert out.startswith((b"0022\n0\n", b"0022\n1\n"))
    status = dict(line.split(":\t", 1) for line in out.decode().splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & OF_PROGRAMS == 0


async def test_standard_input_is_fed_or_empty(guest: Guest) -> None:
    _, out, _ = await run(guest, request("cat"))
    assert out == b""
    data = bytes(range(256)) * 4000
    _, out, _ = await run(guest, request("cat", stdin=True), data)
    assert out == data


async def test_a_program_need_not_read_its_input(guest: Guest) -> None:
    ended, out, _ = await run(
        guest, request("sh", "-c", "exec <&-; echo x", stdin=True), bytes(MIB)
    )
    assert (ended.exit_code, out) == (0, b"x\n")


async def test_who_feeds_a_program_that_closed_its_input_is_told(guest: Guest) -> None:
    process = await guest.connection.spawn(request("sh", "-c", "exec <&-; sleep 100", stdin=True))
    assert process.stdin is not None
    with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
        while True:
            await process.stdin.send(bytes(1000))
    await process.aclose()


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (("no-such-program",), 127, b"no-such-program: not found"),
        (("/no/such/program",), 127, b"not found"),
        (("./plain",), 126, b"Permission denied"),
        (("/",), 126, b"Permission denied"),
        (("",), 127, b"not found"),
    ],
)
async def test_what_cannot_be_run_ends_as_in_a_shell(
    guest: Guest, argv: tuple[str, ...], status: int, text: bytes
) -> None:
    (guest.folder / "plain").write_text("x")
    ended, out, err = await run(guest, request(*argv))
    assert (ended.exit_code, ended.cause, out) == (status, None, b"")
    assert text in err


async def test_a_script_without_an_interpreter_line_runs_in_the_shell(guest: Guest) -> None:
    (guest.folder / "script").write_text('echo "$0" "$1"\n')
    (guest.folder / "script").chmod(0o755)
    ended, out, _ = await run(guest, request("./script", "a b"))
    assert (ended.exit_code, out) == (0, b"./script a b\n")


@pytest.mark.parametrize("options", [{"cwd": "missing"}, {"user": "no-such-user"}])
async def test_where_and_who_that_cannot_be_is_126(guest: Guest, options: dict[str, Any]) -> None:
    ended, _, err = await run(guest, request("true", **options))
    assert ended.exit_code == 126
    assert b"cannot" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("user", ["nobody", 65534, "65534", 54321])
async def test_it_runs_as_the_user_asked_for(guest: Guest, user: str | int) -> None:
    os.chmod(guest.folder, 0o755)
    _, out, err = await run(guest, request("sh", "-c", "id -u; id -G", user=user, cwd="/"))
    number = 54321 if user == 54321 else 65534
    assert out.split() == [str(number).encode(), str(number).encode()], err


async def test_code_runs_as_main_whatever_its_length(guest: Guest) -> None:
    code = "import sys\nprint(__name__, sys.argv[1:], sys.stdin.read())\n"
    for text in (code, code + "#" * 300_000):
        wanted = request(code=text, args=("a", "b c"), stdin=True)
        ended, out, err = await run(guest, wanted, b"in")
        assert (ended.exit_code, out) == (0, b"__main__ ['a', 'b c'] in\n"), err


async def test_code_of_more_than_a_request_holds_is_refused(guest: Guest) -> None:
    with pytest.raises(ConfigError):
        await guest.connection.spawn(request(code="#" * (9 * MIB)))
    assert await guest.connection.exists(".")


@pytest.mark.parametrize(
    "options", [{"cwd": "a\0"}, {"env": {"A": "\0"}}, {"env": {"A=": "x"}}, {"env": {"": "x"}}]
)
async def test_what_no_program_can_be_given_is_refused(
    guest: Guest, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        await guest.connection.spawn(request("true", **options))
    with pytest.raises(ConfigError):
        await guest.connection.spawn(request("echo", "\0"))


async def test_arguments_that_the_kernel_refuses_end_the_program(guest: Guest) -> None:
    ended, _, err = await run(guest, request("true", "x" * 200_000))
    assert ended.exit_code == 126
    assert b"too long" in err


async def test_limits_hold(guest: Guest) -> None:
    limits = ResolvedLimits(cpu_time=1, file_size=1000, nofile=20)
    ended, out, _ = await run(
        guest, request("sh", "-c", "ulimit -n; while :; do :; done", limits=limits)
    )
    assert (ended.signal, out) == (signal.SIGXCPU, b"20\n")
    assert ended.cpu_user + ended.cpu_system > 0.7  # the kernel's limit counts in ticks
    ended, _, _ = await run(guest, request("dd", "if=/dev/zero", "of=f", limits=limits))
    assert (ended.signal, (guest.folder / "f").stat().st_size) == (signal.SIGXFSZ, 1000)


async def test_signals_reach_the_program_and_an_ended_one_ignores_them(guest: Guest) -> None:
    code = "trap 'echo got; exit 4' USR1; : > ready; while :; do sleep 0.01; done"
    process = await guest.connection.spawn(request("sh", "-c", code))
    await appears(guest.folder / "ready")
    await process.send_signal(signal.SIGUSR1)
    assert (await process.wait()).exit_code == 4
    await process.send_signal(signal.SIGUSR1)
    assert await read_all(process.stdout) == b"got\n"
    await process.aclose()
    await process.aclose()


# --- what is left behind ---

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3):
            os.close(number)
        open("ready", "w").close()
        while True:
            time.sleep(0.01)
    os._exit(0)
os.wait()
if sys.argv[1] == "stay":
    time.sleep(100)
"""


async def test_kill_reaches_daemons_and_returns_when_all_are_gone(guest: Guest) -> None:
    process = await guest.connection.spawn(request(code=DAEMON, args=("stay", "marker-a")))
    await appears(guest.folder / "ready")
    assert len(alive("marker-a")) == 2
    with anyio.fail_after(5):
        await process.kill()
    assert alive("marker-a") == []
    assert (await process.wait()).signal == signal.SIGKILL
    await process.kill()
    await process.aclose()


async def test_a_daemon_of_a_program_that_ended_lives_until_it_is_killed(guest: Guest) -> None:
    process = await guest.connection.spawn(request(code=DAEMON, args=("go", "marker-b")))
    with anyio.fail_after(10):
        assert (await process.wait()).exit_code == 0
    assert len(alive("marker-b")) == 1
    await process.kill()
    assert alive("marker-b") == []
    await process.aclose()


async def test_closing_kills_what_runs_and_leaves_what_was_left(guest: Guest) -> None:
    process = await guest.connection.spawn(request(code=DAEMON, args=("stay", "marker-c")))
    await appears(guest.folder / "ready")
    await process.aclose()
    assert alive("marker-c") == []
    (guest.folder / "ready").unlink()
    process = await guest.connection.spawn(request(code=DAEMON, args=("go", "marker-d")))
    await process.wait()
    await process.aclose()
    assert len(alive("marker-d")) == 1
    # The guest takes it along when it ends: the leak check of this test proves it.


async def test_a_cancelled_start_leaves_nothing(guest: Guest) -> None:
    for pause in (0, 0.001, 0.003, 0.01):
        process = None
        with anyio.move_on_after(pause):
            process = await guest.connection.spawn(request("sh", "-c", "sleep 1000", "marker-e"))
        if process is not None:
            await process.aclose()
    with anyio.fail_after(10):
        while alive("marker-e"):
            await asyncio.sleep(0.01)


BOMB = """
import os, time
open("ready", "w").close()
while True:
    if os.fork() == 0:
        os.setsid()
    else:
        os._exit(0)
"""


async def test_a_chain_of_processes_that_replace_each_other_is_caught(guest: Guest) -> None:
    process = await guest.connection.spawn(request(code=BOMB, args=("marker-f",)))
    await appears(guest.folder / "ready")
    assert (await process.wait()).exit_code == 0
    with anyio.fail_after(20):
        await process.kill()
    assert alive("marker-f") == []
    await process.aclose()


SUPERVISOR_KILLER = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(1000)
"""


async def test_a_program_that_kills_its_supervisor_is_killed_with_its_children(
    guest: Guest,
) -> None:
    process = await guest.connection.spawn(request(code=SUPERVISOR_KILLER, args=("marker-g",)))
    with anyio.fail_after(10):
        assert (await process.wait()).signal == signal.SIGKILL
        await process.kill()
    assert alive("marker-g") == []
    await process.aclose()


async def test_a_program_that_stops_its_supervisor_is_killed_too(guest: Guest) -> None:
    code = "import os, time; os.kill(os.getppid(), 19); open('ready', 'w'); time.sleep(1000)"
    process = await guest.connection.spawn(request(code=code, args=("marker-h",)))
    await appears(guest.folder / "ready")
    with anyio.fail_after(3):
        await process.kill()
        assert (await process.wait()).signal == signal.SIGKILL
    assert alive("marker-h") == []
    await process.aclose()


async def test_what_was_closed_early_does_not_disturb_the_next_one(guest: Guest) -> None:
    for _ in range(5):  # descriptors get the same numbers again
        process = await guest.connection.spawn(request("sleep", "1000", stdin=True))
        await process.aclose()
        with anyio.fail_after(10):
            _, out, _ = await run(guest, request("cat", stdin=True), b"text")
        assert out == b"text"


async def test_a_background_child_that_holds_the_pipes_does_not_hold_up_the_end(
    guest: Guest,
) -> None:
    process = await guest.connection.spawn(request("sh", "-c", "echo first; sleep 1000 &"))
    with anyio.fail_after(10):
        assert (await process.wait()).exit_code == 0
        assert await process.stdout.receive() == b"first\n"
    await process.kill()
    assert await read_all(process.stdout) == b""
    await process.aclose()


# --- much ---


async def test_what_was_written_before_the_end_is_there_at_the_end(guest: Guest) -> None:
    for _ in range(20):
        process = await guest.connection.spawn(request("sh", "-c", "printf %05000d 0"))
        await process.wait()
        data = b""
        while len(data) < 5000:
            data += await process.stdout.receive()
        await process.aclose()


async def test_a_hundred_mebibytes_flow_in_bounded_memory(guest: Guest) -> None:
    process = await guest.connection.spawn(request("head", "-c", str(100 * MIB), "/dev/zero"))
    before, peak, size = guest.memory, 0, 0
    async with anyio.create_task_group() as group:
        group.start_soon(read_all, process.stderr)
        try:
            while True:
                size += len(await process.stdout.receive())
                if size % (8 * MIB) < 65536:
                    peak = max(peak, await anyio.to_thread.run_sync(lambda: guest.memory))
        except anyio.EndOfStream:
            pass
    assert size == 100 * MIB
    assert peak - before < 8 * MIB
    await process.aclose()


async def test_output_that_nobody_reads_stops_the_program_and_nothing_else(guest: Guest) -> None:
    process = await guest.connection.spawn(request("yes"))
    before = guest.memory
    for _ in range(50):
        assert await guest.connection.exists(".")
        await asyncio.sleep(0.01)
    assert guest.memory - before < 8 * MIB
    with anyio.fail_after(5):
        await process.kill()
        assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()


async def test_many_run_at_the_same_time(guest: Guest) -> None:
    async def one(number: int) -> None:
        wanted = request("sh", "-c", f"cat; echo {number}", stdin=True)
        ended, out, _ = await run(guest, wanted, b"x" * 50_000)
        assert (ended.exit_code, out) == (0, b"x" * 50_000 + b"%d\n" % number)

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(one, number)


async def test_a_receive_that_is_cancelled_loses_nothing(guest: Guest) -> None:
    code = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.001; done"
    process: Process = await guest.connection.spawn(request("sh", "-c", code))
    data = b""
    try:
        while True:
            with anyio.move_on_after(0.0005):
                data += await process.stdout.receive(3)
    except anyio.EndOfStream:
        pass
    assert data == b"".join(b"%d\n" % number for number in range(200))
    await process.aclose()


async def test_what_was_made_before_starts_the_program(early: Guest) -> None:
    pid = await waits(early)
    _, out, _ = await run(early, request("sh", "-c", "echo $PPID $NAME; cat", stdin=True), b"in")
    assert out.decode() == f"{pid} é\nin"
    assert await waits(early) == pid  # nothing is left of that one
    _, out, _ = await run(early, request("sh", "-c", "echo $PPID"))
    assert out.decode() == f"{pid}\n"


async def test_each_program_has_its_own_limits_and_nothing_of_the_last_one(early: Guest) -> None:
    code = "#" * 200_000 + "\nimport os, resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    for number in (100, 200, 200, 20, 200):
        limits = ResolvedLimits(nofile=number)
        _, out, _ = await run(early, request(code=code, limits=limits))
        assert out.decode() == f"{number}\n"
        await waits(early)


async def test_who_looks_after_what_a_program_left_gets_no_other(early: Guest) -> None:
    pid = await waits(early)
    process = await early.connection.spawn(request("sh", "-c", "sleep 1000 & echo $!"))
    assert (await process.wait()).exit_code == 0
    left = int(await process.stdout.receive())
    _, out, _ = await run(early, request("sh", "-c", "echo $PPID"))
    assert int(out) == await waits(early) != pid
    await process.kill()
    await is_dead(left)
    await is_dead(pid)
    await process.aclose()


async def test_after_a_killed_one_the_next_program_starts(early: Guest) -> None:
    pid = await waits(early)
    process = await early.connection.spawn(request("sleep", "1000"))
    await process.kill()
    await process.aclose()
    await is_dead(process.pid)
    _, out, _ = await run(early, request("sh", "-c", "echo $PPID"))
    assert int(out) == pid


async def test_who_looks_after_an_unwanted_program_ends_with_it(early: Guest) -> None:
    pid = await waits(early)
    process = await early.connection.spawn(request("sleep", "1000"))
    with anyio.fail_after(3):  # before anybody would have to kill it, too
        await process.abandon()
        await is_dead(process.pid)
        await is_dead(pid)
    _, out, _ = await run(early, request("sh", "-c", "echo $PPID"))
    assert int(out) == await waits(early) != pid


@pytest.mark.parametrize("limits", [{"nofile": 100}, {"nofile": 20}, {"cpu_time": 9}])
async def test_what_was_made_before_leaves_the_program_nothing_else(
    early: Guest, limits: dict[str, int]
) -> None:
    (early.folder / "inner").mkdir()
    options: dict[str, Any] = {"cwd": "inner", "limits": ResolvedLimits(**limits)}
    line = "umask; pwd; ulimit -n; exec ls /proc/self/fd"
    _, out, _ = await run(early, request("sh", "-c", line, **options))
    given = ["0022", str(early.folder / "inner"), str(options["limits"].nofile)]
    assert out.decode().split() == [*given, "0", "1", "2", "3"]
    await waits(early)
    _, out, _ = await run(early, request("cat", "/proc/self/status", **options))
    masks = dict(line.split(":") for line in out.decode().splitlines() if line[:3] == "Sig")
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(masks[name], 16) & OF_PROGRAMS == 0, name


async def test_nothing_waits_while_a_program_runs(early: Guest) -> None:
    process = await early.connection.spawn(request("sleep", "1000"))
    await run(early, request("true"))
    assert await early.connection.exists(".")  # a round later
    with anyio.fail_after(10):  # what has looked after the second one is about to end
        while any(is_waiting(pid) for pid in below(early.child.pid)):
            await asyncio.sleep(0.005)
    await process.aclose()
    await waits(early)


async def test_what_was_made_before_and_killed_is_made_anew(early: Guest) -> None:
    for _ in range(3):
        pid = await waits(early)
        os.kill(pid, signal.SIGKILL)
        await is_dead(pid)
        ended, out, _ = await run(early, request("echo", "well"))
        assert (ended.exit_code, out) == (0, b"well\n")


async def test_what_was_made_before_and_stopped_goes_on(early: Guest) -> None:
    os.kill(await waits(early), signal.SIGSTOP)
    with anyio.fail_after(10):
        ended, out, _ = await run(early, request("echo", "well"))
    assert (ended.exit_code, out) == (0, b"well\n")


async def test_what_is_too_long_to_be_told_runs_all_the_same(early: Guest) -> None:
    words = [str(number) for number in range(60_000)]
    _, out, _ = await run(early, request("printf", "%s ", *words))
    assert out.split() == [word.encode() for word in words]
    await waits(early)


async def test_what_waits_ends_with_its_guest(early: Guest) -> None:
    pid = await waits(early)
    early.child.kill()
    await is_dead(pid)


@pytest.mark.parametrize(
    ("line", "seconds", "ends"),
    [
        ("echo out; echo err >&2", 20, True),
        ("sleep 600", 0.05, False),  # it goes on
        ("sleep 600 & echo out", 0.05, False),  # somebody else still has its output
        ("head -c 300000 /dev/zero; echo err >&2", 600, False),  # it is to be received first
    ],
)
async def test_whether_a_program_and_its_output_end_soon(
    guest: Guest, line: str, seconds: float, ends: bool
) -> None:
    process = await guest.connection.spawn(request("sh", "-c", line, brief=True))
    try:
        assert await process.ends_soon(seconds) is ends
        if ends:
            assert await read_all(process.stdout) == b"out\n"
            assert await read_all(process.stderr) == b"err\n"
    finally:
        await process.kill()
        await process.aclose()
