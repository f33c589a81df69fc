"""What is left behind for the next owner of a container."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync

from ms_enclave.boxes import _docker_kept as kept
from ms_enclave.manager import LocalSandboxManager

if TYPE_CHECKING:
    from pathlib import Path

NOTE = kept.Note(
    id="box", container="c" * 64, config={"image": "x"}, created_at="2026-01-01T00:00:00+00:00",
    boot="b", until=1.0, environment={"A": "b"}, user="0", python="python3", isolation={},
    metadata={},
)  # fmt: skip


def test_a_note_is_read_as_it_was_written_and_by_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "docker"
    kept.write(str(folder), NOTE)
    assert kept.read_all(str(folder)) == ([NOTE], [])
    assert (folder / "box.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o077 == 0
    kept.forget(str(folder), "box")
    kept.forget(str(folder), "box")
    assert kept.read_all(str(folder)) == ([], [])


def test_a_note_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "box.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        kept.write(str(tmp_path), NOTE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["box.json"]


async def test_an_engine_that_is_away_loses_nothing_of_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    boot, _ = await run_sync(kept.now)
    note = replace(NOTE, boot=boot, until=None)
    folder = tmp_path / "state"
    async with LocalSandboxManager(state_dir=str(folder)):
        await run_sync(kept.write, str(folder / "docker"), note)
    for _ in range(2):
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert await manager.list_sandboxes() == []
        assert await run_sync(kept.read_all, str(folder / "docker")) == ([note], [])


def test_what_was_left_before_the_machine_started_has_no_time() -> None:
    assert kept.left(NOTE) == 0.0
