"""What hostile bytes reach on the host, for a fuzzer that is led by the code it has covered.

`python -m tests.support.fuzz TARGET [libFuzzer's options]`; without a target it prints their names.
Each target takes bytes and raises if our code did anything but what it promises.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SEEDS", "TARGETS"]


def frames(data: bytes) -> None:
    """What a guest sends: frames, or a refusal; never more than came."""
    from ms_enclave.guest import protocol

    decoder = protocol.Decoder()
    size = data[0] % 64 + 1 if data else 1
    found: list[protocol.Frame] = []
    try:
        for start in range(1, len(data), size):
            found += decoder.feed(data[start : start + size])
    except protocol.FrameError:
        pass
    again = b"".join(protocol.encode(kind, call, body, on) for kind, on, call, body in found)
    assert data[1:].startswith(again)
    for kind, _, _, payload in found:
        if kind == protocol.CREDIT:
            assert 0 <= protocol.load_credit(payload) < 2**32
        try:
            assert isinstance(protocol.load_body(payload), dict)
        except protocol.FrameError:
            continue


def kernel(data: bytes) -> None:
    """What a kernel sends, which knows the session's name: frames of ours, or a refusal."""
    from ms_enclave.channel._connection import ProtocolError
    from ms_enclave.channel.jupyter import Translator
    from ms_enclave.guest import protocol

    translator = Translator()
    translator.requests(b"".join(protocol.encode_request(7, {"op": "execute", "code": "1"})))
    for line in data.replace(b"SESSION", translator.session.encode()).split(b"\n"):
        try:
            answer = translator.take(line)
        except ProtocolError:
            continue
        for kind, _, _, payload in protocol.Decoder().feed(answer):
            if kind in (protocol.RESULT, protocol.ERROR, protocol.EVENT):
                protocol.load_body(payload)


def archive(data: bytes) -> None:
    """An archive out of a sandbox: nothing is written but plain files below the target."""
    from ms_enclave.errors import ConfigError
    from ms_enclave.utils.archive import extract_tar

    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_SCRATCH))
    try:
        (home / "canary").write_bytes(b"untouched")
        (home / "into").mkdir()
        (home / "into" / "link").symlink_to(home / "canary")
        try:
            extract_tar(io.BytesIO(_summed(data)), home / "into" / "x", max_bytes=1 << 16)
        except ConfigError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ):
                raise
        assert (home / "canary").read_bytes() == b"untouched"
        assert sorted(os.listdir(home)) == ["canary", "into"]
        assert set(os.listdir(home / "into")) <= {"link", "x"}
        for folder, folders, files in os.walk(home / "into" / "x"):
            for name in (*folders, *files):
                assert not os.path.islink(os.path.join(folder, name))
    finally:
        shutil.rmtree(home)


def planted(data: bytes) -> None:
    """The control: a mistake that bytes by chance do not find, and a fuzzer that is led does."""
    from ms_enclave.guest import protocol

    try:
        found = protocol.Decoder().feed(data)
    except protocol.FrameError:
        return
    for _, on, call, _ in found:
        if on == 3 and call >> 24:
            raise AssertionError("the mistake that was planted")


def _summed(data: bytes) -> bytes:
    """With the right check sum in every header, or nothing behind it would ever be looked at."""
    changed = bytearray(data)
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar":
            total = (
                sum(changed[start : start + 148]) + 256 + sum(changed[start + 156 : start + 512])
            )
            changed[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(changed)


def _frame(kind: int, call: int, payload: bytes) -> bytes:
    return struct.pack("!2sBBII", b"mE", kind, 0, call, len(payload)) + payload


def _message(kind: str, content: object, name: str = "7") -> bytes:
    parent = {"msg_id": f"SESSION_{name}"}
    row = {"header": {"msg_type": kind}, "parent_header": parent, "content": content}
    return json.dumps(row).encode()


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        rows = [
            ("a/b", tarfile.REGTYPE, ""),
            ("l", tarfile.SYMTYPE, "../canary"),
            ("d", tarfile.DIRTYPE, ""),
            ("h", tarfile.LNKTYPE, "a/b"),
            ("é" * 70, tarfile.REGTYPE, ""),
            ("l/x", tarfile.REGTYPE, ""),
        ]
        for name, kind, link in rows:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 3 * (kind == tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(b"xyz"))
    return buffer.getvalue()


_SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None

TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames, "kernel": kernel, "archive": archive, "planted": planted,
}  # fmt: skip

SEEDS: dict[str, list[bytes]] = {
    "frames": [
        b"\x20" + _frame(3, 1, b'{"exists": true}') + _frame(8, 1, bytes(4)) + _frame(7, 1, b"")
    ],
    "kernel": [
        _message("execute_reply", {"status": "ok", "execution_count": 1})
        + b"\n" + _message("status", {"execution_state": "idle"}),
        _message("kernel_info_reply", {"banner": "x"}, "hello"),
        _message("stream", {"name": "stdout", "text": "x"}),
        _message("display_data", {"data": {"text/plain": "x"}, "metadata": {}})
        + b"\n" + _message("error", {"ename": "a", "evalue": "b", "traceback": ["c"]})
        + b"\n" + _message("input_request", {"prompt": "?", "password": False}),
    ],
    "archive": [_archive()],
    "planted": [_frame(6, 1, b"x")],
}  # fmt: skip


def main(name: str, options: list[str]) -> None:
    from importlib import import_module

    atheris: Any = import_module("atheris")  # says little of what it has
    with atheris.instrument_imports(include=["ms_enclave"]):
        from ms_enclave.channel import jupyter as _jupyter
        from ms_enclave.guest import protocol as _protocol
        from ms_enclave.utils import archive as _archives

        del _archives, _jupyter, _protocol
    folders = [option for option in options if not option.startswith("-")]
    for number, seed in enumerate(SEEDS[name] if folders else []):
        Path(folders[0], f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], atheris.instrument_func(TARGETS[name]))
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(*(name for name in TARGETS if name != "planted"))
    else:
        main(sys.argv[1], sys.argv[2:])
