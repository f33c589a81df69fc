"""OCI archives: what is unpacked, what is refused, and that nothing leaves its folder."""

from __future__ import annotations

import gzip
import os
import platform
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from ms_enclave.boxes import _process_image as images
from ms_enclave.errors import ConfigError
from tests.support.oci import LAYER, Archive, layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process sandbox is for Linux")

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ms-enclave" / "images"


def tree(root: str) -> dict[str, str]:
    """Every path of a folder and what is there."""
    found: dict[str, str] = {}
    for path in Path(root).rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "" if path.is_dir() else path.read_text()
    return found


@pytest.mark.parametrize("packed", ["", "+gzip"])
def test_layers_are_put_onto_each_other(tmp_path: Path, cache: Path, packed: str) -> None:
    lower = layer(
        ("usr", None), ("usr/lib", None), ("lib", "-> usr/lib"), ("usr/lib/old", b"1"),
        ("usr/lib/changed", b"1"), ("etc", None), ("etc/a", b"1"), ("etc/deep/b", b"1"),
        ("kept", None), ("kept/x", b"1"), ("gone", None), ("gone/x", b"1"), ("file", b"1"),
    )  # fmt: skip
    upper = layer(
        ("lib/new", b"2"), ("lib/changed", b"2"), ("usr/lib/.wh.old", b""), (".wh.gone", b""),
        ("etc/own", b"2"), ("etc/.wh..wh..opq", b""), ("file", None), ("file/now", b"2"),
        ("usr/lib/second", "= usr/lib/new"), ("dev/console", "dev"), ("kept/.wh.missing", b""),
    )  # fmt: skip
    image = images.open_image(Archive(lower, upper, packed=packed).write(tmp_path / "i.tar"))
    assert tree(image.root) == {
        "usr": "", "usr/lib": "", "lib": "-> usr/lib", "usr/lib/new": "2", "usr/lib/changed": "2",
        "usr/lib/second": "2", "etc": "", "etc/own": "2", "kept": "", "kept/x": "1",
        "file": "", "file/now": "2", "dev": "",
    }  # fmt: skip
    assert image.env == {"PATH": "/image/bin", "COLOUR": "red=1"}
    assert Path(image.root).parent == cache
    assert os.stat(f"{image.root}/usr/lib/new").st_mtime == 1_000_000_000


def test_a_whiteout_does_not_hide_what_its_own_layer_has(tmp_path: Path) -> None:
    lower = layer(("d", None), ("d/sub", None), ("d/sub/old", b"1"), ("e", None), ("e/old", b"1"))
    upper = layer(("d/sub/new", b"2"), ("d/.wh..wh..opq", b""), ("e", None), (".wh.e", b""))
    image = images.open_image(Archive(lower, upper).write(tmp_path / "i.tar"))
    assert tree(image.root) == {"d": "", "d/sub": "", "d/sub/new": "2", "e": ""}


def test_special_bits_and_closed_folders_are_not_taken_over(tmp_path: Path) -> None:
    content = layer(("su", b"x", 0o6755), ("closed", None, 0o000), ("closed/f", b"x", 0o000))
    root = Path(images.open_image(Archive(content).write(tmp_path / "i.tar")).root)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("su", "closed")}
    assert modes == {"su": 0o755, "closed": 0o700}
    assert stat.S_IMODE((root / "closed/f").stat().st_mode) == 0o600


def test_an_archive_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    name = Archive(layer(("a", b"1"))).write(tmp_path / "i.tar")
    first = images.open_image(name)
    marker = Path(first.root) / "marker"
    marker.touch()
    assert images.open_image(name) == first
    assert marker.exists()
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


def test_what_somebody_killed_left_is_no_image(tmp_path: Path, cache: Path) -> None:
    name = Archive(layer(("a", b"1"))).write(tmp_path / "i.tar")
    root = Path(images.open_image(name).root)
    root.rename(root.with_name(f"{root.name}.partial"))
    (root.with_name(f"{root.name}.partial") / "half").touch()
    assert tree(images.open_image(name).root) == {"a": "1"}
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


def test_what_was_not_used_for_long_is_forgotten_when_another_comes(
    tmp_path: Path, cache: Path
) -> None:
    names = [
        Archive(layer((name, b"1"))).write(tmp_path / f"{name}.tar") for name in ("a", "b", "c")
    ]
    unused, used = (Path(images.open_image(name).root) for name in names[:2])
    for image in (unused, used):
        os.utime(image.with_name(f"{image.name}.lock"), (1e9, 1e9))
    images.open_image(names[1])
    last = Path(images.open_image(names[2]).root)
    assert {path for path in cache.iterdir() if path.suffix != ".lock"} == {used, last}
    assert tree(images.open_image(names[0]).root) == {"a": "1"}


ESCAPES = [
    layer(("../out", b"x")),
    layer(("a/../../out", b"x")),
    layer(("a", "= ../../../secret")),
    layer(("a", "= /secret")),
    layer(("a", "= ..")),
    layer(("f", b"x"), ("f/below", b"x")),
    layer(("round", "-> round"), ("round/x", b"x")),
]


@pytest.mark.parametrize("content", ESCAPES)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, cache: Path, content: bytes) -> None:
    (tmp_path / "secret").write_text("host")
    with pytest.raises(ConfigError):
        images.open_image(Archive(content).write(tmp_path / "i.tar"))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert not list(tmp_path.rglob("out"))


def test_a_planted_link_leads_to_the_image_itself(tmp_path: Path) -> None:
    """An absolute link and one that climbs both start at the image's root, as they would inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("host")
    content = layer(
        ("abs", f"-> {outside}"), ("up", "-> ../../../../../../.." + str(outside)),
        ("abs/planted", b"x"), ("up/too", b"x"), ("abs/.wh.canary", b""), ("up/.wh..wh..opq", b""),
    )  # fmt: skip
    image = images.open_image(Archive(content).write(tmp_path / "i.tar"))
    assert [path.name for path in outside.iterdir()] == ["canary"]
    assert (Path(image.root + str(outside)) / "planted").read_text() == "x"


def _wrong_layer(archive: Archive) -> None:
    archive.blobs[archive.layers[0]["digest"]] = gzip.compress(layer(("b", b"2")))


def _wrong_content(archive: Archive) -> None:
    archive.settings["rootfs"]["diff_ids"] = [f"sha256:{'0' * 64}"]


def _missing_blob(archive: Archive) -> None:
    del archive.blobs[archive.layers[0]["digest"]]


def _no_gzip(archive: Archive) -> None:
    archive.layers = [archive.add(b"no gzip at all", LAYER + "+gzip")]


def _half_a_gzip(archive: Archive) -> None:
    whole = gzip.compress(os.urandom(5000))
    archive.layers = [archive.add(whole[:2000], LAYER + "+gzip")]


def _unknown_kind(archive: Archive) -> None:
    archive.layers[0]["mediaType"] = LAYER + "+zstd"


def _digest_as_a_path(archive: Archive) -> None:
    archive.layers[0]["digest"] = "sha256:../../../../etc/passwd"


def _too_few_digests(archive: Archive) -> None:
    archive.settings["rootfs"]["diff_ids"] = []


def _settings_of_the_wrong_shape(archive: Archive) -> None:
    archive.settings = {"config": [], "rootfs": "x"}


def _no_manifests(archive: Archive) -> None:
    archive.index = {"manifests": [7]}


def _another_machine(archive: Archive) -> None:
    place = {"os": "linux", "architecture": "sparc"}
    archive.index = {"manifests": [archive.manifest(platform=place)]}


def _indexes_in_indexes(archive: Archive) -> None:
    row = archive.manifest()
    for _ in range(6):
        row = archive.add_json({"manifests": [row]}, "index.v1+json")
    archive.index = {"manifests": [row]}


@pytest.mark.parametrize(
    "spoil",
    [
        _wrong_layer, _wrong_content, _missing_blob, _no_gzip, _half_a_gzip, _unknown_kind,
        _digest_as_a_path, _too_few_digests, _settings_of_the_wrong_shape, _no_manifests,
        _another_machine, _indexes_in_indexes,
    ],
)  # fmt: skip
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, spoil: Any
) -> None:
    archive = Archive(layer(("a", b"1")))
    spoil(archive)
    with pytest.raises(ConfigError, match=r"i\.tar"):
        images.open_image(archive.write(tmp_path / "i.tar"))
    left = [path for path in cache.iterdir() if path.suffix != ".lock"] if cache.exists() else []
    assert left == []


def test_a_layer_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match="more than"):
        images.open_image(Archive(layer(("zeros", bytes(2 << 20)))).write(tmp_path / "i.tar"))


def test_the_image_for_this_machine_is_taken(tmp_path: Path) -> None:
    archive = Archive(layer(("other", b"1")))
    other = archive.manifest(platform={"os": "linux", "architecture": "sparc"})
    archive.settings["rootfs"]["diff_ids"] = []
    ours = Archive(layer(("ours", b"1")))
    row = ours.manifest(platform={"os": "linux", "architecture": MACHINE})
    archive.blobs |= ours.blobs
    archive.index = {"manifests": [archive.add_json({"manifests": [other, row]}, "index.v1+json")]}
    assert tree(images.open_image(archive.write(tmp_path / "i.tar")).root) == {"ours": "1"}


def test_one_of_several_images_is_chosen_by_its_name(tmp_path: Path) -> None:
    archive = Archive(layer(("one", b"1")))
    rows: list[dict[str, Any]] = []
    for name in ("one", "two"):
        made = Archive(layer((name, b"1")))
        key = "org.opencontainers.image.ref.name"
        rows.append(made.manifest(annotations={key: name}))
        archive.blobs |= made.blobs
    archive.index = {"manifests": rows}
    path = archive.write(tmp_path / "i.tar")
    assert tree(images.open_image(f"{path}:two").root) == {"two": "1"}
    with pytest.raises(ConfigError, match="no image three"):
        images.open_image(f"{path}:three")


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, gzip.compress(b"x" * 5000, mtime=0)])
def test_what_is_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "i.tar"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no valid OCI archive"):
        images.open_image(f"oci-archive:{path}")


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in (f"oci-archive:{tmp_path}/none.tar", f"{tmp_path}/none", "/"):
        with pytest.raises(ConfigError, match="There is no"):
            images.open_image(name)
    with pytest.raises(ConfigError, match="directory"):
        images.open_image(f"oci-archive:{tmp_path}")


def test_a_cache_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(ConfigError, match="cannot be unpacked") as caught:
        images.open_image(Archive(layer(("a", b"1"))).write(tmp_path / "i.tar"))
    assert "XDG_CACHE_HOME" in str(caught.value.remedy)


def test_pythons_and_shells_are_found_through_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    assert images.find_python(str(root)) is None
    assert images.find_shell(str(root)) == "/bin/sh"
    for name in ("python3.12", "bash"):
        (root / "usr/bin" / name).touch()
    (root / "usr/bin/python3").symlink_to("/usr/bin/python3.12")
    assert images.find_python(str(root)) == "/usr/bin/python3"
    assert images.find_shell(str(root)) == "/bin/bash"
    (root / "usr/bin/python3.12").rename(root / "usr/bin/python3.6")
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to("python3.6")
    assert images.find_python(str(root)) is None  # older than what our guest runs on


def test_links_of_an_image_never_leave_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "up").symlink_to("../../../../etc")
    (tmp_path / "round").symlink_to("round")
    assert images.resolve_inside(root, "/up/passwd") == f"{root}/etc/passwd"
    assert images.resolve_inside(root, "../../x/../y/") == f"{root}/y"
    with pytest.raises(ConfigError, match="circle"):
        images.resolve_inside(root, "/round/x")


def test_the_loader_of_a_program(tmp_path: Path) -> None:
    loader, folders = images.loader_of(os.path.realpath(sys.executable))
    assert os.access(loader, os.X_OK)
    assert not os.path.islink(loader)
    assert os.path.dirname(loader) in folders
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="cannot be put beside"):
        images.loader_of(str(script))
