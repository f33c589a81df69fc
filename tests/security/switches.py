"""The walls one by one, and which tests must fail without each: run by `scripts/switches`.

A switch changes one place of a copy of the source. So what is shipped has no way to turn a wall
off, and a wall that is lost by mistake is lost in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SWITCHES", "Switch"]

_POSTURE = "tests/security/test_posture.py::test_a_program_has_exactly_what_it_is_to_have"
_RLIMITS = "tests/security/test_posture.py::test_the_limits_of_a_program_are_these"
_BOUND = "tests/security/test_posture.py::test_a_container_can_be_given_no_more_than_these"
_CALLER = "tests/security/test_posture.py::test_what_the_caller_has_more_does_not_come_along"
_TASKS = "tests/security/test_posture.py::test_every_task_of_a_user_is_behind_every_wall"
_ROOMY = (
    "tests/security/test_attacks.py::"
    "test_control_with_limits_that_it_does_not_reach_a_bomb_goes_through"
)
_ROOTLESS = "tests/e2e/test_rootless.py::test_it_withstands_what_is_tried_as_an_ordinary_user"
_FORKS = "tests/e2e/test_forks.py"
_POLICY = "tests/unit/spawner/test_policy.py"
_FILTER = "tests/unit/spawner/test_seccomp.py"
_LIMITS = "tests/security/test_limits.py"
_LANDLOCK = "tests/security/test_landlock.py"
_ENDS = "tests/security/test_ends.py"
_BUNDLE = "tests/unit/boxes/test_gvisor_plan.py"
_GVISOR = "tests/e2e/test_gvisor.py"


def _attack(name: str, box: str = "TestProcess") -> str:
    return f"tests/security/test_attacks.py::{box}::test_it_withstands[{name}]"


@dataclass(frozen=True)
class Switch:
    """A wall, and how to take it away."""

    name: str
    file: str
    """Below `src/ms_enclave`."""
    before: str
    """Text that stands there exactly once."""
    after: str
    tests: tuple[str, ...]
    """At most three, of which one at least must fail without it."""

    def without(self, text: str) -> str | None:
        """The file without it; None where the text stands there no more, or more than once."""
        return text.replace(self.before, self.after) if text.count(self.before) == 1 else None


def _slot(name: str, before: str, after: str, *tests: str) -> Switch:
    return Switch(name, "spawner/slot.py", before, after, tests or (_POSTURE,))


def _root(name: str, before: str, after: str, *tests: str) -> Switch:
    return Switch(name, "spawner/root.py", before, after, tests or (_POSTURE,))


def _allowed(name: str, calls: str) -> Switch:
    """The filter lets calls through that it refuses."""
    before = "    accept accept4 access alarm"
    return Switch(
        f"seccomp: {name}", "spawner/seccomp.py", before, f"    {calls}\n{before}", (_POLICY,)
    )


def _checked(name: str, before: str, after: str, *tests: str) -> Switch:
    """The filter looks at arguments less closely."""
    return Switch(f"seccomp: {name}", "spawner/seccomp.py", before, after, tests or (_POLICY,))


def _rlimit(name: str, before: str, after: str, *tests: str) -> Switch:
    file = "boxes/_process_request.py"
    return Switch(f"rlimit: {name}", file, before, after, (_RLIMITS, *tests))


def _guest(name: str, before: str, after: str, *tests: str) -> Switch:
    return Switch(f"guest: {name}", "guest/execution.py", before, after, tests)


def _docker(name: str, before: str, after: str, *tests: str) -> Switch:
    return Switch(f"docker: {name}", "boxes/_docker_plan.py", before, after, tests)


def _gvisor(name: str, before: str, after: str, *tests: str) -> Switch:
    file = "boxes/_gvisor_plan.py"
    return Switch(f"gvisor: {name}", file, before, after, (_BUNDLE, *tests))


def _keeper(name: str, before: str, after: str, *tests: str) -> Switch:
    return Switch(f"gvisor: {name}", "spawner/gvisor_launcher.py", before, after, tests)


SWITCHES = (
    # --- mounts
    _slot("proc: hidepid", 'b"hidepid=2"', 'b"hidepid=0"'),
    _slot("proc: nosuid, nodev, noexec", '"proc", flags | calls.MS_NOEXEC,', '"proc", 0,'),
    _slot("proc: what tells of the machine is masked", "for name in _MASKED:", "for name in ():"),
    _slot("proc: settings are read-only", "for name in _READ_ONLY:", "for name in ():"),
    _slot(
        "dev/shm: nosuid and nodev", '"tmpfs", flags, _SHARED_MEMORY', '"tmpfs", 0, _SHARED_MEMORY'
    ),
    _slot("dev/pts: nosuid and noexec", '"devpts", on_terminals,', '"devpts", 0,'),
    _slot("dev/pts: how many", "mode=0620,max=16", "mode=0620"),
    _slot("dev/shm: has a size", 'b"size=64m,nr_inodes=1k,', 'b"', f"{_ROOMY}[shared_memory]"),
    _slot(
        "user namespaces: none may be made",
        'max_user_namespaces", b"0"',
        'max_user_namespaces", b"9"',
    ),
    _slot(
        "a host name of its own",
        'Step("set the host name", "sethostname", hostname.encode()',
        'Step("set the host name", "sethostname", b"another"',
    ),
    _slot(
        "store: nosuid and nodev",
        '"workdir": scratch},\n            _ATTRIBUTES,',
        '"workdir": scratch},\n            0,',
    ),
    _slot("store: bounded in bytes", '"size": str(size)', '"size": "8g"', f"{_LIMITS}"),
    _slot(
        "store: bounded in files",
        '"nr_inodes": str(inodes)',
        '"nr_inodes": "9999999"',
        f"{_LIMITS}",
    ),
    _root(
        "root: read-only, nosuid, nodev",
        "_READ_ONLY = calls.MOUNT_READ_ONLY | calls.MOUNT_NOSUID | calls.MOUNT_NODEV",
        "_READ_ONLY = calls.MOUNT_READ_ONLY",
    ),
    _root("what is the host's: read-only", "_READ_ONLY = calls.MOUNT_READ_ONLY |", "_READ_ONLY ="),
    _root("few devices", '"tty")', '"tty", "kmsg")', _POSTURE, _attack("devices")),
    _root(
        "the root has a size",
        '{"size": "8m", "nr_inodes": "4k", "mode": "0755"},\n        calls',
        '{"mode": "0755"},\n        calls',
    ),
    # --- rights
    _slot(
        "init: no capabilities",
        'Step(title, "capset", *calls.NO_CAPABILITIES),',
        "",
        "tests/security/test_posture.py::test_the_init_of_a_slot_has_nothing_to_give",
    ),
    _slot(
        "init: a filter",
        'Step("seccomp", "seccomp", 1, 0, Program(init_filter)),',
        "",
        "tests/security/test_posture.py::test_the_init_of_a_slot_has_nothing_to_give",
    ),
    _slot("init: nobody reads it", 'Step(title, "prctl", 4, 0, 0, 0, 0),', "", _ROOTLESS),
    Switch(
        "cold: secure bits",
        "spawner/cold.py",
        "    calls.prctl(28, _SECUREBITS)\n",
        "",
        (_POSTURE,),
    ),
    Switch(
        "cold: bounding set",
        "spawner/cold.py",
        "    calls.drop_bounding_set()\n",
        "",
        (_POSTURE, _TASKS),
    ),
    Switch(
        "cold: no capabilities",
        "spawner/cold.py",
        "    calls.drop_all_capabilities()\n",
        "",
        (_ROOTLESS,),
    ),
    Switch(
        "cold: a filter",
        "spawner/cold.py",
        "        calls.set_seccomp(program)\n",
        "",
        (_POSTURE, _TASKS),
    ),
    Switch(
        "cold: descriptors",
        "spawner/cold.py",
        "    calls.close_range(6)\n",
        "",
        (_POSTURE, "tests/security/test_inside.py::test_a_command_inherits_three_descriptors"),
    ),
    # --- namespaces
    *(
        Switch(
            f"namespace: {name}",
            "spawner/carrier.py",
            "_ENTERED = calls.EVERY_NAMESPACE & ~calls.CLONE_NEWPID",
            f"_ENTERED = calls.EVERY_NAMESPACE & ~calls.CLONE_NEWPID & ~calls.CLONE_{flag}",
            (
                _TASKS,
                "tests/security/test_posture.py::test_two_sandboxes_share_no_id_and_no_namespace",
                _POSTURE,
            ),
        )
        for name, flag in (
            ("mount", "NEWNS"),
            ("network", "NEWNET"),
            ("uts", "NEWUTS"),
            ("ipc", "NEWIPC"),
            ("cgroup", "NEWCGROUP"),
        )
    ),
    # --- forks
    Switch(
        "fork: the call that is ordered",
        "spawner/tracer.py",
        "    if seen != (_ENTRY, _X86_64, number, *order):\n",
        "    if not seen:\n",
        (
            "tests/unit/spawner/test_tracer.py"
            "::test_a_page_that_goes_for_another_call_is_refused_before_it_is_made",
            f"{_FORKS}::test_a_program_that_owns_its_memory_gets_no_call_of_its_own",
        ),
    ),
    Switch(
        "fork: shared memory",
        "spawner/checkpoints.py",
        '        reasons += blockers.maps(_text(f"/proc/{pid}/maps"), mounts)\n',
        "",
        (f"{_FORKS}::test_memory_that_would_be_a_channel_is_refused",),
    ),
    Switch(
        "fork: a program's own filters",
        "spawner/checkpoints.py",
        "        reasons += blockers.status(status, first)\n",
        "",
        (f"{_FORKS}::test_a_program_under_more_filters_of_its_own_is_refused",),
    ),
    Switch(
        "fork: a thread's own filters",
        "spawner/checkpoints.py",
        "            for one in held\n",
        "            for one in ()\n",
        (f"{_FORKS}::test_a_thread_that_is_no_part_of_the_program_is_refused",),
    ),
    # --- the filter
    _allowed("tracing", "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd"),
    _allowed("keys", "keyctl add_key request_key"),
    _allowed("rings", "io_uring_setup io_uring_enter io_uring_register"),
    _allowed(
        "mounts",
        "mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick "
        "mount_setattr",
    ),
    _allowed("weak spots", "bpf perf_event_open userfaultfd memfd_secret vmsplice modify_ldt"),
    _allowed("handles", "name_to_handle_at open_by_handle_at fanotify_init fanotify_mark"),
    _allowed(
        "modules and kernels",
        "init_module finit_module delete_module kexec_load kexec_file_load reboot",
    ),
    _allowed("clocks and names", "settimeofday clock_settime adjtimex sethostname setdomainname"),
    _allowed("namespaces", "setns unshare clone3"),
    _checked(
        "new namespaces by clone",
        "[[(0, _NEW_NAMESPACES, 0)]]",
        "[[(0, 0, 0)]]",
        _POLICY,
        _attack("user_namespaces"),
    ),
    _checked(
        "families of sockets",
        "    [(0, _ALL, _UNIX)],",
        "    [(0, 0, 0)],",
        _POLICY,
        _attack("socket_families"),
    ),
    _checked(
        "netlink protocols",
        "(2, _ALL, 0)],  # NETLINK_ROUTE",
        "(2, 0, 0)],",
        _POLICY,
        _attack("socket_families"),
    ),
    _checked(
        "pairs of sockets",
        '"socketpair": (ALLOW, EPERM, [[(0, 0xFFFFFFFF, 1)]])',
        '"socketpair": (ALLOW, EPERM, [[(0, 0, 0)]])',
        _POLICY,
    ),
    _checked(
        "typing into terminals",
        "[[(1, 0xFFFFFFFF, 0x5412)], [(1, 0xFFFFFFFF, 0x541C)]]",
        "[[(1, 0xFFFFFFFF, 0x541C)]]",
        _POLICY,
        _attack("terminals"),
    ),
    _checked(
        "high bits",
        "[[(1, 0xFFFFFFFF, 0x5412)], ",
        "[[(1, 0xFFFFFFFFFFFFFFFF, 0x5412)], ",
        _POLICY,
        _FILTER,
    ),
    _checked(
        "listening filters", "[[(1, 8, 0)]]", "[[(1, 0, 0)]]", _POLICY, _attack("listening_filters")
    ),
    _checked(
        "personalities",
        "for value in (0, 0x40000, 0xFFFFFFFF)",
        "for value in (0, 0x40000, 0x0400000, 0xFFFFFFFF)",
        _POLICY,
        _attack("weak_spots"),
    ),
    _checked(
        "leases",
        "[[(1, 0xFFFFFFFF, 1024)], [(1, 0xFFFFFFFF, 1026)]]",
        "[[(1, 0xFFFFFFFF, 1026)]]",
        _POLICY,
    ),
    # --- limits
    _rlimit("core files", "4: (1, 1),", "4: (1 << 20, 1 << 20),"),
    _rlimit("locked memory", "8: (65536, 65536),", "8: (1 << 30, 1 << 30),"),
    _rlimit("signals", "11: (1024, 1024),", "11: (1 << 16, 1 << 16),", _attack("queues")),
    _rlimit("queues", "12: (65536, 65536),", "12: (1 << 30, 1 << 30),", _attack("queues")),
    _rlimit("precedence", "13: (0, 0),", "13: (40, 40),"),
    _rlimit("real-time classes", "14: (0, 0),", "14: (99, 99),"),
    _rlimit("open files", "7: (limits.nofile, limits.nofile),", "7: (1 << 14, 1 << 14),"),
    _rlimit("files' sizes", "1: (largest, largest),", "1: (1 << 50, 1 << 50),"),
    Switch(
        "group: memory",
        "spawner/cgroups.py",
        'self._write(hierarchy, "memory.limit_in_bytes", str(memory))',
        "pass",
        (_LIMITS,),
    ),
    Switch(
        "group: processes",
        "spawner/cgroups.py",
        'self._write(hierarchy, "pids.max", str(pids))',
        "pass",
        (_LIMITS,),
    ),
    Switch(
        "group: processor time",
        "spawner/cgroups.py",
        'self._write(hierarchy, "cpu.cfs_quota_us", str(quota))',
        "pass",
        (_LIMITS,),
    ),
    # --- landlock
    Switch(
        "landlock: files",
        "spawner/landlock_station.py",
        'def _rights(bind: BindRow) -> int:\n    return _STORE if bind["writable"] else _READ',
        "def _rights(bind: BindRow) -> int:\n    return _STORE",
        (_LANDLOCK, _attack("the_file_system", "TestLandlock")),
    ),
    Switch(
        "landlock: scopes",
        "spawner/keeper.py",
        "        scope = landlock.scope_wall(place.version)\n",
        "        scope = -1\n",
        (_LANDLOCK,),
    ),
    # --- containers
    _docker(
        "new privileges",
        'options = ["no-new-privileges:true"]',
        "options = []",
        _attack("privileges", "TestDockerStrict"),
    ),
    _docker(
        "our filter",
        'options += [f"seccomp={filtering}"] if filtering else []',
        'options += ["seccomp=unconfined"]',
        _attack("every_other_call", "TestDocker"),
    ),
    _docker("capabilities", '"CapDrop": ["ALL"],', "", _BOUND),
    _docker(
        "strict: none at all",
        '"CapAdd": [] if strict else',
        '"CapAdd": ["SYS_PTRACE"] if strict else',
        _BOUND,
    ),
    _docker(
        "strict: read-only",
        '"ReadonlyRootfs": strict or config.read_only',
        '"ReadonlyRootfs": config.read_only',
        _attack("the_file_system", "TestDockerStrict"),
        "tests/unit/boxes/test_docker_plan.py",
    ),
    _docker(
        "strict: what is masked",
        'walls["MaskedPaths"] = [*_MASKED_BY_ENGINES, *_MASKED_IN_STRICT]',
        "pass",
        _attack("the_machine", "TestDockerStrict"),
        "tests/unit/boxes/test_docker_plan.py",
    ),
    _docker(
        "strict: users of their own",
        'user = f"{strict_user}:{strict_user}" if strict else',
        'user = "0:0" if strict else',
        _attack("ids", "TestDockerStrict"),
        "tests/unit/boxes/test_docker_plan.py",
    ),
    _docker(
        "no network",
        'if config.network_enabled else "none",',
        'if config.network_enabled else "host",',
        _attack("the_network", "TestDocker"),
        "tests/unit/boxes/test_docker_plan.py",
    ),
    _docker(
        "how many files",
        'return f"size={size},nr_inodes={max(_FEWEST_FILES, files)}"',
        'return f"size={size}"',
        _attack("names", "TestDocker"),
    ),
    _guest(
        "signals that wait",
        "    _limit(resource.RLIMIT_SIGPENDING, _MOST_SIGNALS)\n",
        "",
        _attack("queues", "TestDocker"),
    ),
    _docker("processes", '{"PidsLimit": pids,', "{", "tests/unit/boxes/test_docker_plan.py"),
    _docker(
        "memory",
        'found |= {"Memory": limits.memory, "MemorySwap": limits.memory}',
        "pass",
        "tests/unit/boxes/test_docker_plan.py",
    ),
    # --- a kernel of its own
    _gvisor(
        "no network", '"--network=none"', '"--network=host"', _attack("the_network", "TestGvisor")
    ),
    _gvisor("no capabilities", "fromkeys(kinds, nothing)", 'fromkeys(kinds, ["CAP_SYS_ADMIN"])'),
    _gvisor("new privileges", '"noNewPrivileges": True', '"noNewPrivileges": False'),
    _gvisor("a user", '"user": {"uid": uid, "gid": gid}', '"user": {"uid": 0, "gid": 0}'),
    _gvisor(
        "read-only root",
        '"readonly": True',
        '"readonly": False',
        _attack("the_file_system", "TestGvisor"),
    ),
    _gvisor("what is ours is hidden", '_HIDDEN = ("/run/enclave", "/sys")', '_HIDDEN = ("/sys",)'),
    _gvisor(
        "what is given is read-only",
        '_shown(bind.source, bind.target, "ro")',
        "_shown(bind.source, bind.target)",
    ),
    _gvisor("mounts: nosuid and nodev", '["rbind", mode, "nosuid", "nodev"]', '["rbind", mode]'),
    _keeper(
        "a network namespace around it",
        "calls.CLONE_NEWPID | calls.CLONE_NEWNET",
        "calls.CLONE_NEWPID",
        f"{_GVISOR}::test_its_kernel_and_file_servers_are_in_namespaces_of_their_own",
    ),
    _keeper(
        "bytes",
        '"size": str(limits["disk"]), ',
        "",
        f"{_GVISOR}::test_what_it_stores_is_bounded_in_bytes_and_in_files",
    ),
    _keeper(
        "files",
        '"nr_inodes": str(limits["inodes"]), ',
        "",
        f"{_GVISOR}::test_what_it_stores_is_bounded_in_bytes_and_in_files",
    ),
    _keeper(
        "it ends with its owner",
        "                os.kill(keeper, signal.SIGKILL)\n                poll",
        "                poll",
        f"{_GVISOR}::test_nothing_is_left_of_it_when_its_owner_is_killed",
    ),
)
