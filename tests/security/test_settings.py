"""What walls are made of is said by a sandbox's config, and by nothing that lies about."""

from __future__ import annotations

import os
import tokenize
from pathlib import Path

import pytest

import ms_enclave
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import (
    ColdSandbox,
    LandlockSandbox,
    NoGroupsLandlockSandbox,
    NoGroupsSandbox,
)
from tests.support.parts import descendants_of

SOURCE = Path(ms_enclave.__file__).parent
READERS = {
    "boxes/_docker_where.py": "where the engine is",
    "boxes/_snapshot_store.py": "where snapshots are kept",
    "boxes/_docker_seccomp.py": "where what was made of the profile is kept",
    "boxes/_process_image.py": "where unpacked images are kept",
    "boxes/_process_probe.py": "what to advise in a cluster",
    "boxes/notebook/gateway_config.py": "inside a container",
}
"""Modules about sandboxes that look into an environment, and for what."""
KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox, LandlockSandbox, NoGroupsLandlockSandbox]


def reads_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv", "getenvb"}
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        return any(token.type == tokenize.NAME and token.string in names for token in tokens)


def test_no_variable_of_the_environment_reaches_a_wall() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for part in ("spawner", "boxes", "manager", "model", "channel")
        for path in (SOURCE / part).rglob("*.py")
        if reads_environment(path)
    }
    assert found == set(READERS)


@pytest.mark.anyio
@pytest.mark.namespaces
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_that_makes_sandboxes_has_the_callers_environment(
    kind: type[ProcessSandbox],
) -> None:
    """Whoever got into one of them would find no key there."""
    assert "PYTEST_CURRENT_TEST" in os.environ
    async with kind() as box:
        await box.run_code("print(1)")
        launcher, _ = box._station.launcher  # pyright: ignore[reportPrivateUsage]
        family = [launcher, *descendants_of(launcher)]
        assert len(family) > 2
        seen = 0
        for pid in family:
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has just ended, or is one that nobody but root may look into
            assert b"PYTEST_" not in environment, pid
            seen += 1
        assert seen > 2 or os.geteuid() != 0
