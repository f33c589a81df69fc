"""The one root file system of a station: read-only pieces of the host over an empty one.

Sandboxes see a copy of it in their own mount namespace, plus the file systems of their own that a
slot brings. What stands in a plan is decided by the caller (`boxes/_process_plan.py`); here it is
only done.
"""

from __future__ import annotations

import errno
import os
import stat

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import BindRow, Plan, StarterRow, Trees

__all__ = [
    "CODE",
    "DNS",
    "EMPTY",
    "GUEST",
    "IMAGE",
    "RESOLVER",
    "STORE",
    "WRITABLE",
    "build",
    "guest_folder",
    "open_trees",
]

CODE = "/run/enclave/code"
"""Where the station sees our own package, until it has loaded what it needs."""
GUEST = "/run/enclave/guest"
WRITABLE = "/run/enclave/writable"
"""Where the writable folders of the host are until a slot shows them in their place."""
IMAGE = "/run/enclave/image"
"""Where the station keeps a root file system that sandboxes get instead of its own."""
_IMAGE_BASE = "/run/enclave/image-base"
_BESIDE = "/.enclave"
"""Where such a root file system shows our guest and, if it has no Python, the host's."""
_STARTER = "/run/enclave/starter"
STORE = "/run/enclave/store"
"""Where a store is shown for a moment, where the kernel cannot take parts of a hidden one."""
EMPTY = ("/run/enclave/empty/file", "/run/enclave/empty/folder")
"""What hides a file or a folder that a sandbox must not see."""
RESOLVER = "/run/enclave/resolv.conf"
"""What a sandbox with a network has as its /etc/resolv.conf."""
DNS = "192.0.2.3"
"""The address at which such a sandbox asks for names."""

_READ_ONLY = calls.MOUNT_READ_ONLY | calls.MOUNT_NOSUID | calls.MOUNT_NODEV
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
_FOLDERS = ("/dev/pts", "/dev/shm", "/proc", "/tmp", "/run/enclave")
_HOLDERS = ("/tmp", "/mnt", "/var", "/usr")  # any folder will do to hold the new root for a moment


def open_trees(plan: Plan) -> Trees:
    """Detached copies of everything the plan takes from the host, with where each goes.

    Done by whoever may read the sources: host root also gets past a closed parent folder, and what
    then shows in the sandbox is only the copy.
    """
    trees: Trees = []
    package = plan["package"]
    wanted: list[BindRow] = [
        *plan["binds"],
        {"source": package, "target": f"{CODE}/ms_enclave", "writable": False},
        {"source": f"{package}/guest", "target": GUEST, "writable": False},
    ]
    if plan["image"] is not None:
        wanted.append({"source": plan["image"], "target": _IMAGE_BASE, "writable": False})
    given = {row["source"] for row in (*plan["image_binds"], *plan["volumes"])}
    for bind in wanted:
        try:
            tree = calls.open_tree(bind["source"], links=bind["source"] not in given)
        except OSError as error:
            raise OSError(error.errno, f"{bind['source']}: {error.strerror}") from error
        attributes = _READ_ONLY
        if bind["writable"]:
            attributes = calls.MOUNT_NOSUID | calls.MOUNT_NODEV
        calls.mount_setattr(tree, attributes)
        trees.append((tree, bind["target"]))
    return trees


def build(plan: Plan, trees: Trees) -> None:
    """Make the new root, move into it, and leave the host's behind."""
    calls.mount("", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    devices = [(calls.open_tree(f"/dev/{name}"), f"/dev/{name}") for name in _DEVICES]
    root = calls.make_filesystem(
        "tmpfs",
        {"size": "8m", "nr_inodes": "4k", "mode": "0755"},
        calls.MOUNT_NOSUID | calls.MOUNT_NODEV,
    )
    holder = next(path for path in _HOLDERS if os.path.isdir(path))
    calls.move_mount(root, holder)
    os.close(root)
    os.chdir(holder)
    for path in (*_FOLDERS, *plan["folders"], os.path.dirname(EMPTY[0]), EMPTY[1]):
        os.makedirs(f".{path}", 0o755, exist_ok=True)
    os.mkdir(f".{STORE}", 0o700)
    for path, text in plan["files"].items():
        _write(f".{path}", text)
    _write(f".{EMPTY[0]}", "")
    _write(f".{RESOLVER}", f"nameserver {DNS}\n")
    for tree, target in sorted([*trees, *devices], key=lambda pair: pair[1].count("/")):
        _attach(tree, f".{target}")
    for path, text in [*plan["links"], *_DEVICE_LINKS]:
        if not os.path.lexists(f".{path}"):
            os.makedirs(os.path.dirname(f".{path}"), 0o755, exist_ok=True)
            os.symlink(text, f".{path}")
    flags = calls.MS_NOSUID | calls.MS_NODEV | calls.MS_NOEXEC
    calls.mount("proc", "./proc", "proc", flags)
    calls.pivot_root(".", ".")
    calls.umount(".")
    os.chdir("/")
    if plan["image"] is not None:
        _build_image(plan)


def guest_folder(plan: Plan) -> str:
    """Where a process of a sandbox finds the guest."""
    return GUEST if plan["image"] is None else f"{_BESIDE}/guest"


def _build_image(plan: Plan) -> None:
    """The root that sandboxes get: the given one below a layer that only holds mount points.

    A layer, because the given one is never written to, and need not have the folders.
    """
    layers = calls.make_filesystem(
        "tmpfs", {"size": "4m", "nr_inodes": "1k", "mode": "0755"}, calls.MOUNT_NOSUID
    )
    holder = "/run/enclave/image-layers"
    for path in (holder, IMAGE):
        os.mkdir(path, 0o755)
    calls.move_mount(layers, holder)
    os.close(layers)
    for name in ("upper", "scratch"):
        os.mkdir(f"{holder}/{name}", 0o755)
    lower = _lower_layers(holder)
    options = f"lowerdir={lower},upperdir={holder}/upper,workdir={holder}/scratch,userxattr"
    flags = calls.MS_NOSUID | calls.MS_NODEV
    calls.mount("overlay", IMAGE, "overlay", flags, options)
    beside = [(f"{_BESIDE}/guest", GUEST)]
    beside += [(f"{_BESIDE}/host{bind['target']}", bind["target"]) for bind in plan["beside"]]
    beside += [(bind["target"], bind["target"]) for bind in plan["image_binds"]]
    for path in ("/dev", "/proc", "/tmp", plan["work"]):
        _refuse_links(path)
        os.makedirs(IMAGE + path, 0o755, exist_ok=True)
    for path, text in plan["beside_links"]:
        _refuse_links(f"{_BESIDE}/host{os.path.dirname(path)}")
        place = f"{IMAGE}{_BESIDE}/host{path}"
        os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
        os.symlink(text, place)
    for target, source in [*beside, ("/dev", "/dev")]:
        _refuse_links(target)
        _attach(calls.open_tree(source), IMAGE + target)
    if plan["starter"] is not None:
        _cover_program(plan["starter"])
    calls.mount("", IMAGE, None, calls.MS_BIND | calls.MS_REMOUNT | calls.MS_RDONLY | flags)


def _cover_program(starter: StarterRow) -> None:
    """Put a starter in the place of a program beside the given root, and that where it looks."""
    with open(_STARTER, "wb") as file:
        file.write(bytes.fromhex(starter["code"]))
    os.chmod(_STARTER, 0o755)  # noqa: S103 - every user of a sandbox runs it
    _attach(calls.open_tree(starter["program"]), f"{IMAGE}{_BESIDE}/python")
    _attach(calls.open_tree(_STARTER), f"{IMAGE}{_BESIDE}/host{starter['program']}")


def _lower_layers(holder: str) -> str:
    """The given root, below an /etc/resolv.conf that can be mounted on if it has none itself.

    In many an image that is a link to nowhere. A layer, because the folder may be somebody's whom
    the station cannot write as.
    """
    folder, name = f"{_IMAGE_BASE}/etc", f"{_IMAGE_BASE}/etc/resolv.conf"
    if os.path.islink(folder) or (os.path.isfile(name) and not os.path.islink(name)):
        return _IMAGE_BASE
    _write(f"{holder}/own/etc/resolv.conf", "")
    return f"{holder}/own:{_IMAGE_BASE}"


def _refuse_links(path: str) -> None:
    """Raise OSError where a link of the given root stands in a place that is to be mounted on.

    Here it would lead out of that root and into the station's own, of which its code is a part.
    """
    place = IMAGE
    for part in path.strip("/").split("/"):
        place = f"{place}/{part}"
        if os.path.islink(place):
            shown = place[len(IMAGE) :]
            raise OSError(errno.ELOOP, f"the root file system has a link at {shown}, not a folder")


def _attach(tree: int, target: str) -> None:
    """Put a tree where it belongs, making the place if the new root has none yet."""
    if not os.path.lexists(target):
        parent = os.path.dirname(target)
        os.makedirs(parent, 0o755, exist_ok=True)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(target, 0o755)
        else:
            _write(target, "")
    calls.move_mount(tree, target)
    os.close(tree)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)
