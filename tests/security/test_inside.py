"""Attacks from inside: each must fail, and where a guard holds it, succeed in a box without it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import ColdSandbox, UnfilteredSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox]

CALLS = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return errno.errorcode.get(ctypes.get_errno(), '?') if result == -1 else 'ok'
"""


async def run_python(box: ProcessSandbox, code: str) -> Any:
    result = await box.run_code(CALLS + code)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


FORBIDDEN = {
    "unshare_user": "call(272, 0x10000000)",
    "clone_user": "call(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "clone3": "call(435, 0, 0)",
    "setns": "call(308, 0, 0)",
    "mount": "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)",
    "fsopen": "call(430, b'tmpfs', 0)",
    "pivot_root": "call(155, b'/', b'/')",
    "chroot": "call(161, b'/tmp')",
    "ptrace": "call(101, 0, 0, 0, 0)",
    "process_vm_readv": "call(310, 1, 0, 0, 0, 0, 0)",
    "bpf": "call(321, 0, 0, 0)",
    "io_uring_setup": "call(425, 1, 0)",
    "keyctl": "call(250, 0, 0, 0, 0, 0)",
    "perf_event_open": "call(298, 0, 0, -1, -1, 0)",
    "userfaultfd": "call(323, 0)",
    "pidfd_getfd": "call(438, 0, 0, 0)",
    "packet_socket": "call(41, 17, 3, 0)",
    "vsock": "call(41, 40, 1, 0)",
    "alg_socket": "call(41, 38, 5, 0)",
    "netlink_xfrm": "call(41, 16, 3, 6)",
    "mknod_block": "call(133, b'/tmp/d', 0o60644, 0x0800)",
    "kexec": "call(246, 0, 0, 0, 0)",
    "swapon": "call(167, b'/tmp/x', 0)",
    "init_module": "call(175, 0, 0, b'')",
    "name_to_handle": "call(303, -100, b'/', 0, 0, 0)",
    "seccomp_listener": "call(317, 1, 8, 0)",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_that_reach_the_kernels_weak_spots_are_refused(
    kind: type[ProcessSandbox],
) -> None:
    rows = ", ".join(f"{name!r}: {call}" for name, call in FORBIDDEN.items())
    code = f"print(json.dumps({{{rows}}}))"
    async with kind() as box:
        seen = await run_python(box, code)
    assert {k: v for k, v in seen.items() if v not in ("EPERM", "ENOSYS")} == {}


async def test_control_without_the_filter_some_of_them_go_through() -> None:
    code = "print(json.dumps([call(101, 0, 0, 0, 0), call(425, 1, 0), call(435, 0, 0)]))"
    async with UnfilteredSandbox() as box:
        assert await run_python(box, code) == ["ok", "EFAULT", "EINVAL"]


async def test_the_old_abi_ends_the_program() -> None:
    code = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))  # mov eax, 20; int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
    async with ProcessSandbox() as box:
        result = await box.run_code(CALLS + code)
    assert result.signal == 31  # SIGSYS


async def test_terminal_injection_is_refused_also_with_high_bits_set() -> None:
    code = """
import os, pty
master, slave = pty.openpty()
print(json.dumps([call(16, slave, request, ctypes.c_char_p(b'x'))
                  for request in (0x5412, ctypes.c_ulong(0x100005412), 0x541C)]))
"""
    async with ProcessSandbox() as box:
        assert await run_python(box, code) == ["EPERM"] * 3


async def test_settings_of_the_kernel_cannot_be_opened_for_writing() -> None:
    code = """
import glob, os
opened = []
for path in glob.glob('/proc/sys/**', recursive=True) + ['/proc/sysrq-trigger']:
    if os.path.isfile(path):
        try:
            os.close(os.open(path, os.O_WRONLY))
            opened.append(path)
        except OSError:
            pass
print(json.dumps(opened))
"""
    async with ProcessSandbox() as box:
        assert await run_python(box, code) == []


async def test_nothing_of_the_host_is_there() -> None:
    os.environ["CANARY_OF_THE_HOST"] = "secret"
    code = """
import os, socket
found = [p for p in ('/root/.ssh', '/var/run/docker.sock', '/run/docker.sock', '/boot',
                     '/etc/shadow', '/sys/class', '/sys/fs/cgroup', '/dev/kmsg', '/dev/mem',
                     '/dev/kvm', '/dev/fuse', '/var/lib', '/srv', '/opt/secrets')
         if os.path.exists(p)]
names = [line.split(':')[0] for line in open('/etc/passwd')]
print(json.dumps([found, [k for k in os.environ if 'CANARY' in k], socket.gethostname(),
                  names, open('/proc/net/unix').read().count('\\n')]))
"""
    try:
        async with ProcessSandbox() as box:
            found, environment, name, users, sockets = await run_python(box, code)
    finally:
        del os.environ["CANARY_OF_THE_HOST"]
    assert found == []
    assert environment == []
    assert name == "sandbox"
    assert "root" in users and len(users) <= 4
    assert sockets == 1  # the header only


async def test_only_its_own_processes_are_seen_and_signalled() -> None:
    code = """
import os, signal
pids = [int(n) for n in os.listdir('/proc') if n.isdigit()]
refused = []
for pid in range(1, 400):
    if pid != os.getpid():
        try:
            os.kill(pid, 0)
            refused.append(pid)
        except (ProcessLookupError, PermissionError):
            pass
print(json.dumps([pids == [os.getpid()], refused]))
"""
    async with ProcessSandbox() as box, ProcessSandbox() as other:
        # With one id the init has the same one; the kernel lets no signal from inside end it.
        reached = [] if box.isolation.guards["own_ids"] == "on" else [1]
        assert await run_python(box, code) == [True, reached]
        killed = await box.run_code("import os; os.kill(-1, 9)")
        assert killed.verdict in ("ok", "error", "signal")
        assert (await other.run_code("print(1)")).stdout == "1\n"
        assert (await box.run_code("print(2)")).stdout == "2\n"


async def test_the_init_cannot_be_read_or_written() -> None:
    code = """
import os
outcomes = []
for name in ('mem', 'environ', 'maps', 'root/etc/passwd', 'cwd'):
    try:
        os.close(os.open('/proc/1/' + name, os.O_RDWR if name == 'mem' else os.O_RDONLY))
        outcomes.append(name)
    except OSError:
        pass
print(json.dumps(outcomes))
"""
    async with ProcessSandbox() as box:
        assert await run_python(box, code) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_inherits_three_descriptors(kind: type[ProcessSandbox]) -> None:
    async with kind() as box:
        result = await box.execute_command(["ls", "/proc/self/fd"])
        assert result.stdout.split() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads
        code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        assert (await box.run_code(code)).stdout == "['0', '1', '2', '3']\n"


async def test_the_root_cannot_be_written_and_the_host_is_not_changed() -> None:
    code = """
import os
written = []
for folder in ('/', '/usr', '/usr/bin', '/etc', '/dev', '/run', '/proc', sys.prefix):
    try:
        open(os.path.join(folder, 'planted'), 'w')
        written.append(folder)
    except OSError:
        pass
print(json.dumps(written))
"""
    async with ProcessSandbox() as box:
        assert await run_python(box, code) == []


async def test_there_is_a_loopback_and_nothing_else() -> None:
    code = """
import os, socket, threading
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname(), timeout=5)
refused = []
for address in ('1.1.1.1', '10.0.0.1', '169.254.169.254'):
    try:
        socket.create_connection((address, 80), timeout=5)
    except OSError as error:
        refused.append(errno.errorcode[error.errno])
print(json.dumps([[name for _, name in socket.if_nameindex()], refused]))
"""
    async with ProcessSandbox() as box:
        assert await run_python(box, code) == [["lo"], ["ENETUNREACH"] * 3]


async def test_what_one_sandbox_leaves_no_other_finds() -> None:
    plant = "for p in ('/tmp/x', '/dev/shm/x', '/sandbox/x'): open(p, 'w').write('secret')"
    look = "from glob import glob; print(glob('/tmp/x') + glob('/dev/shm/*') + glob('/sandbox/*'))"
    async with ProcessSandbox() as first:
        assert (await first.run_code(plant)).exit_code == 0
        async with ProcessSandbox() as second:
            assert (await second.run_code(look)).stdout == "[]\n"
