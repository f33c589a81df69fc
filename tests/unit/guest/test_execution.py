"""Programs whose supervisor cannot do everything: told as what it is, and never let loose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ms_enclave

BEGIN = f"""
import os, select, sys
sys.dont_write_bytecode = True
sys.path.insert(0, {str(Path(ms_enclave.__file__).parent)!r})
from guest import execution

def seen(child):
    child.close_one("stdin")
    while not child.reported and child.exit is None:
        select.select([child.report], [], [])
        child.read_report()
    return execution.exit_code(child.exit[0])[0], os.read(child.stderr, 1000).decode()

"""
UNEQUAL = """
program = execution.Program([b"true"], {b"A=": b"x"}, b".", None, {})
told = seen(execution.start(program, False))
print(told, seen(execution.wait().start(program, False)) == told)
"""
NO_NULL = """
os.devnull = "/nowhere/null"
program = execution.Program([b"sh", b"-c", b"cat; exit 3"], {}, b".", None, {})
for stdin in (False, True):
    print(seen(execution.start(program, stdin)), seen(execution.wait().start(program, stdin)))
"""
UNHEARD = """
waiting = execution.wait()
os.kill(waiting.supervisor, 19)
os.waitid(os.P_PID, waiting.supervisor, os.WSTOPPED)
kill, os.kill = os.kill, lambda pid, number: None  # it is to go on only when nobody listens
child = waiting.start(execution.Program([b"sleep", b"1000"], {}, b".", None, {}), False)
os.kill = kill
child.close_one("report")
waiting.close()
os.kill(child.supervisor, 18)
os.waitpid(child.supervisor, 0)
try:
    print("left", os.waitpid(-1, os.WNOHANG), flush=True)
except ChildProcessError:
    print("nobody")
"""


def script(python: str, code: str, folder: Path) -> str:
    done = subprocess.run(
        [python, "-I", "-S", "-c", BEGIN + code], cwd=folder, env={"PATH": os.defpath},
        capture_output=True, text=True, start_new_session=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def test_what_no_program_can_be_given_is_told_alike(python: str, tmp_path: Path) -> None:
    told = script(python, UNEQUAL, tmp_path)
    assert told.startswith("(126, 'ms-enclave: ValueError: ")
    assert told.endswith(" True")


def test_programs_run_where_the_null_device_was_removed(tmp_path: Path) -> None:
    """By root, in a container."""
    assert script(sys.executable, NO_NULL, tmp_path) == "(3, '') (3, '')\n(3, '') (3, '')"


def test_who_cannot_report_a_program_ends_it(tmp_path: Path) -> None:
    assert script(sys.executable, UNHEARD, tmp_path) == "nobody"
