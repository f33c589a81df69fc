"""What a process sandbox shows of the host: decided here, done by the spawner.

`look` reads the few facts of the host that count; `compose` turns them and a config into a plan,
purely. Everything that is not in the plan is not in the sandbox.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.model import ProcessSandboxConfig

__all__ = [
    "Bind",
    "Host",
    "Interpreter",
    "RuntimePlan",
    "compose",
    "inspect",
    "look",
    "plan_runtime",
]

OLDEST = (3, 8)
"""The guest runs on CPython from here on."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FROM_ETC = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
    "/etc/os-release", "/etc/localtime", "/etc/timezone", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
    "/etc/pki/tls",
    "/etc/pki/ca-trust", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/mime.types",
    "/etc/services", "/etc/protocols", "/etc/inputrc", "/etc/terminfo",
    "/etc/java-*", "/etc/R", "/etc/perl", "/etc/php", "/etc/lua", "/etc/mono", "/etc/fonts",
    "/etc/python3*", "/etc/node*", "/etc/racket", "/etc/ldc2.conf",
)  # fmt: skip
_NEVER_A_SOURCE = ("/", "/proc", "/sys", "/dev", "/run", "/var/run")
_NEVER_A_TARGET = (
    "/", "/proc", "/sys", "/dev", "/etc", "/run", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/tmp",
)  # fmt: skip
_TOO_WIDE = ("/", "/home", "/root", "/etc", "/var", "/tmp", "/opt", "/srv", "/mnt")
_LINKS = (("/var/tmp", "/tmp"), ("/run/shm", "/dev/shm"))
_FILES = {
    "/etc/passwd": (
        "root:x:0:0:root:/:/bin/sh\n"
        "sandbox:x:1000:1000:sandbox:{work}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
    "/etc/group": "root:x:0:\nsandbox:x:1000:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/hostname": "sandbox\n",
    "/etc/hosts": "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/resolv.conf": "",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BESIDE = "/.enclave/host"
_MANY_LINKS = 40
_ASK = (
    "import json, sys\n"
    "print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.version_info[:3],"
    " sys.implementation.name]))"
)


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host and where it shows."""

    source: str
    target: str
    writable: bool = False

    def row(self) -> dict[str, Any]:
        return {"source": self.source, "target": self.target, "writable": self.writable}


@dataclass(frozen=True)
class Interpreter:
    """A Python: the path it is started by, what it belongs to, and what it is."""

    executable: str
    prefix: str
    base_prefix: str
    version: tuple[int, ...]
    implementation: str = "cpython"

    @property
    def can_be_copied(self) -> bool:
        """Whether it can be a zygote, and not only be started each time."""
        return self.implementation == "cpython"


@dataclass(frozen=True)
class Host:
    """The facts of a host that a plan depends on."""

    own: Interpreter
    system_links: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of `/bin`, `/lib` and the like: those that are links, and where they lead."""
    system_folders: Sequence[str] = ()
    """Those that are folders."""
    etc: Sequence[str] = ()
    """What exists of the short list from `/etc`."""


@dataclass(frozen=True)
class RuntimePlan:
    """What a station builds its root from. `as_station` is the same as the launcher reads it."""

    host_python: str
    """The interpreter that the launcher and the station run under: its real path."""
    python: tuple[str, ...]
    """How a sandbox starts Python."""
    binds: tuple[Bind, ...]
    links: tuple[tuple[str, str], ...]
    files: Mapping[str, str]
    folders: tuple[str, ...]
    env: Mapping[str, str]
    shell: str
    cold_reason: str | None = None
    image: str | None = None
    beside: tuple[Bind, ...] = ()
    volumes: tuple[Bind, ...] = ()
    """Writable folders of the host."""
    image_binds: tuple[Bind, ...] = ()
    """Folders of the host that a root file system of its own shows, too."""
    late: tuple[Bind, ...] = ()
    """What is below a file system that only the sandbox brings, and has to be put over it."""

    def as_station(self) -> dict[str, Any]:
        """The plan as data (JSON)."""
        return {
            "launcher_python": self.host_python,
            "station_python": self.host_python,
            "python": list(self.python),
            "binds": [bind.row() for bind in self.binds],
            "links": [list(link) for link in self.links],
            "files": dict(self.files),
            "folders": list(self.folders),
            "cold_reason": self.cold_reason,
            "image": self.image,
            "beside": [bind.row() for bind in self.beside],
            "beside_links": [list(link) for link in self.links] if self.beside else [],
            "image_binds": [bind.row() for bind in self.image_binds],
            "volumes": [bind.row() for bind in self.volumes],
            "late": [bind.row() for bind in self.late],
        }


# --- looking ------------------------------------------------------------------------------------


def plan_runtime(config: ProcessSandboxConfig) -> RuntimePlan:
    """The plan for a config on this host. Blocks: it reads the disk and may start an interpreter.

    Raises:
        ConfigError: an interpreter, root file system or volume that there is not, or must not be.
    """
    host = look()
    chosen = host.own if config.python is None else inspect(config.python)
    return compose(config, host, chosen, os.path)


def look() -> Host:
    """The facts of this host."""
    own = Interpreter(
        sys.executable,
        sys.prefix,
        sys.base_prefix,
        tuple(sys.version_info[:3]),
        sys.implementation.name,
    )
    links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    folders = [path for path in _SYSTEM if os.path.isdir(path) and path not in links]
    etc = [path for pattern in _FROM_ETC for path in sorted(glob.glob(pattern))]
    return Host(own, links, folders, etc)


def inspect(path: str) -> Interpreter:
    """What an interpreter or a virtual environment of the host is, by asking it.

    Raises:
        ConfigError: there is none at that path, or it is too old.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        place = next(
            (p for p in (place / "bin/python3", place / "bin/python") if p.exists()), place
        )
    if not place.is_file() or not os.access(place, os.X_OK):
        raise ConfigError(
            f"There is no Python interpreter at {path}",
            remedy="give `python` the path of an interpreter or of a virtual environment",
        )
    try:
        done = subprocess.run(
            [str(place.absolute()), "-I", "-c", _ASK],
            capture_output=True, timeout=20, check=True, env={}, cwd="/",
        )  # fmt: skip
        executable, prefix, base, version, name = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise ConfigError(f"{path} does not run as a Python interpreter: {error}") from error
    found = Interpreter(executable, prefix, base, tuple(version), name)
    if found.version < OLDEST:
        raise ConfigError(f"{path} is Python {found.version[0]}.{found.version[1]}, older than 3.8")
    return found


# --- deciding -----------------------------------------------------------------------------------


def compose(
    config: ProcessSandboxConfig, host: Host, chosen: Interpreter, files: Any
) -> RuntimePlan:
    """The plan for a config, a host and the interpreter that the sandbox gets.

    `files` is `os.path`, or what a test has in its place.

    Raises:
        ConfigError: as `plan_runtime`.
    """
    real = files.realpath(host.own.executable)
    binds = [Bind(path, path) for path in (*host.system_folders, *host.etc)]
    links = list(host.system_links.items())
    for interpreter in {host.own, chosen}:
        _add_interpreter(interpreter, binds, links, files)
    given = len(binds)
    volumes = _add_volumes(config, binds)
    image_binds = tuple(binds[given:])
    binds = _without_covered(binds)
    work = config.working_dir
    folders = [work, *(bind.target for bind in volumes)]
    plan = RuntimePlan(
        host_python=real,
        python=(chosen.executable,),
        binds=tuple(binds),
        image_binds=image_binds,
        links=tuple([*links, *_LINKS]),
        files={path: text.replace("{work}", work) for path, text in _FILES.items()},
        folders=tuple(folders),
        env={"PATH": f"{posixpath.join(chosen.prefix, 'bin')}:{_PATH}", "LANG": "C.UTF-8"},
        shell="/bin/bash" if files.exists("/bin/bash") else "/bin/sh",
        cold_reason=None if chosen.can_be_copied else f"{chosen.implementation} cannot be copied",
        volumes=tuple(volumes),
        late=tuple(
            Bind(bind.target, bind.target)
            for bind in binds
            if any(_below(bind.target, own) for own in (work, "/tmp"))
        ),
    )
    return plan if config.rootfs is None else _with_image(plan, config.rootfs, real, files)


def _add_interpreter(
    interpreter: Interpreter, binds: list[Bind], links: list[tuple[str, str]], files: Any
) -> None:
    """Everything that an interpreter needs of the host: its prefixes, and the links to it."""
    for prefix in (interpreter.base_prefix, interpreter.prefix):
        home = files.expanduser("~")
        if prefix in _TOO_WIDE or prefix == home:
            raise ConfigError(
                f"The interpreter {interpreter.executable} has {prefix} as its prefix, and a"
                " sandbox would see all of it",
                remedy="use a Python in a folder of its own, for instance a virtual environment",
            )
        binds.append(Bind(prefix, prefix))
    path = interpreter.executable
    for _ in range(_MANY_LINKS):
        if not files.islink(path):
            break
        target = os.readlink(path)
        if not _covered(path, binds):
            links.append((path, target))
        path = files.normpath(files.join(files.dirname(path), target))
    real = files.realpath(interpreter.executable)
    if not _covered(real, binds):
        binds.append(Bind(real, real))


def _covered(path: str, binds: Sequence[Bind]) -> bool:
    return any(_below(path, bind.target) for bind in binds if not bind.writable)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _without_covered(binds: Sequence[Bind]) -> list[Bind]:
    """Each bind once, and none that another already shows at the same place."""
    kept: list[Bind] = []
    for bind in sorted(set(binds), key=lambda bind: (bind.target.count("/"), bind.target)):
        shown = any(
            bind.source == bind.target and other.source == other.target
            and _below(bind.target, other.target)
            for other in kept
        )  # fmt: skip
        if not shown:
            kept.append(bind)
    return kept


def _add_volumes(config: ProcessSandboxConfig, binds: list[Bind]) -> list[Bind]:
    """Add the volumes that are only read; the writable ones are returned."""
    writable: list[Bind] = []
    for source, spec in config.volumes.items():
        bind = _volume(source, spec)
        if bind.writable:
            writable.append(bind)
        else:
            binds.append(bind)
    return writable


def _volume(source: str, spec: Mapping[str, str]) -> Bind:
    """One volume, checked.

    Raises:
        ConfigError: the source is not there or must not be shown, or the target is taken.
    """
    unknown = set(spec) - {"bind", "mode"}
    mode = spec.get("mode", "rw")
    target = spec.get("bind", "")
    if unknown or mode not in ("ro", "rw"):
        raise ConfigError(f"volume {source}: give it as {{'bind': path, 'mode': 'ro' or 'rw'}}")
    if not posixpath.isabs(target) or posixpath.normpath(target) != target.rstrip("/"):
        raise ConfigError(f"volume {source}: its target must be a plain absolute path: {target!r}")
    target = target.rstrip("/")
    if target in _NEVER_A_TARGET or _below(target, "/proc") or _below(target, "/run/enclave"):
        raise ConfigError(f"volume {source}: {target or '/'} is taken")
    real = os.path.realpath(os.path.expanduser(source))
    if not os.path.isabs(os.path.expanduser(source)) or not os.path.exists(real):
        raise ConfigError(f"volume {source}: there is no such file or folder on the host")
    if real in _NEVER_A_SOURCE or any(_below(real, path) for path in ("/proc", "/sys", "/dev")):
        raise ConfigError(f"volume {source}: {real} is never shown to a sandbox")
    if stat.S_ISSOCK(os.stat(real).st_mode):
        raise ConfigError(f"volume {source}: a socket would lead out of the sandbox")
    return Bind(real, target, mode == "rw")


def _with_image(plan: RuntimePlan, rootfs: str, real: str, files: Any) -> RuntimePlan:
    """The same plan for sandboxes that get a root file system of their own.

    One without Python gets the host's beside it, started by the host's own loader, since nothing
    of the host's libraries is where it expects them.

    Raises:
        ConfigError: there is no such folder.
    """
    root = files.realpath(files.expanduser(rootfs))
    given = {bind.target for bind in plan.image_binds}
    if not files.isdir(root) or root == "/":
        raise ConfigError(
            f"There is no root file system at {rootfs}",
            remedy="give `rootfs` a folder, or oci-archive: and the path of an archive",
        )
    here = ("/usr/local/bin/python3", "/usr/bin/python3", "/bin/python3")
    python = next((path for path in here if _exists_inside(root, path)), None)
    shell = next(
        (path for path in ("/bin/bash", "/bin/sh") if _exists_inside(root, path)), "/bin/sh"
    )
    words: tuple[str, ...] = (python or "",)
    if python is None:
        loader, libraries = _loader(real)
        words = (f"{_BESIDE}{loader}", "--library-path", libraries, f"{_BESIDE}{real}")
    return RuntimePlan(
        host_python=plan.host_python,
        python=words,
        binds=plan.binds,
        links=plan.links,
        files=plan.files,
        folders=plan.folders,
        env={"PATH": _PATH, "LANG": "C.UTF-8"},
        shell=shell,
        cold_reason="a root file system of its own is served by a new interpreter each time",
        image=root,
        beside=plan.binds if python is None else (),
        volumes=plan.volumes,
        image_binds=plan.image_binds,
        late=tuple(bind for bind in plan.late if bind.target in given),
    )


def _exists_inside(root: str, path: str) -> bool:
    """Whether a path exists with `root` as the root, links included."""
    for _ in range(_MANY_LINKS):
        place = root
        parts = [part for part in path.split("/") if part]
        for index, part in enumerate(parts):
            place = os.path.join(place, part)
            if os.path.islink(place):
                rest = "/".join(parts[index + 1 :])
                target = os.readlink(place)
                above = "/" + "/".join(parts[:index])
                path = posixpath.normpath(posixpath.join("/", above, target, rest))
                break
            if not os.path.lexists(place):
                return False
        else:
            return True
    return False


def _loader(program: str) -> tuple[str, str]:
    """The dynamic loader of a program of the host and where its libraries are, both as paths
    below the root that shows the host.

    Raises:
        ConfigError: the program is not an ELF file with a loader.
    """
    with open(program, "rb") as file:
        header = file.read(64)
        loader = None
        if header[:5] == b"\x7fELF\x02":
            offset = int.from_bytes(header[32:40], "little")
            size = int.from_bytes(header[54:56], "little")
            for number in range(int.from_bytes(header[56:58], "little")):
                file.seek(offset + number * size)
                row = file.read(size)
                if int.from_bytes(row[:4], "little") == 3:  # PT_INTERP
                    file.seek(int.from_bytes(row[8:16], "little"))
                    loader = file.read(int.from_bytes(row[32:40], "little")).rstrip(b"\0").decode()
    if loader is None:
        raise ConfigError(f"{program} cannot be put beside a root file system without Python")
    folders = [
        os.path.join(os.path.dirname(os.path.dirname(program)), "lib"),  # its own before others
        os.path.dirname(os.path.realpath(loader)),
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
        *sorted(glob.glob("/usr/lib/*-linux-gnu")),
    ]
    return os.path.realpath(loader), ":".join(dict.fromkeys(_BESIDE + folder for folder in folders))
