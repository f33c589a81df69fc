"""A root file system that was made to lead the station's mounts astray."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import SandboxStartError
from ms_enclave.model import ProcessSandboxConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

LINKS = {
    "mnt": "/run/enclave/code",
    "proc": "/etc",
    "dev": "/usr",
    "tmp": "/dev/shm",
    "work": "/run/enclave",
    ".enclave": "/run/enclave",
}


@pytest.mark.parametrize("name", LINKS)
async def test_a_link_in_a_mounts_place_is_refused(tmp_path: Path, name: str) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    for folder in (image / "bin", volume / "spawner"):
        folder.mkdir(parents=True)
    (volume / "spawner" / "station.py").write_text("raise SystemExit('the volume ran')\n")
    (image / name).symlink_to(LINKS[name])
    config = ProcessSandboxConfig(
        rootfs=str(image),
        working_dir="/work/folder",
        volumes={str(volume): {"bind": "/mnt/ms_enclave", "mode": "ro"}},
    )
    box = ProcessSandbox(config)
    with pytest.raises(SandboxStartError, match=f"link at /{name}"):
        await box.start()
    await box.stop()
