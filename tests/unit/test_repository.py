"""The repository itself: its scripts, its pinned requirements, the package that it builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    ROOT / ".ci" / "run",
    *(ROOT / "scripts" / n for n in ("setup", "check", "test", "bench", "postgres")),
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_every_development_requirement_is_pinned_and_hashed_and_names_no_index() -> None:
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==", entry), entry
        assert "--hash=sha256:" in entry
        assert "://" not in entry


def test_continuous_integration_is_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", readme, flags=re.DOTALL)
    assert commands is not None
    assert commands.group(1).split() == ["scripts/setup", "scripts/test"]
    assert "exec scripts/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_its_licence_and_its_marker_for_types(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("ms_enclave-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "ms_enclave/__init__.py" in names
    assert {"ms_enclave/py.typed", "ms_enclave/bench/floor.c"} <= set(names)
    steps = ROOT / "src" / "ms_enclave" / "server" / "store" / "migrations" / "versions"
    assert {f"ms_enclave/server/store/migrations/versions/{step.name}"
            for step in steps.glob("*.py")} <= set(names)  # fmt: skip
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ms_enclave"}
