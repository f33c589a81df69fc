"""What a live sandbox looks like from outside: the facts that no program in it can forge."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes._process_request import rlimits
from ms_enclave.boxes.docker_sandbox import DockerSandbox
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.model import ProcessSandboxConfig
from tests.security.boxes import ColdSandbox, NoGroupsSandbox, find_processes, namespaces, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox]
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
THREADS = """
import threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
import subprocess, sys
subprocess.run(['sleep', sys.argv[1]])
"""


async def live_processes(box: ProcessSandbox, group: anyio.abc.TaskGroup) -> list[int]:
    """Pids of a Python program with threads, of its child, and of a shell's child."""
    marker = f"60.{secrets.randbelow(10**9)}"

    async def run() -> None:
        await box.run_code(THREADS, args=[marker])

    async def run_shell() -> None:
        await box.execute_command(f"sleep {marker}; true")

    group.start_soon(run)
    group.start_soon(run_shell)
    with anyio.fail_after(20):
        while len(found := find_processes(marker)) < 2:
            await anyio.sleep(0.01)
    parents = [int(status_of(pid)["PPid"]) for pid in found]
    return [*found, *(pid for pid in parents if namespaces(pid) == namespaces(found[0]))]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_task_of_a_user_is_behind_every_wall(kind: type[ProcessSandbox]) -> None:
    async with kind() as box, anyio.create_task_group() as group:
        pids = await live_processes(box, group)
        assert len(pids) >= 3
        host = namespaces("self")
        for pid in pids:
            inside = namespaces(pid)
            assert not {name for name in host if host[name] == inside[name]}
            for task in os.listdir(f"/proc/{pid}/task"):
                row = status_of(pid, int(task))
                assert row["Seccomp"] == "2"
                assert row["NoNewPrivs"] == "1"
                assert {row[name] for name in CAPABILITIES} == {"0" * 16}
                assert "0" not in row["Uid"].split()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_outside_id_is_root(kind: type[ProcessSandbox]) -> None:
    async with kind() as box, anyio.create_task_group() as group:
        for pid in await live_processes(box, group):
            for name in ("uid_map", "gid_map"):
                for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                    _, outside, _ = (int(word) for word in line.split())
                    assert outside != 0
                    if os.geteuid() == 0:
                        assert outside >= 100_000
        group.cancel_scope.cancel()


async def test_two_sandboxes_share_no_id_and_no_namespace() -> None:
    async with ProcessSandbox() as one, ProcessSandbox() as two, anyio.create_task_group() as group:
        first = (await live_processes(one, group))[0]
        second = (await live_processes(two, group))[0]
        shared = set(namespaces(first).values()) & set(namespaces(second).values())
        assert not shared
        if os.geteuid() == 0:
            assert status_of(first)["Uid"] != status_of(second)["Uid"]
        group.cancel_scope.cancel()


async def test_the_init_of_a_slot_has_nothing_to_give() -> None:
    async with ProcessSandbox() as box, anyio.create_task_group() as group:
        pid = (await live_processes(box, group))[0]
        space = namespaces(pid)["pid"]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                row = status_of(int(entry.name))
                same = os.readlink(entry / "ns" / "pid") == space
            except OSError:
                continue
            if same and row["NSpid"].split()[-1] == "1":
                assert {row[name] for name in CAPABILITIES} == {"0" * 16}
                assert row["Seccomp"] == "2"
                break
        else:
            pytest.fail("the slot has no init")
        group.cancel_scope.cancel()


async def test_whoever_serves_it_stands_in_its_root_and_not_in_the_hosts() -> None:
    async with ProcessSandbox() as box, anyio.create_task_group() as group:
        pid = (await live_processes(box, group))[0]
        station = next(
            each for each in ancestors(pid) if namespaces(each)["pid"] != namespaces(pid)["pid"]
        )
        for each in (pid, station):
            folder, root = (os.stat(f"/proc/{each}/{name}") for name in ("cwd", "root"))
            assert os.path.samestat(folder, root) is (each == station)
            assert not os.path.samestat(root, os.stat("/"))
        group.cancel_scope.cancel()


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        pid = int(status_of(pid)["PPid"])


# --- the golden description ---------------------------------------------------------------------

DESCRIBE = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None)
def rows(path):
    with open(path) as file:
        return file.read().splitlines()
status = dict(line.split(":\\t", 1) for line in rows("/proc/self/status") if ":\\t" in line)
limits = [line[26:68].split() for line in rows("/proc/self/limits")[1:]]
wanted = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
          "Seccomp", "Seccomp_filters", "NSpid", "SigBlk", "PPid", "TracerPid")
mounts = []
for line in rows("/proc/self/mountinfo"):
    words = line.split()
    rest = words[words.index("-") + 1:]
    mounts.append([words[4], words[5], rest[0], rest[2], " ".join(words[6:words.index("-")])])
json.dump({
    "status": {name: status[name].split() for name in wanted},
    "limits": dict(zip([line[:25].strip() for line in rows("/proc/self/limits")[1:]], limits)),
    "mounts": mounts,
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")
                          if os.path.lexists("/proc/self/fd/" + name)),
    "environment": sorted(os.environ),
    "secure bits": libc.prctl(27, 0, 0, 0, 0),
    "user namespaces": int(rows("/proc/sys/user/max_user_namespaces")[0]),
    "oom": int(rows("/proc/self/oom_score_adj")[0]),
    "host name": os.uname().nodename,
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
}, sys.stdout)
"""

STATUS = {
    "Uid": ["1000"] * 4, "Gid": ["1000"] * 4, "Groups": [], "NoNewPrivs": ["1"], "Seccomp": ["2"],
    "Seccomp_filters": ["1"], "SigBlk": ["0" * 16], "PPid": ["0"], "TracerPid": ["0"],
    **{name: ["0" * 16] for name in CAPABILITIES},
}  # fmt: skip
LIMITS = {
    "Max core file size": "1", "Max open files": "1024", "Max locked memory": "65536",
    "Max pending signals": "1024", "Max msgqueue size": "65536", "Max nice priority": "0",
    "Max realtime priority": "0",
}  # fmt: skip
MOUNTS = {
    "/": ("ro nosuid nodev", "tmpfs", {"size=8192k", "nr_inodes=4096", "mode=755"}),
    "/proc": ("rw nosuid nodev noexec", "proc", {"hidepid=invisible"}),
    "/proc/bus": ("ro nosuid nodev noexec", "proc", {"hidepid=invisible"}),
    "/proc/fs": ("ro nosuid nodev noexec", "proc", {"hidepid=invisible"}),
    "/proc/irq": ("ro nosuid nodev noexec", "proc", {"hidepid=invisible"}),
    "/proc/sys": ("ro nosuid nodev noexec", "proc", {"hidepid=invisible"}),
    "/dev/shm": ("rw nosuid nodev", "tmpfs", {"size=65536k", "nr_inodes=1024"}),
    "/dev/pts": ("rw nosuid noexec", "devpts", {"mode=620", "ptmxmode=666", "max=16"}),
    "/tmp": ("rw nosuid nodev", "overlay", {"userxattr"}),
    "/sandbox": ("rw nosuid nodev", "overlay", {"userxattr"}),
}
"""By target: flags, kind, and options that it has to have."""
MASKED = {
    "acpi", "asound", "cmdline", "config.gz", "diskstats", "interrupts", "iomem", "kallsyms",
    "kcore", "key-users", "keys", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats",
    "locks", "modules", "partitions", "sched_debug", "scsi", "slabinfo", "timer_list",
    "timer_stats", "vmallocinfo",
}  # fmt: skip
DEVICES = {"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}


@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox])
async def test_a_program_has_exactly_what_it_is_to_have(kind: type[ProcessSandbox]) -> None:
    async with kind() as box:
        runs = [
            await box.run_code(DESCRIBE),
            await box.execute_command(["python3", "-c", DESCRIBE]),
        ]
    for result in runs:
        assert result.exit_code == 0, result.stderr
        seen = json.loads(result.stdout)
        assert {name: seen["status"][name] for name in STATUS} == STATUS
        assert len(seen["status"]["NSpid"]) == 1
        for name, value in LIMITS.items():
            assert seen["limits"][name] == [value, value], name
        assert int(seen["limits"]["Max file size"][1]) < 1 << 40
        assert int(seen["limits"]["Max stack size"][1]) <= 64 << 20
        assert int(seen["limits"]["Max processes"][1]) < 1 << 12
        assert seen["descriptors"] in ([0, 1, 2], [0, 1, 2, 3])  # 3 is a run's own channel
        assert set(seen["environment"]) <= {"HOME", "LANG", "LC_CTYPE", "PATH"}
        assert seen["secure bits"] == 0xEB
        assert (seen["user namespaces"], seen["oom"], seen["host name"]) == (0, 0, "sandbox")
        assert len(seen["processes"]) == 1
        check_mounts(seen["mounts"])


CALLER = """
import json, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.umask(0)
os.environ["SECRET_OF_THE_CALLER"] = "secret"
import asyncio
from tests.security import test_posture
asyncio.run(test_posture.describe(sys.argv[1]))
"""


async def describe(kind: str) -> None:
    """Print what programs have whose caller has much."""
    kinds = {each.__name__: each for each in KINDS}
    async with kinds[kind]() as box:
        print((await box.run_code(DESCRIBE)).stdout)


def test_the_limits_of_a_program_are_these() -> None:
    found = rlimits(ProcessSandboxConfig().resolve_limits(), frozenset({"memory", "pids", "cpu"}))
    assert {number: hard for number, (_, hard) in found.items()} == {
        1: (256 << 20) + (1 << 20), 3: 64 << 20, 4: 1, 6: 136, 7: 1024, 8: 65536, 11: 1024,
        12: 65536, 13: 0, 14: 0,
    }  # fmt: skip
    assert {number: soft for number, (soft, _) in found.items() if number != 3} == {
        number: hard for number, (_, hard) in found.items() if number != 3
    }
    config = ProcessSandboxConfig(memory_limit="100m", cpu_time_limit=5.5, file_size_limit="1m")
    alone = rlimits(config.resolve_limits(), frozenset())
    without = {1: (1 << 20, 1 << 20), 2: (456 << 20, 456 << 20), 6: (128, 128)}
    assert alone == {**found, **without, 0: (7, 8)}
    config = config.model_copy(update={"cpu_time_limit": None})
    assert rlimits(config.resolve_limits(), frozenset()) == {**found, **without}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has so much")
@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox])
def test_what_the_caller_has_more_does_not_come_along(kind: type[ProcessSandbox]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLER, kind.__name__],
        extra_groups=[4, 27], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    seen = json.loads(done.stdout)
    assert {name: seen["status"][name] for name in STATUS} == STATUS
    for name, value in LIMITS.items():
        assert seen["limits"][name] == [value, value], name
    assert set(seen["environment"]) <= {"HOME", "LANG", "LC_CTYPE", "PATH"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make such mounts")
def test_what_the_host_mounts_later_does_not_come_along() -> None:
    """With every mount of the caller's in a group of peers, as where a service manager runs."""
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared",
         sys.executable, "-c", CALLER, ProcessSandbox.__name__],
        capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    check_mounts(json.loads(done.stdout)["mounts"])


@pytest.mark.docker
@pytest.mark.parametrize(
    ("hardening", "given"),
    [("default", {0, 1, 3, 5, 6, 7}), ("strict", set[int]())],  # CAP_CHOWN to CAP_SETUID
    ids=["default", "strict"],
)
async def test_a_container_can_be_given_no_more_than_these(hardening: str, given: set[int]) -> None:
    """What a program has may be less; what it could ever be given is its bounding set."""
    async with DockerSandbox({"hardening": hardening}) as box:
        shown = (await box.execute_command("grep ^CapBnd /proc/self/status")).stdout
    bound = int(shown.split()[1], 16)
    assert {number for number in range(64) if bound >> number & 1} == given


def check_mounts(mounts: list[list[str]]) -> None:
    shown = {target: (flags.split(","), kind, set(options.split(",")))
             for target, flags, kind, options, _ in mounts}  # fmt: skip
    assert not {target: peers for target, *_, peers in mounts if peers}
    for target, (flags, kind, options) in MOUNTS.items():
        assert [word for word in shown[target][0] if not word.endswith("atime")] == flags.split()
        assert shown[target][1] == kind
        assert options <= shown[target][2], target
    assert {target for target in shown if target.startswith("/dev/")} == {
        *DEVICES, "/dev/shm", "/dev/pts",
    }  # fmt: skip
    masked = {f"/proc/{name}" for name in MASKED if os.path.exists(f"/proc/{name}")}
    assert {target for target in shown if target.startswith("/proc/")} - set(MOUNTS) == masked
    for target in set(shown) - set(MOUNTS) - DEVICES:
        assert {"ro", "nosuid", "nodev"} <= set(shown[target][0]), target
