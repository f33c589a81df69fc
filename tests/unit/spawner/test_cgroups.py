"""Control groups: where they are found, and what is written to and read from them.

Where this machine's kernel cannot give the version that is tested, a folder with plain files stands
in for it: the code only opens files by name below a descriptor.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ms_enclave.spawner import cgroups
from ms_enclave.spawner.cgroups import Hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.spawner._shapes import GroupRow

V1_MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset
34 31 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
35 31 0:36 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
36 31 0:37 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
"""
V1_GROUPS = """\
5:pids:/user.slice
4:memory:/user.slice/session-3.scope
3:cpuset:/
2:cpu,cpuacct:/
1:name=systemd:/user.slice/session-3.scope
"""
HYBRID_MOUNT = "37 31 0:38 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
SCOPE = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-r5.scope"
DOCKER = "/docker/0123456789abcdef"


def summary(mounts: str, own: str) -> list[tuple[int, list[str], str]]:
    return [(h.version, h.controllers, h.path) for h in cgroups.discover(mounts, own)]


def test_version_1_is_found_by_what_each_tree_is_mounted_for() -> None:
    assert summary(V1_MOUNTS, V1_GROUPS) == [
        (1, ["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
        (1, ["memory"], "/sys/fs/cgroup/memory/user.slice/session-3.scope"),
        (1, ["pids"], "/sys/fs/cgroup/pids/user.slice"),
    ]


def test_a_hybrid_machine_has_both() -> None:
    found = summary(V1_MOUNTS + HYBRID_MOUNT, V1_GROUPS + "0::/user.slice\n")
    assert len(found) == 4
    assert found[-1] == (2, [], "/sys/fs/cgroup/unified/user.slice")


@pytest.mark.parametrize(
    ("own", "path"),
    [
        ("0::/\n", "/sys/fs/cgroup"),
        (f"0::{SCOPE}\n", f"/sys/fs/cgroup{SCOPE}"),
        # Somebody of that scope was here before, and whoever was in it waits in a leaf.
        (f"0::{SCOPE}/{cgroups.CALLERS}\n", f"/sys/fs/cgroup{SCOPE}"),
        (f"0::/{cgroups.CALLERS}\n", "/sys/fs/cgroup"),
    ],
)
def test_version_2_is_one_tree(own: str, path: str) -> None:
    assert summary(V2_MOUNT, own) == [(2, [], path)]


def test_a_container_sees_its_own_part_of_the_tree() -> None:
    mount = f"900 890 0:32 {DOCKER} /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
    assert summary(mount, f"4:memory:{DOCKER}\n") == [(1, ["memory"], "/sys/fs/cgroup/memory")]
    below = summary(mount, f"4:memory:{DOCKER}/init.scope\n")
    assert below == [(1, ["memory"], "/sys/fs/cgroup/memory/init.scope")]
    private = "900 890 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
    assert summary(private, "0::/\n") == [(2, [], "/sys/fs/cgroup")]


def test_a_tree_from_outside_of_our_namespace_is_left_alone() -> None:
    mount = "900 890 0:28 /../.. /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
    assert summary(mount, "0::/\n") == []


def test_a_machine_without_any_has_none() -> None:
    assert summary(V1_MOUNTS.splitlines()[0] + "\n", "") == []


def test_what_may_not_be_written_is_passed_over(tmp_path: Path) -> None:
    found = [Hierarchy(1, ["pids"], str(tmp_path / "not" / "there"))]
    assert cgroups.prepare(found, "ms-enclave-x", None) == []


@pytest.mark.parametrize("descriptors", [0, 1])
def test_groups_that_cannot_be_locked_are_not_left(tmp_path: Path, descriptors: int) -> None:
    trees = [tmp_path / name for name in ("memory", "pids")]
    for tree in trees:
        tree.mkdir()
    found = [Hierarchy(1, [tree.name], str(tree)) for tree in trees]
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + descriptors, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            cgroups.prepare(found, "ms-enclave-x", None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [list(tree.iterdir()) for tree in trees] == [[], []]
    assert os.dup(0) == free, "a descriptor was left open"
    os.close(free)


def test_groups_that_cannot_be_given_are_not_left(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        cgroups.prepare([Hierarchy(1, ["pids"], str(tmp_path))], "ms-enclave-x", 2**33)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_switched_on_where_somebody_elses_processes_are(tmp_path: Path) -> None:
    """For processes' sake: `pids` could be, and then nobody could enter any group below."""
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("1\n2\n")
    assert cgroups.usable(Hierarchy(2, [], str(tmp_path))) == []
    (ready,) = cgroups.prepare([Hierarchy(2, [], str(tmp_path))], "ms-enclave-x", None)
    os.close(ready.descriptor)
    assert ready.controllers == []
    assert (tmp_path / "cgroup.subtree_control").read_text() == ""
    assert (tmp_path / "cgroup.procs").read_text() == "1\n2\n"


def test_what_could_be_used_is_told_before_it_is(tmp_path: Path) -> None:
    top = Hierarchy(2, [], str(tmp_path))
    assert cgroups.usable(top) == []
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (tmp_path / "cgroup.procs").touch()
    assert cgroups.usable(top) == ["memory", "cpu"]
    assert cgroups.usable(Hierarchy(1, ["pids"], str(tmp_path))) == ["pids"]
    assert cgroups.usable(Hierarchy(1, ["pids"], str(tmp_path / "missing"))) == []


# --- a stand-in for version 2 -------------------------------------------------------------------


def fill(folder: Path, **files: str) -> None:
    """What the kernel puts into a new group."""
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max",
             "cgroup.kill", "cgroup.procs", "cgroup.subtree_control")  # fmt: skip
    for name in names:
        (folder / name).write_text("")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[cgroups.Station]:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield cgroups.Station(
        [{"version": 2, "controllers": ["memory", "pids", "cpu"], "fd": opened}]
    )  # fmt: skip
    os.close(opened)


def test_version_2_alone_holds_everything(tree: cgroups.Station) -> None:
    assert tree.source == "cgroup-v2"
    assert tree.complete
    assert tree.killing is tree.hierarchies[0]


def test_limits_of_version_2(tree: cgroups.Station, tmp_path: Path) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    group.limit(memory=1 << 20, pids=7, cpu=1.5)
    written = {
        name: (tmp_path / "box" / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert written == {
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "7",
        "cpu.max": "150000 100000",
    }


def test_limits_of_version_1(tmp_path: Path) -> None:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        station = cgroups.Station(
            [{"version": 1, "controllers": ["memory", "pids", "cpu", "cpuacct"], "fd": opened}]
        )
        group = station.group("box")
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness",
                 "pids.max", "cpu.cfs_period_us", "cpu.cfs_quota_us")  # fmt: skip
        for name in names:
            (tmp_path / "box" / name).write_text("")
        group.limit(memory=1 << 20, pids=7, cpu=1.5)
        written = {name: (tmp_path / "box" / name).read_text() for name in names}
    finally:
        os.close(opened)
    assert written == {
        "memory.limit_in_bytes": "1048576",
        "memory.memsw.limit_in_bytes": "1048576",
        "memory.swappiness": "0",
        "pids.max": "7",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
    }


def test_a_kernel_without_swap_limits_is_enough(tree: cgroups.Station, tmp_path: Path) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    (tmp_path / "box" / "memory.swap.max").unlink()
    group.limit(memory=1 << 20, pids=None, cpu=None)
    assert (tmp_path / "box" / "memory.max").read_text() == "1048576"
    assert (tmp_path / "box" / "pids.max").read_text() == ""


def test_a_swap_limit_that_could_not_be_tried_is_no_kernel_without_one(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    group._again = True  # its files stay open
    group.limit(memory=1 << 20, pids=None, cpu=None)
    (swap,) = [key for key in group._files if key[1] == "memory.swap.max"]
    os.close(group._files.pop(swap))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            group.limit(memory=1 << 20, pids=None, cpu=None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        group.close()


def test_a_run_has_a_group_with_controllers_of_its_own(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    first, second = group.child(), group.child()
    assert (tmp_path / "box" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    fill(tmp_path / "box" / "1")
    entry = tmp_path / "box" / "1" / "cgroup.procs"
    first.admit(4711)
    assert entry.read_text() == ""  # a starved group would hold up whoever sets it up
    first.settle(4711, 300_000)
    assert entry.read_text() == "4711"
    first.close()
    assert second.name == "box/2"


def test_a_new_process_is_born_in_the_group_of_its_run(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    run = group.child()
    fill(tmp_path / "box" / "1")
    folder, files = run.entrance()
    assert folder is not None
    assert os.fstat(folder).st_ino == (tmp_path / "box" / "1").stat().st_ino
    assert files == []
    run.settle(4711, 0, entered=True)
    assert (tmp_path / "box" / "1" / "cgroup.procs").read_text() == ""
    run.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(folder)


@pytest.mark.parametrize("whose", ["the run's", "the sandbox's"])
def test_it_joins_late_where_processor_time_may_have_run_out(
    tree: cgroups.Station, tmp_path: Path, whose: str
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    if whose == "the sandbox's":
        group.limit(memory=None, pids=None, cpu=0.5)
    run = group.child()
    fill(tmp_path / "box" / "1")
    if whose == "the run's":
        run.limit(memory=None, pids=None, cpu=0.5)
    assert run.entrance() == (None, [])
    run.settle(4711, 0, entered=True)
    assert (tmp_path / "box" / "1" / "cgroup.procs").read_text() == "4711"
    run.close()


def test_what_the_station_keeps_for_itself_is_moved_at_once(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("carriers")
    fill(tmp_path / "carriers")
    group.admit(4711, stays=True)
    assert (tmp_path / "carriers" / "cgroup.procs").read_text() == "4711"
    group.close()


def test_figures_of_version_2(tree: cgroups.Station, tmp_path: Path) -> None:
    group = tree.group("box")
    fill(
        tmp_path / "box",
        memory__events="low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 1\n",
        memory__peak="7340032\n",
        pids__events="max 3\n",
        cpu__stat="usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
    )
    figures = group.figures()
    assert (figures.oom_kills, figures.peak_memory) == (1, 7340032)
    assert (figures.refused_forks, figures.cpu) == (3, 1.5)


def test_a_kernel_that_keeps_no_peak_says_nothing(tree: cgroups.Station, tmp_path: Path) -> None:
    group = tree.group("box")
    fill(tmp_path / "box", memory__events="oom_kill 0\n", pids__events="max 0\n", cpu__stat="")
    figures = group.figures()
    assert (figures.oom_kills, figures.peak_memory) == (0, None)


def test_killing_is_one_write_and_empty_is_what_the_kernel_says(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box", cgroup__events="populated 1\nfrozen 0\n")
    assert group.kill()
    assert (tmp_path / "box" / "cgroup.kill").read_text() == "1"
    assert not group.empty()
    (tmp_path / "box" / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert group.empty()


def test_before_the_kernel_could_kill_a_group_it_is_done_by_looking(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    (tmp_path / "box" / "cgroup.kill").unlink()
    assert not group.kill()


def test_a_kill_that_could_not_be_tried_is_not_taken_for_one_that_the_kernel_cannot_do(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            group.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert group.kill()


def test_a_group_that_cannot_be_had_everywhere_is_left_nowhere(tmp_path: Path) -> None:
    rows: list[GroupRow] = []
    for name in ("memory", "pids"):
        (tmp_path / name).mkdir()
        opened = os.open(tmp_path / name, os.O_RDONLY)
        rows.append({"version": 1, "controllers": [name], "fd": opened})
    (tmp_path / "pids" / "box").touch()
    with pytest.raises(FileExistsError):
        cgroups.Station(rows).group("box")
    for row in rows:
        os.close(row["fd"])
    assert list((tmp_path / "memory").iterdir()) == []


def test_it_is_removed_with_its_runs(tree: cgroups.Station, tmp_path: Path) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    group.child()
    assert not group.remove()  # something is in it yet
    for file in (tmp_path / "box").glob("*.*"):
        file.unlink()
    assert group.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_could_not_be_removed_may_go_with_its_sandbox(
    tree: cgroups.Station, tmp_path: Path
) -> None:
    group = tree.group("box")
    fill(tmp_path / "box")
    child = group.child()
    for file in (tmp_path / "box").glob("*.*"):
        file.unlink()
    busy = tmp_path / child.name / "somebody"
    busy.touch()
    assert not child.remove()
    busy.unlink()
    assert group.remove()
    assert child.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("leaving", [True, False])
def test_a_run_that_is_to_be_removed_is_not_the_next_ones(tmp_path: Path, leaving: bool) -> None:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    tree = cgroups.Station([{"version": 1, "controllers": ["memory"], "fd": opened}])
    group = tree.lend()
    child = group.child()
    for each in (group, child):
        (tmp_path / each.name / "memory.usage_in_bytes").write_text("0")
        (tmp_path / each.name / "memory.max_usage_in_bytes").write_text("0")
    if leaving:
        assert not child.remove()  # a file is in it
    assert tree.take_back(group) is not leaving
    assert (group in tree.spare) is not leaving
    group.close()
    child.close()
    os.close(opened)


def test_without_any_group_nothing_is_held_and_nothing_fails() -> None:
    station = cgroups.Station([])
    assert (station.source, station.complete) == ("rusage", False)
    group = station.group("box").child()
    group.limit(memory=1, pids=1, cpu=1)
    group.admit(1)
    figures = group.figures()
    assert (figures.cpu, figures.peak_memory, figures.oom_kills) == (None, None, 0)
    assert not group.kill()
    assert group.remove()


def test_whoever_made_a_station_ends_what_it_left_although_it_holds_its_groups() -> None:
    found = [h for h in cgroups.own_hierarchies() if h.version == 2]
    if not found or not os.access(found[0].path, os.W_OK):
        pytest.skip("no group of version 2 that we could write")
    name = f"{cgroups.PREFIX}test-{os.getpid()}"
    (made,) = cgroups.prepare(found, name, None)
    station = subprocess.Popen(["sleep", "600"], pass_fds=[made.descriptor])
    try:
        os.close(made.descriptor)
        os.kill(station.pid, signal.SIGSTOP)  # it can neither end by itself nor let go of the lock
        Path(made.path, "station", "cgroup.procs").write_text(str(station.pid))
        assert cgroups.sweep(found), "it is taken for another's"
        assert station.poll() is None
        deadline = time.monotonic() + 30
        while not cgroups.end_left(found, name) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not Path(made.path).exists()
        assert station.wait(30) == -signal.SIGKILL
        assert cgroups.end_left(found, name), "there is nothing left to do"
    finally:
        station.kill()
        station.wait()


# --- the kernel's own version 2 -----------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[tuple[Path, str]]:
    """A group of the kernel's own and a controller that works in it."""
    found = [h for h in cgroups.own_hierarchies() if h.version == 2]
    if not found or not os.access(found[0].path, os.W_OK):
        pytest.skip("no group of version 2 that we could write")
    parent = Path(found[0].path)
    offered = (parent / "cgroup.controllers").read_text().split()
    before = (parent / "cgroup.subtree_control").read_text().split()
    # Never one that costs the rest of the machine anything.
    usable = [name for name in ("pids", "hugetlb", "misc", "rdma") if name in offered]
    if not usable:
        pytest.skip("every controller is bound to version 1 here")
    name = usable[0]
    try:
        (parent / "cgroup.subtree_control").write_text(f"+{name}")
    except OSError as error:
        pytest.skip(f"{name} cannot be switched on here: {error}")
    group = parent / f"test-{os.getpid()}"
    group.mkdir()
    yield group, name
    (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 5
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    cgroups.remove(str(group))
    if name not in before:
        (parent / "cgroup.subtree_control").write_text(f"-{name}")


LIFE = """
import json, os, subprocess, sys
from ms_enclave.spawner import cgroups
folder, controller = sys.argv[1:]
cgroups._VERSION_2 = (controller,)
read = lambda path: open(f'{folder}/{path}').read()
where = [cgroups.Hierarchy(2, [], folder)]
with open(f'{folder}/cgroup.procs', 'w') as file:
    file.write('0')

(refused,) = cgroups.prepare(where, 'ms-enclave-one', None)
os.close(refused.descriptor)
cgroups.remove(refused.path)

os.setxattr(folder, 'trusted.delegate', b'1')
(ready,) = cgroups.prepare(where, 'ms-enclave-two', None)
cleared = read('cgroup.procs')
cgroups.enter(ready)
entered = read('ms-enclave-two/cgroup.procs').split() == [str(os.getpid())]
station = subprocess.Popen(['sleep', '60'])
cgroups.seat(ready, station.pid)
seated = read('ms-enclave-two/station/cgroup.procs').split() == [str(station.pid)]
back = str(os.getpid()) in read('enclave-callers/cgroup.procs').split()

groups = cgroups.Station([ready.row()])
box = groups.group('box')
run = box.child()
words = ['sh', '-c', 'read line; sleep 60 & echo; exec sleep 60']
program = subprocess.Popen(words, stdin=-1, stdout=-1)
run.admit(program.pid)
run.settle(program.pid, 0)
program.stdin.write(b'go' + os.linesep.encode())
program.stdin.flush()
program.stdout.readline()
offered = read('ms-enclave-two/box/1/cgroup.controllers').split()
full = not run.empty()
killed = run.kill() and program.wait() == -9
while not run.empty():
    pass
while not box.remove():
    pass
station.kill()
station.wait()
while os.path.exists(ready.path):
    try:
        cgroups.remove(ready.path)
    except OSError:
        pass
print(json.dumps([refused.controllers, ready.controllers, offered, cleared,
                  entered, seated, back, full, killed]))
"""


def test_a_delegated_group_with_its_caller_in_it_can_be_used(real: tuple[Path, str]) -> None:
    group, controller = real
    words = [sys.executable, "-c", LIFE, str(group), controller]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    refused, controllers, offered, cleared, *steps = json.loads(done.stdout)
    assert refused == []  # nobody gave leave to move anybody
    assert (controllers, offered, cleared) == ([controller], [controller], "")
    assert steps == [True] * 5


COMMAND = "from ms_enclave.cli.cli import run_cmd; run_cmd()"


@pytest.mark.namespaces
def test_a_sandbox_starts_from_a_leaf_of_a_delegated_group(real: tuple[Path, str]) -> None:
    group, controller = real
    leaf = group / cgroups.CALLERS
    (group / "cgroup.subtree_control").write_text(f"+{controller}")
    leaf.mkdir()
    words = f'echo $$ > {leaf}/cgroup.procs && exec "$@"'
    run = [sys.executable, "-c", COMMAND, "run", "--", "sh", "-c", "echo $((6*7))"]
    done = subprocess.run(
        ["sh", "-c", words, "sh", *run], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    assert [entry.name for entry in group.iterdir() if entry.is_dir()] == [cgroups.CALLERS]
