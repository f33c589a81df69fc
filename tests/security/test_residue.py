"""A thousand runs of one manager, copies of one interpreter: none has anything of another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import ProcessSandboxConfig
from tests.security.boxes import ColdSandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.namespaces

RUNS = 1000
AT_ONCE = 4
CONFIG = ProcessSandboxConfig(preload=["json", "random", "uuid", "secrets", "tempfile"])

LOOK = """
import builtins, codecs, gc, glob, json, os, random, resource, secrets, signal, sys, tempfile
import threading, uuid
places = ('/tmp', '/dev/shm', '/var/tmp', os.getcwd(), os.path.expanduser('~'))
seen = {
    'files': [name for place in places for name in glob.glob(place + '/*')],
    'builtins': [name for name in dir(builtins) if 'poison' in name],
    'modules': [name for name in sys.modules if 'poison' in name],
    'class': [name for name in dir(json.JSONDecoder) if 'poison' in name],
    'path': [name for name in sys.path if 'poison' in name],
    'hooks': [str(sys.excepthook)] if sys.excepthook is not sys.__excepthook__ else [],
    'environment': [name for name in os.environ if 'POISON' in name],
    'signal': [str(signal.getsignal(signal.SIGUSR1))] if signal.getsignal(signal.SIGUSR1) else [],
    'umask': [mask] if (mask := os.umask(0o77)) not in (0o22, 0o77) else [],
    'nofile': [soft] if (soft := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < 100 else [],
    'threads': [thread.name for thread in threading.enumerate()][1:],
    'segments': [] if open('/proc/sysvipc/shm').read().count('\\n') == 1 else ['one'],
}
"""

DRAW = """
numbers = [random.random(), random.getrandbits(128), uuid.uuid4().hex, secrets.token_hex(),
           next(tempfile._get_candidate_names()), os.urandom(8).hex()]
print(json.dumps([{name: found for name, found in seen.items() if found}, numbers]), flush=True)
"""

POISON = """
builtins.poison = sys.modules['poison'] = json.JSONDecoder.poison = os
builtins.sorted = builtins.open = lambda *a, **k: 'poison'
sys.path.insert(0, '/tmp/poison')
sys.excepthook = lambda *a: None
os.environ['POISON'] = os.environ['PATH'] = os.environ['PYTHONSTARTUP'] = 'POISON'
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
os.umask(0o111)
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
random.seed(1)
import ctypes
ctypes.CDLL(None).shmget(0x504F, 4096, 0o1600)
for place in places:
    try:
        os.close(os.open(place + '/poison', os.O_CREAT | os.O_WRONLY))
    except FileExistsError:
        pass
threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()
if os.fork() == 0:
    os.setsid()
    import time
    time.sleep(60)
"""


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as manager:
        yield manager


async def outputs(manager: LocalSandboxManager, codes: list[str]) -> list[str]:
    """What each printed; some run at the same time."""
    printed: list[str] = []
    todo = iter(codes)

    async def work() -> None:
        for code in todo:
            result = await manager.run_code(code, config=CONFIG)
            assert result.verdict == "ok", result.stderr
            printed.append(result.stdout)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)
    return printed


@pytest.mark.slow
async def test_of_a_thousand_poisoners_none_sees_another(manager: LocalSandboxManager) -> None:
    rows = [json.loads(line) for line in await outputs(manager, [LOOK + DRAW + POISON] * RUNS)]
    assert [seen for seen, _ in rows if seen] == []
    for column in zip(*(numbers for _, numbers in rows), strict=True):
        assert len(set(column)) == RUNS


async def test_control_in_one_interpreter_all_of_it_is_seen(manager: LocalSandboxManager) -> None:
    mended = "import io\nbuiltins.open = io.open\n"
    printed = await outputs(manager, [LOOK + POISON + mended + LOOK + "print(json.dumps(seen))"])
    assert [name for name, found in json.loads(printed[0]).items() if not found] == []


# The word that is looked for is put together late, so that whoever looks does not find himself.
SECRET = """
secret = '%s'
held = bytearray(secret.encode() * 100000)
import os, re
pattern = re.compile(bytes([82, 69, 83, 73]) + b'DUE-' + b'([0-9]{6})')
found = set()
memory = os.open('/proc/self/mem', os.O_RDONLY)
for line in open('/proc/self/maps'):
    words = line.split()
    if 'r' in words[1] and not line.rstrip().endswith(('[vvar]', '[vsyscall]', '[vvar_vclock]')):
        start, end = (int(word, 16) for word in words[0].split('-'))
        while start < end:
            try:
                piece = os.pread(memory, min(end - start, 8 << 20), start)
            except OSError:
                break
            found.update(pattern.findall(piece))
            start += len(piece) or end
for _ in range(20):
    fresh = bytearray(1 << 20)  # what was another's is nobody's
    found.update(pattern.findall(fresh))
print(sorted(found))
open('/tmp/secret', 'w').write(secret)
"""


async def test_no_memory_of_a_run_is_in_another(manager: LocalSandboxManager) -> None:
    codes = [SECRET % f"RESIDUE-{number:06}" for number in range(60)]
    printed = await outputs(manager, codes)
    # Each finds what is its own: so whoever looks sees what there is.
    assert sorted(printed) == [f"[b'{number:06}']\n" for number in range(60)]


async def test_no_memory_of_a_sandbox_is_in_the_next_that_has_its_place() -> None:
    for number in range(3):
        async with ColdSandbox() as box:
            result = await box.run_code(SECRET % f"RESIDUE-{number:06}")
            assert result.stdout == f"[b'{number:06}']\n", result.stderr
