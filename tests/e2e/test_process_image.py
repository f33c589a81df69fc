"""A sandbox over a root file system that came as an OCI archive."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import ConfigError
from tests.support.oci import Archive, layer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]


def shell_layer() -> bytes:
    """A shell and cat with their libraries, found through a link as in most images."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        tar.addfile(link)
        for program in ("sh", "cat"):
            listed = subprocess.run(
                ["ldd", f"/bin/{program}"], capture_output=True, text=True, check=True
            )
            tar.add(os.path.realpath(f"/bin/{program}"), f"bin/{program}")
            for library in re.findall(r"(/\S+) \(0x", listed.stdout):
                tar.add(os.path.realpath(library), library.lstrip("/"))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lower = layer(("etc/whoami", b"lower\n"), ("etc/gone", b"x"))
    upper = layer(("etc/whoami", b"the image\n"), ("etc/.wh.gone", b""))
    return Archive(shell_layer(), lower, upper)


async def test_an_archive_is_a_root_file_system(archive: Archive, tmp_path: Path) -> None:
    rootfs = archive.write(tmp_path / "image.tar")
    for _ in range(2):  # unpacked, and found
        async with ProcessSandbox({"rootfs": rootfs}) as box:
            shown = await box.execute_command("/bin/cat /etc/whoami /etc/gone; echo $COLOUR $PATH")
            assert shown.stdout == "the image\nred=1 /image/bin\n"
            result = await box.run_code("import sys, ssl; print(sys.version_info[:2])")
            assert result.stdout == f"{sys.version_info[:2]}\n", result.stderr
            assert (await box.execute_command("echo > /planted")).exit_code != 0


async def test_what_a_sandbox_stands_on_is_not_forgotten(archive: Archive, tmp_path: Path) -> None:
    rootfs = archive.write(tmp_path / "image.tar")
    other = Archive(shell_layer()).write(tmp_path / "other.tar")
    images = tmp_path / "cache" / "ms-enclave" / "images"
    async with ProcessSandbox({"rootfs": rootfs}) as box:
        (lock,) = images.glob("*.lock")
        os.utime(lock, (1e9, 1e9))
        async with ProcessSandbox({"rootfs": other}):
            assert (await box.execute_command("/bin/cat /etc/whoami")).stdout == "the image\n"
    assert lock.with_suffix("").is_dir()


async def test_a_damaged_archive_starts_nothing(archive: Archive, tmp_path: Path) -> None:
    archive.blobs[archive.layers[0]["digest"]] = b"something else"
    with pytest.raises(ConfigError, match="does not have the digest"):
        await ProcessSandbox({"rootfs": archive.write(tmp_path / "image.tar")}).start()
