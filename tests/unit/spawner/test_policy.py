"""The policy of system calls, line by line, as it was looked at: what changes it changes this too.

The tables of `seccomp.py` are what the filter is compiled from; `seccomp_policy.txt` was written
down from them once, and every difference wants somebody who has thought about it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ms_enclave.spawner import seccomp

GOLDEN = Path(__file__).with_name("seccomp_policy.txt")
SETTINGS: tuple[seccomp.Setting, ...] = ("carrier", "namespaces", "host")
WORDS = {
    seccomp.ALLOW: "allow", seccomp.EPERM: "EPERM", seccomp.ENOSYS: "ENOSYS",
    seccomp.ENOTSUP: "ENOTSUP", seccomp.TRACE: "trace", seccomp.KILL: "kill",
}  # fmt: skip

# Section B3 of the threat model: what is refused by name, whoever asks.
REFUSED = """
    ptrace process_vm_readv process_vm_writev kcmp keyctl add_key request_key io_uring_setup
    io_uring_enter io_uring_register bpf perf_event_open userfaultfd mount umount2 pivot_root chroot
    open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr name_to_handle_at
    open_by_handle_at memfd_secret modify_ldt vmsplice mbind set_mempolicy get_mempolicy
    migrate_pages move_pages set_mempolicy_home_node fanotify_init fanotify_mark quotactl
    quotactl_fd lookup_dcookie syslog vhangup acct swapon swapoff reboot sethostname setdomainname
    settimeofday clock_settime adjtimex clock_adjtime init_module finit_module delete_module
    kexec_load kexec_file_load iopl ioperm uselib ustat sysfs listmount statmount process_madvise
    lsm_set_self_attr pidfd_getfd
""".split()  # noqa: SIM905


def policy() -> str:
    """Every call by name, with what is said of it in each setting."""
    lines: list[str] = []
    for machine, (_, numbers) in sorted(seccomp.ARCHITECTURES.items()):
        for name in sorted(numbers):
            said = []
            for setting in SETTINGS:
                row = seccomp.checked_calls(setting).get(name)
                action = seccomp.action_of(machine, numbers[name], setting=setting)
                said.append(WORDS[action] if row is None else _words(row))
            lines.append(" | ".join([machine, name, *said]))
    lines += [f"listened | {name}" for name in sorted(seccomp.LISTENED)]
    return "\n".join(lines) + "\n"


def _words(row: tuple[int, int, list[list[tuple[int, int, int]]]]) -> str:
    match, otherwise, alternatives = row
    rules = ", ".join(
        " and ".join(f"a{index}&{mask:#x}=={value:#x}" for index, mask, value in alternative)
        for alternative in alternatives
    )
    return f"{WORDS[match]} if {rules} else {WORDS[otherwise]}"


def test_the_policy_is_the_one_that_was_looked_at() -> None:
    if os.environ.get("WRITE_POLICY"):
        GOLDEN.write_text(policy())
    assert policy().splitlines() == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_what_the_threat_model_refuses_is_refused(machine: str) -> None:
    numbers = seccomp.ARCHITECTURES[machine][1]
    for name in REFUSED:
        for setting in SETTINGS if name in numbers else ():
            said = seccomp.action_of(machine, numbers[name], setting=setting)
            assert said == seccomp.EPERM, (name, setting)
