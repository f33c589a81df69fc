"""The baselines: a Python that nothing slows down, a fork server, and other sandboxes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ms_enclave.bench import programs


def test_a_fresh_environment_knows_our_packages_and_runs_no_hook_of_its_own(
    tmp_path: Path,
) -> None:
    made = programs.make_environment(tmp_path)
    assert not [hook for hook in made.hooks if hook.startswith(str(tmp_path))]
    code = "import ms_enclave, anyio; print(1)"
    assert programs.start([made.full, "-c", code]) > 0
    with pytest.raises(RuntimeError, match="No module named"):
        programs.start([made.python, "-c", code])


def test_what_runs_at_the_start_of_a_python_is_found(tmp_path: Path) -> None:
    made = programs.make_environment(tmp_path)
    (packages,) = (tmp_path / "plain" / "lib").glob("python3*/site-packages")
    (packages / "hook.pth").write_text("/nowhere\nimport os\n")
    (packages / "paths.pth").write_text("/nowhere\n")
    (packages / "sitecustomize.py").write_text("")
    found = {Path(hook).name for hook in programs.hooks_of(made.python)}
    assert {"hook.pth", "sitecustomize.py"} <= found
    assert "paths.pth" not in found


def test_the_fork_server_has_its_modules_loaded_and_keeps_nothing_of_a_program() -> None:
    with programs.fork_server(sys.executable, ["fractions"]) as server:
        look = "import sys; print(int('fractions' in sys.modules), hasattr(sys, 'mark'))"
        server.run(f"{look}; sys.mark = 1", "1 False\n")
        server.run(look, "1 False\n")
        with pytest.raises(RuntimeError, match="answered"):
            server.run("raise SystemExit(1)")


def test_processor_time_counts_what_a_program_started_and_waited_for() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.stdin.read()])"
    taken, printed = programs.processor_time([sys.executable, "-c", parent], burn)
    assert taken >= 200
    assert printed == ""
    with pytest.raises(RuntimeError, match="ended with 3"):
        programs.processor_time([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.skipif(sys.platform != "linux", reason="a look at /proc")
def test_the_kernels_own_time_is_that_of_its_threads() -> None:
    if programs.kernel_time() == 0:
        pytest.skip("the kernel's threads are not seen here")
    before = programs.kernel_time()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert programs.kernel_time() - before < 250


def test_other_sandboxes_are_left_out_with_a_reason_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap, sandlock = (tmp_path / name for name in ("bwrap", "sandlock"))
    bwrap.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    sandlock.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    for program in (bwrap, sandlock):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    notes: list[str] = []
    found = programs.find_others(sys.executable, notes.append)
    assert [other.name for other in found] == ["sandlock"]
    done = subprocess.run(found[0].argv("print(2)"), capture_output=True, check=True)
    assert done.stdout == b"2\n"
    assert any(note.startswith("bwrap") and "no namespaces here" in note for note in notes)
    assert any(note.startswith("docker") and "not installed" in note for note in notes)
