"""A program in a sandbox ends as it does under a plain `python -c`, though by a shorter way."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

PROGRAMS = {
    "a file that nobody closes": "f = open('x', 'w'); f.write('hi')\n"
    "class Late:\n  def __del__(self, open=open): print(open('x').read() or 'empty')\n"
    "late = Late()",
    "an atexit function": "import atexit; atexit.register(print, 'bye')",
    "an atexit function that fails": "import atexit; atexit.register(lambda: 1 / 0); print(1)",
    "an object in a cycle": "class A:\n  def __del__(self): print('end')\na = A(); a.a = a",
    "an object of a function": "class A:\n  def __del__(self): print('end')\na = A()\n"
    "def f(): return a",
    "a destructor that fails": "class A:\n  def __del__(self): 1 / 0\na = A()",
    "a generator": "def g():\n  try: yield\n  finally: print('end')\nx = g(); next(x)",
    "a finaliser": "import weakref\nclass A: pass\na = A(); weakref.finalize(a, print, 'end')",
    "a thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start(); print('main')",
    "a daemon thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); print('main')",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor as Pool\n"
    "pool = Pool(2); print(pool.submit(int, '5').result())",
    "a fork": "import os\nif os.fork(): os.wait(); print('parent')\nelse: print('child')",
    "C's own buffers": "import ctypes; ctypes.CDLL(None).printf(b'from C\\n')",
    "output replaced": "import io, sys\nclass Out(io.StringIO):\n"
    "  def flush(self): sys.__stdout__.write('flushed\\n')\nsys.stdout = Out()",
    "output closed": "import sys; sys.stdout.close()",
    "output taken away": "import os; print('lost'); os.close(1)",
    "logging": "import logging; logging.basicConfig(level=10); logging.info('said')",
    "no newline": "import sys; sys.stderr.write('e'); sys.stdout.write('o')",
    "a status": "import sys; sys.exit(3)",
    "a truth": "import sys; sys.exit(True)",
    "no status": "import sys; sys.exit(None)",
    "a large status": "import sys; sys.exit(259)",
    "a negative status": "import sys; sys.exit(-1)",
    "a message": "import sys; sys.exit('message')",
    "an exception": "raise KeyError('x')",
}


async def test_a_program_ends_as_under_a_plain_python(tmp_path: Path) -> None:
    def end(status: int, out: str, err: str) -> tuple[int, list[str], list[str]]:
        return status, sorted(out.splitlines()), err.splitlines()[-1:]

    expected, seen = {}, {}
    async with ProcessSandbox() as box:
        for name, program in PROGRAMS.items():
            plain = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={},
                check=False,
            )
            expected[name] = end(plain.returncode, plain.stdout, plain.stderr)
            ours = await box.run_code(program)
            seen[name] = end(ours.exit_code, ours.stdout, ours.stderr)
    assert seen == expected
