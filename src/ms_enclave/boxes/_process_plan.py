"""What a process sandbox shows of the host: decided here, done by the spawner.

`look` reads the few facts of the host that count; `compose` turns them and a config into a plan,
purely. Everything that is not in the plan is not in the sandbox.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes._process_binds import Bind, below, covered, volume_binds, without_covered
from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ms_enclave.model import ProcessSandboxConfig

__all__ = [
    "Bind",
    "Host",
    "Interpreter",
    "RuntimePlan",
    "closed_part",
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
_NO_WORK_FOLDER = (*_SYSTEM, "/proc", "/sys", "/dev", "/etc", "/run", "/.enclave")
_TOO_WIDE = ("/", "/home", "/root", "/etc", "/var", "/tmp", "/opt", "/srv", "/mnt", "/run")  # noqa: S108 - not used as one
_TOO_WIDE_AT_HOME = ("~", "~/.local", "~/.config", "~/.cache")
_LINKS = (("/var/tmp", "/tmp"), ("/run/shm", "/dev/shm"))  # noqa: S108 - inside
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
COVERED = "/.enclave/python"
"""Where the interpreter is that a starter stands in the place of."""
_MANY_LINKS = 40
_ASK = (
    "import json, sys\n"
    "print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.version_info[:3],"
    " sys.implementation.name]))"
)


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
class Starter:
    """How a program of the host is started where the kernel would not find its loader."""

    program: str
    loader: str
    words: tuple[str, ...]

    def row(self) -> dict[str, str]:
        """What to put in the program's place (`code`), so that it starts what it has covered."""
        from ms_enclave.boxes._starter import starter  # seldom needed

        code = starter(self.loader, (*self.words, COVERED))
        return {"program": self.program, "code": code.hex()}


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
    starter: Starter | None = None
    volumes: tuple[Bind, ...] = ()
    """Writable folders of the host."""
    image_binds: tuple[Bind, ...] = ()
    """Folders of the host that a root file system of its own shows, too."""
    late: tuple[Bind, ...] = ()
    """What is below a file system that only the sandbox brings, and has to be put over it."""
    entered: tuple[str, ...] = ()
    """Files and folders of the host that a sandbox's user needs for its Python."""

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
            "starter": None if self.starter is None else self.starter.row(),
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
    return compose(config, host, chosen)


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
    etc = [path for path in etc if os.path.exists(path)]  # a time zone may be a dangling link
    return Host(own, links, folders, etc)


def inspect(path: str) -> Interpreter:
    """What an interpreter or a virtual environment of the host is, by asking it.

    Raises:
        ConfigError: there is none at that path, or it is too old.
    """
    place = Path(path).expanduser()
    if "/" not in path and not place.is_dir():
        import shutil  # slow to import, and seldom needed

        place = Path(shutil.which(path) or path)
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
    found = Interpreter(executable or str(place.absolute()), prefix, base, tuple(version), name)
    if found.version < OLDEST:
        raise ConfigError(f"{path} is Python {found.version[0]}.{found.version[1]}, older than 3.8")
    return found


def closed_part(plan: RuntimePlan) -> str | None:
    """A file or folder of the sandbox's Python that other users than its owner may not use.

    Folders above what is bound do not count: only what is bound shows inside.
    """
    for path in plan.entered:
        sources = [bind.source for bind in plan.binds if below(path, bind.source)]
        source = max(sources, key=len, default=path)
        while below(path, source) and os.path.exists(path):
            if os.stat(path).st_mode & 0o005 != 0o005:
                return path
            if path == source:
                break
            path = os.path.dirname(path)
    return None


# --- deciding -----------------------------------------------------------------------------------


def compose(config: ProcessSandboxConfig, host: Host, chosen: Interpreter) -> RuntimePlan:
    """The plan for a config, a host and the interpreter that the sandbox gets.

    Raises:
        ConfigError: as `plan_runtime`.
    """
    if not host.own.executable:
        raise ConfigError(
            "This program does not know which Python interpreter it runs in",
            remedy="run it by an installed python3",
        )
    binds = [Bind(path, path) for path in (*host.system_folders, *host.etc)]
    links = dict(host.system_links)
    for interpreter in dict.fromkeys((host.own, chosen)):
        _add_interpreter(interpreter, binds, links)
    volumes = volume_binds(config.volumes, [] if config.rootfs else binds)
    image_binds = [bind for bind in volumes if not bind.writable]
    binds = without_covered([*binds, *image_binds])
    writable = tuple(bind for bind in volumes if bind.writable)
    work = _work_folder(config.working_dir)
    plan = RuntimePlan(
        host_python=os.path.realpath(host.own.executable),
        python=(chosen.executable,),
        binds=tuple(binds),
        image_binds=tuple(image_binds),
        links=(*links.items(), *_LINKS),
        files={path: text.replace("{work}", work) for path, text in _FILES.items()},
        folders=(work, *(bind.target for bind in writable)),
        env={"PATH": f"{posixpath.join(chosen.prefix, 'bin')}:{_PATH}", "LANG": "C.UTF-8"},
        shell="/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh",
        cold_reason=None if chosen.can_be_copied else f"{chosen.implementation} cannot be copied",
        volumes=writable,
        entered=tuple(_needs(chosen)),
        late=tuple(
            Bind(bind.target, bind.target)
            for bind in binds
            if any(below(bind.target, own) for own in (work, "/tmp"))  # noqa: S108 - inside
        ),
    )
    return plan if config.rootfs is None else _with_image(plan, config.rootfs, chosen)


def _work_folder(path: str) -> str:
    """A work folder that is one of the sandbox's own.

    Raises:
        ConfigError: it would cover what the sandbox needs.
    """
    if path == "/" or any(below(path, taken) for taken in _NO_WORK_FOLDER):
        raise ConfigError(
            f"working_dir cannot be {path}: that is the system's",
            remedy="give a folder of its own, for instance /sandbox or /workspace",
        )
    return path


def _add_interpreter(interpreter: Interpreter, binds: list[Bind], links: dict[str, str]) -> None:
    """Everything that an interpreter needs of the host: its prefixes, and the links to it.

    A prefix may itself lie behind a link, as pyenv and uv make them; then both places are shown,
    because the interpreter looks for its library from where its file really is.
    """
    real = os.path.realpath(interpreter.executable)
    prefixes = [interpreter.base_prefix, interpreter.prefix]
    prefixes += [os.path.realpath(prefix) for prefix in prefixes]
    for prefix in dict.fromkeys(prefixes):
        if not covered(prefix, binds):
            _refuse_wide(interpreter, prefix)
            binds.append(Bind(prefix, prefix))
    path = interpreter.executable
    for _ in range(_MANY_LINKS):
        if not os.path.islink(path):
            break
        target = os.readlink(path)
        if not covered(path, binds) and not any(below(path, link) for link in links):
            links[path] = target
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    if not covered(real, binds):
        binds.append(Bind(real, real))


def _needs(interpreter: Interpreter) -> Iterator[str]:
    """The files and folders without which an interpreter does not start or finds no package."""
    yield interpreter.executable
    yield os.path.realpath(interpreter.executable)
    name = ".".join(map(str, interpreter.version[:2]))
    for prefix in dict.fromkeys((interpreter.base_prefix, interpreter.prefix)):
        yield os.path.realpath(f"{prefix}/lib/python{name}/site-packages")


def _refuse_wide(interpreter: Interpreter, prefix: str) -> None:
    at_home = [os.path.expanduser(path) for path in _TOO_WIDE_AT_HOME]
    if prefix in _TOO_WIDE or prefix in at_home or below(at_home[0], prefix):
        raise ConfigError(
            f"The interpreter {interpreter.executable} has {prefix} as its prefix, and a sandbox"
            " would see all of it",
            remedy="use a Python in a folder of its own, for instance a virtual environment",
        )


def _with_image(plan: RuntimePlan, rootfs: str, chosen: Interpreter) -> RuntimePlan:
    """The same plan for sandboxes that get a root file system of their own.

    One without Python gets the host's beside it, started by the host's own loader, since nothing
    of the host's libraries is where it expects them.

    Raises:
        ConfigError: there is none there.
    """
    from ms_enclave.boxes import _process_image as images  # slow to import, and seldom needed

    image = images.open_image(rootfs)
    given = {bind.target for bind in plan.image_binds}
    python = images.find_python(image.root)
    words: tuple[str, ...] = (python or "",)
    starter: Starter | None = None
    if python is None:
        real = os.path.realpath(chosen.executable)
        loader, libraries = images.loader_of(real)
        shown = ":".join(_BESIDE + folder for folder in libraries)
        words = (f"{_BESIDE}{loader}", "--library-path", shown, f"{_BESIDE}{real}")
        if images.can_name_programs(loader):
            starter = Starter(real, words[0], (*words[1:3], "--argv0", words[3]))
            words = words[3:]
    return replace(
        plan,
        python=words,
        env={"PATH": _PATH, "LANG": "C.UTF-8", **image.env},
        shell=images.find_shell(image.root),
        cold_reason="a root file system of its own is served by a new interpreter each time",
        image=image.root,
        beside=plan.binds if python is None else (),
        starter=starter,
        entered=plan.entered if python is None else (),
        late=tuple(bind for bind in plan.late if bind.target in given),
    )
