"""What stands beside `docker` sandboxes: the same options, and other libraries that may fail."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ms_enclave.bench import containers, rivals, run
from ms_enclave.bench.context import QUICK
from ms_enclave.bench.table import ROWS
from ms_enclave.boxes import _docker_plan as plans
from ms_enclave.boxes._docker_seccomp import profile
from ms_enclave.model import DockerSandboxConfig


def host(**config: Any) -> dict[str, Any]:
    made = DockerSandboxConfig(**config)
    dialect = plans.Dialect(profile())
    plan = plans.plan_container(made, plans.limits_of(made), {}, strict_user=0, dialect=dialect)
    return plan.document["HostConfig"]


def test_the_engines_own_gets_the_walls_and_limits_that_ours_has(tmp_path: Path) -> None:
    given = host(memory_limit="64m", cpu_limit=1.5, pids_limit=33)
    words = containers.words_of(given, tmp_path)
    assert {
        "--network=none", "--memory=67108864", "--memory-swap=67108864", "--cpu-quota=150000",
        "--pids-limit=33", "--cap-drop=ALL", "--cap-add=CHOWN", "--log-driver=none",
        "--security-opt=no-new-privileges:true",
    } <= set(words)  # fmt: skip
    assert any(word.startswith("--tmpfs=/sandbox:rw,exec") for word in words)
    profiles = [word for word in words if "seccomp=" in word]
    for word in profiles:
        with open(word.partition("seccomp=")[2], encoding="utf-8") as file:
            assert json.load(file)["defaultAction"]
    assert len(profiles) == sum(o.startswith("seccomp=") for o in given["SecurityOpt"])


def test_a_setting_that_the_client_is_not_told_of_is_no_fair_comparison(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Runtime"):
        containers.words_of(host(runtime="runsc"), tmp_path)


def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: str) -> None:
    """An environment whose interpreter is a program of ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = rivals.folder() / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)


def test_one_that_is_installed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(tmp_path, monkeypatch, "llm-sandbox", 'echo "[1.5, 2]"; echo "$@" >&2')
    notes: list[str] = []
    (found,) = rivals.find(notes.append)
    assert found.measure("start", "an-image", 2) == [1.5, 2.0]
    assert notes == ["older ms-enclave: not measured; --rivals installs it for that"]


@pytest.mark.parametrize("program", ['echo "no such engine" >&2; exit 1', "echo no such engine"])
def test_one_that_fails_says_so_once_and_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    count = tmp_path / "count"
    _library(tmp_path, monkeypatch, "older-ms-enclave", f"echo >> {count}; {program}")
    notes: list[str] = []
    (found,) = rivals.find(notes.append)
    assert [found.measure("true", "an-image", 1) for _ in range(3)] == [[], [], []]
    assert [note for note in notes if note.startswith("older ms-enclave: it does not work")]
    assert len(notes) == 2
    assert count.read_text(encoding="utf-8") == "\n"


def test_one_whose_notebooks_do_not_work_is_measured_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _library(tmp_path, monkeypatch, "older-ms-enclave", '[ "$3" != notebook ] && echo "[3]"')
    notes: list[str] = []
    (found,) = rivals.find(notes.append)
    taken = [found.measure(what, "an-image", 1) for what in ("notebook", "crowd", "notebook")]
    assert taken == [[], [3.0], []]
    assert len([note for note in notes if "its notebook does not work here" in note]) == 1


def test_what_cannot_be_installed_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    said: list[str] = []
    rivals.make(said.append)
    assert sum("cannot be installed" in text for text in said) == 2
    assert rivals.find(said.append) == []
    assert list(rivals.folder().iterdir()) == []


def test_a_client_that_says_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.setattr(containers, "_PATIENCE", 0.3)
    engine = containers.Engine(str(docker), "an-image", ())
    with pytest.raises(RuntimeError, match="printed b''"):
        engine.first_output()
    with pytest.raises(subprocess.TimeoutExpired):
        engine.call("ps")


@pytest.mark.parametrize("script", ["_rival.py", "_gateway.py"])
def test_what_runs_elsewhere_imports_nothing_of_ours(script: str) -> None:
    """Where `ms_enclave` is somebody else's package, or none."""
    ask = "import sys, runpy; runpy.run_path(sys.argv[1]); print('ms_enclave' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ask, str(Path(rivals.__file__).with_name(script))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_row_whose_image_is_not_there_is_left_out_and_said(tmp_path: Path, there: bool) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\nexit {0 if there else 1}\n", encoding="utf-8")
    docker.chmod(0o755)
    engine = containers.Engine(str(docker), "an-image", ())
    (row,) = [row for row in ROWS if row.name == "docker-notebook"]
    measured = run.Measured([row], QUICK)
    assert run._has_its_containers(row, engine, measured) is there
    assert bool(measured.notes) is not there
