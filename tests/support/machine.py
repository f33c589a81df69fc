"""A machine of the test's own, with a kernel that has what this one has not: user-mode Linux.

It is an ordinary process that sees this machine's files, read-only, and needs no privilege. Its
kernel has every control group in version 2, which a machine that binds controllers to version 1
(as this one may) cannot show.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KERNEL", "ForeignProcessorError", "boot"]

KERNEL = shutil.which("linux.uml")
"""The kernel as a program, of Debian's package user-mode-linux; None where there is none."""

_MEMORY = 2 << 30

_FOREIGN = "ptrace set fp regs failed"
"""What it says of a processor with more registers than it knows (AMX), which its first program dies
of: a kernel of 6.1 gives and takes all of them or none."""


class ForeignProcessorError(pytest.skip.Exception):
    """A processor that such a kernel cannot run programs on, whatever is installed."""


_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/tmp
export PYTHONDONTWRITEBYTECODE=1 CI={ci}
mount -t proc proc /proc
mount -t sysfs sys /sys
for folder in /tmp /run /var/tmp; do mount -t tmpfs none $folder; chmod 1777 $folder; done
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
chmod 1777 /dev/shm
mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
mkdir /run/out
mount -t hostfs none /run/out -o {scratch}
ip link set lo up
cd {folder}
sh /run/out/script >/run/out/output 2>&1 </dev/null
echo $? >/run/out/code
sync
{python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""


def boot(script: str, *, scratch: Path, folder: Path, python: str, seconds: float) -> str:
    """Run a shell script as root of such a machine, in `folder`; returns what it printed.

    `scratch` is an empty folder of ours; it is /run/out in there, and may be written.
    Raises AssertionError if the script failed, subprocess.TimeoutExpired if it took too long, and
    ForeignProcessorError where no program can run.
    """
    assert KERNEL is not None
    (scratch / "script").write_text(script)
    init = scratch / "init"
    init.write_text(
        _INIT.format(
            ci=shlex.quote(os.environ.get("CI", "")),
            scratch=scratch,
            folder=shlex.quote(str(folder)),
            python=shlex.quote(python),
        )
    )
    init.chmod(0o755)
    words = [
        KERNEL, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
        f"mem={_MEMORY}", "con=null", "con0=null,fd:1", "quiet",
        f"uml_dir={scratch}/", "umid=machine",
    ]  # fmt: skip
    free = os.statvfs("/dev/shm")
    roomy = free.f_bavail * free.f_frsize > 2 * _MEMORY
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={"TMPDIR": "/dev/shm" if roomy else str(scratch), "PATH": "/usr/bin:/bin"},
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):  # each of its processes is one of ours
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    output = scratch / "output"
    printed = output.read_text(errors="replace") if output.exists() else said
    if _FOREIGN in said:
        raise ForeignProcessorError("user-mode Linux does not know all registers of this processor")
    code = scratch / "code"
    assert code.exists(), printed[-8000:]
    assert code.read_text().strip() == "0", printed[-12000:]
    return printed
