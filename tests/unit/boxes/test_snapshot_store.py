"""Where snapshots are stored: what may be one, what is shared, and what is never half there."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import _snapshot_plan as plan
from ms_enclave.boxes._snapshot_store import SnapshotStore
from ms_enclave.errors import (
    ConfigError,
    QuotaExceededError,
    SnapshotNotFoundError,
    SnapshotStoreError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ms_enclave.model import SnapshotInfo

Row = tuple[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def store(folder: Path) -> SnapshotStore:
    return SnapshotStore(str(folder))


def tar_of(*rows: Row) -> bytes:
    """A tar: name and content, or name and fields of its header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in rows:
            member = tarfile.TarInfo(name)
            content = what if isinstance(what, bytes) else None
            if content is not None:
                member.size = len(content)
            else:
                for key, value in what.items():
                    setattr(member, key, value)
            tar.addfile(member, None if content is None else io.BytesIO(content))
    return buffer.getvalue()


def put(store: SnapshotStore, name: str, tar: bytes) -> SnapshotInfo:
    with store.begin() as incoming:
        incoming.write(tar)
        return incoming.enter(name)


def read(store: SnapshotStore, name: str) -> bytes:
    with store.hold(name) as held:
        return b"".join(held.pieces())


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- hostile archives ---

LINK, HARD = {"type": tarfile.SYMTYPE, "linkname": "/etc"}, tarfile.LNKTYPE

HOSTILE: dict[str, bytes] = {
    "dots": tar_of(("work/../../evil", b"x")),
    "absolute": tar_of(("/work/evil", b"x")),
    "elsewhere": tar_of(("etc/passwd", b"x")),
    "through a link": tar_of(("work/link", LINK), ("work/link/evil", b"x")),
    "a link instead of the folder": tar_of(("work", LINK)),
    "below a file": tar_of(("work/file", b"x"), ("work/file/below", b"x")),
    "twice": tar_of(("work/file", b"x"), ("work/file", b"y")),
    "a link twice": tar_of(("work/file", LINK), ("work/file", b"y")),
    "a device": tar_of(("work/dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})),
    "a disk": tar_of(("work/dev", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0})),
    "a pipe": tar_of(("work/pipe", {"type": tarfile.FIFOTYPE})),
    "a name of what is outside": tar_of(("work/x", {"type": HARD, "linkname": "../../etc/shadow"})),
    "a name of nothing": tar_of(("work/x", {"type": HARD, "linkname": "work/none"})),
    "a name of a link": tar_of(("work/l", LINK), ("work/x", {"type": HARD, "linkname": "work/l"})),
    "a name of itself": tar_of(("work/x", {"type": HARD, "linkname": "work/x"})),
    "an owner of elsewhere": tar_of(("work/x", {"uid": 100_000})),
    "an owner below nobody": tar_of(("work/x", {"uid": -1})),
    "too deep": tar_of(("work/" + "d/" * 250 + "x", b"x")),
    "an empty link": tar_of(("work/x", {"type": tarfile.SYMTYPE, "linkname": ""})),
    "more than there is": tar_of(("work/x", {"size": 1 << 40})),
    "cut": tar_of(("work/x", b"x" * 2000))[:1500],
    "no tar": b"hello" * 1000,
    "a million folders": tar_of(*((f"work/{n}/" + "d/" * 190 + "x", b"") for n in range(120))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_left(
    store: SnapshotStore, folder: Path, what: str
) -> None:
    put(store, "good", tar_of(("work/file", b"text")))
    before = everything(folder)
    with pytest.raises(ConfigError):
        put(store, "bad", HOSTILE[what])
    assert everything(folder) == before
    assert [*(folder / "incoming").iterdir()] == []
    assert [info.name for info in store.list()] == ["good"]


def test_special_bits_are_not_taken_over_and_links_stay_text(
    store: SnapshotStore, folder: Path
) -> None:
    rows: list[Row] = [
        ("work/tool", {"mode": 0o6755, "uid": 0}),
        ("work/dir", {"type": tarfile.DIRTYPE, "mode": 0o7777}),
        ("work/link", {"type": tarfile.SYMTYPE, "linkname": "../../../etc/shadow"}),
    ]
    put(store, "one", tar_of(*rows))
    with tarfile.open(fileobj=io.BytesIO(read(store, "one"))) as tar:
        assert tar.getmember("work/tool").mode == 0o755
        assert tar.getmember("work/dir").mode == 0o1777
        assert tar.getmember("work/link").linkname == "../../../etc/shadow"
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


def test_too_many_bytes_are_refused_before_they_are_stored(
    store: SnapshotStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="1000 bytes"):
        put(store, "one", tar_of(("work/a", b"x" * 600), ("work/b", b"y" * 600)))
    assert everything(folder) == {"lock"}


# --- what is shared ---


def test_the_same_content_is_stored_once(store: SnapshotStore, folder: Path) -> None:
    first = put(store, "one", tar_of(("work/a", b"same"), ("work/b", b"same")))
    again = put(store, "two", tar_of(("work/b", b"same"), ("work/a", b"same")))
    other = put(store, "three", tar_of(("work/a", b"same"), ("work/c", b"other")))
    assert first.id == again.id != other.id
    assert len(os.listdir(folder / "contents")) == 2
    assert len(os.listdir(folder / "listings")) == 2
    store.delete("one")
    store.delete("three")
    assert len(os.listdir(folder / "contents")) == 1
    assert b"same" in read(store, "two")


def test_what_it_gives_is_what_it_takes(store: SnapshotStore) -> None:
    name = "work/" + "ö\udcff" * 60
    rows: list[Row] = [
        (name, {"mtime": 1234567890.25, "mode": 0o640, "uid": 7, "gid": 8}),
        ("work/a", b"content"),
        ("work/z", {"type": HARD, "linkname": "work/a"}),
        ("work/y", {"type": HARD, "linkname": "work/z"}),
    ]
    first = put(store, "one", tar_of(*rows))
    assert put(store, "two", read(store, "one")).id == first.id
    with tarfile.open(fileobj=io.BytesIO(read(store, "two"))) as tar:
        member = tar.getmember(name)
        assert (member.mtime, member.mode, member.uid, member.gid) == (1234567890.25, 0o640, 7, 8)
        assert {tar.getmember(one).linkname for one in ("work/z", "work/y")} == {"work/a"}


def test_who_reads_one_goes_on_when_it_is_deleted(store: SnapshotStore, folder: Path) -> None:
    put(store, "one", tar_of(("work/a", b"text")))
    with SnapshotStore(str(folder)).hold("one") as held:
        store.delete("one")
        with pytest.raises(SnapshotNotFoundError):
            store.find("one")
        put(store, "two", tar_of(("work/b", b"else")))
        store.delete("two")  # sweeps, and leaves what is read
        assert b"text" in b"".join(held.pieces())
    put(store, "three", tar_of())
    store.delete("three")
    assert everything(folder) == {"lock"}


# --- what is broken off ---


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(
    store: SnapshotStore, folder: Path
) -> None:
    put(store, "one", tar_of(("work/a", b"kept")))
    before = everything(folder)
    code = (
        "import resource, signal, sys\n"
        "from ms_enclave.boxes._snapshot_store import SnapshotStore\n"
        "from ms_enclave.errors import SnapshotStoreError\n"
        "store = SnapshotStore(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    with store.begin() as incoming:\n"
        "        incoming.write(sys.stdin.buffer.read())\n"
        "        incoming.enter('two')\n"
        "except SnapshotStoreError as error:\n"
        "    print('typed', error)\n"
    )
    tar = tar_of(("work/a", b"x" * 20_000))
    done = subprocess.run([sys.executable, "-c", code, str(folder)], input=tar, capture_output=True)
    assert done.stdout.startswith(b"typed"), done.stderr
    assert everything(folder) == before
    assert [info.name for info in store.list()] == ["one"]


def test_a_disk_that_is_full_at_the_last_step_leaves_nothing_either(
    store: SnapshotStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "one", tar_of(("work/a", b"kept")))
    before = everything(folder)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "sync", full)
    with pytest.raises(SnapshotStoreError, match="make room"):
        put(store, "two", tar_of(("work/a", b"kept"), ("work/b", b"new")))
    assert everything(folder) == before


def test_what_a_killed_one_left_is_removed_and_what_a_living_one_makes_is_not(
    store: SnapshotStore, folder: Path
) -> None:
    put(store, "one", tar_of(("work/a", b"x")))
    dead = folder / "incoming" / "dead"
    dead.mkdir()
    (dead / "archive").write_bytes(b"part")
    (folder / "incoming" / "name.new").write_bytes(b"part")
    (folder / "contents" / ("0" * 64)).write_bytes(b"moved, and then killed")
    with store.begin() as living:
        living.write(tar_of(("work/b", b"y")))
        store.delete("one")
        assert not dead.exists()
        assert living.enter("two").name == "two"
    assert everything(folder) - {"lock"} == {
        "names/two",
        f"listings/{store.find('two').id.partition(':')[2]}",
        f"contents/{plan.digest_of(b'y')}",
    }


def test_a_damaged_content_is_found_before_it_is_given_whole(
    store: SnapshotStore, folder: Path
) -> None:
    put(store, "one", tar_of(("work/a", b"text")))
    (folder / "contents" / plan.digest_of(b"text")).write_bytes(b"evil")
    with pytest.raises(SnapshotStoreError, match="damaged"):
        read(store, "one")


def test_a_folder_that_others_may_write_is_refused(store: SnapshotStore, folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="closed to everybody"):
        put(store, "one", tar_of())


def test_there_are_no_more_than_there_may_be(folder: Path) -> None:
    bounded = SnapshotStore(str(folder), lambda: 1)
    put(bounded, "one", tar_of())
    with pytest.raises(QuotaExceededError):
        put(bounded, "two", tar_of())
    bounded.delete("one")
    put(bounded, "two", tar_of())


def test_two_that_take_one_name_at_once_get_it_once(store: SnapshotStore, folder: Path) -> None:
    other = SnapshotStore(str(folder))
    with store.begin() as first, other.begin() as second:
        for one, text in ((first, b"first"), (second, b"second")):
            one.write(tar_of(("work/a", text)))
        first.enter("name")
        with pytest.raises(ConfigError, match="already"):
            second.enter("name")
    assert b"first" in read(store, "name")
    assert len(os.listdir(folder / "contents")) == 1
