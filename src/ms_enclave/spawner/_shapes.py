"""What the spawner's processes pass to each other, for the type checker alone.

Never imported when running: a station starts with as few modules as it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

__all__ = [
    "Answer",
    "BindRow",
    "BoxLimits",
    "BoxRequest",
    "CheckpointRequest",
    "ErrorRow",
    "ExitRow",
    "FileRow",
    "FreezeRequest",
    "GroupRow",
    "GvisorPlan",
    "HoldRequest",
    "KeepRequest",
    "LandlockPlan",
    "LauncherPlan",
    "LayerRequest",
    "Masks",
    "OpenRequest",
    "PlaceRow",
    "Plan",
    "PrepareRequest",
    "ProcessRequest",
    "RenewRequest",
    "ReplaceRequest",
    "ResourceLimits",
    "RunRequest",
    "SignalRequest",
    "SpawnRequest",
    "StarterRow",
    "StationPlan",
    "TerminalRequest",
    "Trees",
    "User",
]

Masks = tuple[str, str]
"""An empty file and an empty folder."""
ResourceLimits = Mapping[int, tuple[int, int]]
"""RLIMIT_* to (soft, hard)."""
Trees = list[tuple[int, str]]
"""Descriptors of detached mounts and where each goes."""
User = tuple[int, int]
"""uid and gid inside."""


class PlaceRow(TypedDict):
    """A file or folder and where it shows."""

    source: str
    target: str


class BindRow(PlaceRow):
    """The same, of the host."""

    writable: bool


class StarterRow(TypedDict):
    """A program of the host, and what is put in its place (hex)."""

    program: str
    code: str


class GroupRow(TypedDict):
    """A hierarchy of control groups, with the descriptor of the station's group in it."""

    version: int
    controllers: list[str]
    fd: int


class Plan(TypedDict):
    """What a station is built from, whoever reads it. Tuples are lists, as JSON has it.

    `launcher`: the program, in this folder, that starts it.
    """

    launcher: str
    launcher_python: str
    station_python: str
    python: list[str]
    binds: list[BindRow]
    links: list[list[str]]
    files: dict[str, str]
    folders: list[str]
    cold_reason: str | None
    image: str | None
    beside: list[BindRow]
    beside_links: list[list[str]]
    starter: StarterRow | None
    image_binds: list[BindRow]
    volumes: list[BindRow]
    late: list[PlaceRow]
    work: str
    environment: dict[str, str]
    slots: int
    hostname: str
    filter: str
    init_filter: str
    reaper_filter: str
    instance: str
    package: str
    spare_slots: int
    layers: bool
    keep: str | None
    key: str
    release: str
    helpers: list[str]
    refused: list[str]


class LauncherPlan(Plan):
    """As the launcher reads it. `groups`: whether to look for control groups."""

    groups: bool


class StationPlan(Plan):
    """As the station reads it: with what the launcher could get."""

    groups: list[GroupRow]
    root_mode: bool
    first_id: int | None


class LandlockPlan(StationPlan):
    """The plan of a station of tier `landlock`, as its launcher completes it.

    `places`: where its folder may be; `scratch`: where it is; `guest`: where the guest is in it;
    `newest`: the newest ABI of Landlock to use; `version`: the one that is used.
    """

    places: list[str]
    scratch: str
    guest: str
    newest: int
    version: int
    ids: int


class BoxLimits(TypedDict):
    """The limits of a whole sandbox: bytes, processes, cores, files."""

    memory: int | None
    pids: int | None
    cpu: float | None
    disk: int
    inodes: int


class GvisorPlan(LauncherPlan):
    """The plan of one sandbox of tier `gvisor`.

    `runsc`: the program's path; `runsc_words`: its command line; `bundle`: its config.json; `user`:
    whose the work folder is.
    """

    limits: BoxLimits
    runsc: str
    runsc_words: list[str]
    bundle: Mapping[str, object]
    user: list[int]


class BoxRequest(TypedDict):
    """A request about a sandbox; `close` is no more than that."""

    q: int
    box: str


class FreezeRequest(BoxRequest):
    """Have all of it stand still, or go on."""

    frozen: bool


class TerminalRequest(BoxRequest):
    """Make a terminal, for a user of the sandbox. With a channel to send its ends through."""

    user: list[int]


class OpenRequest(BoxRequest):
    """Give a sandbox a slot; `checkpoint`, if there, names what it begins with."""

    user: list[int]
    limits: BoxLimits
    checkpoint: NotRequired[str]


class KeepRequest(BoxRequest):
    """Let a sandbox stay without an owner, for so long (s). With a file for the next one."""

    ttl: float | None
    most: float | None
    idle: float | None


class RenewRequest(BoxRequest):
    """Let a kept sandbox live for so many seconds from now."""

    ttl: float


class SpawnRequest(BoxRequest):
    """Start a process in a sandbox; `checkpoint`, if there, names what it goes on from."""

    checkpoint: NotRequired[str]
    kind: str
    process: int
    user: list[int]
    memory: int | None
    pids: int | None
    cpu: float | None
    cpu_time: float | None
    disk: int
    inodes: int
    preload: list[str]
    rlimits: dict[str, list[int]]


class RunRequest(OpenRequest, SpawnRequest):
    """Start a process in a sandbox of its own."""


class NewRun(BoxRequest):
    """The same as it comes: what a run has for itself, and on lines of their own what it has in
    common with others (the rest of a `RunRequest`, JSON) and the first message for the process."""

    process: int
    like: bytes
    message: bytes


class ProcessRequest(TypedDict):
    """A request about a process; `kill` is no more than that."""

    q: int
    process: int


class SignalRequest(ProcessRequest):
    """Send a signal to a process."""

    signal: int


class CheckpointRequest(BoxRequest):
    """Keep what a kernel and its sandbox's files are now, under a name; without a process, the
    files; `passing`: for a moment; `drop`: without what could not be forked. `drop` and `thin` have
    the name alone."""

    checkpoint: str
    process: NotRequired[int]
    passing: NotRequired[bool]
    drop: NotRequired[bool]


class LayerRequest(TypedDict):
    """Make an empty layer of so many bytes and inodes. With a channel to send it through."""

    q: int
    disk: int
    inodes: int


class HoldRequest(TypedDict):
    """Keep a layer that comes with it, for sandboxes to begin with, under a name."""

    q: int
    checkpoint: str


class ReplaceRequest(BoxRequest):
    """Have another sandbox have a sandbox's name, and what is kept under it."""

    by: str


class DiffRequest(BoxRequest):
    """Compare the files of a checkpoint with those of another one, or with the sandbox's as they
    are now. With a file for what differs."""

    checkpoint: str
    by: NotRequired[str]


class FileRow(TypedDict, total=False):
    """What a fork has to open to have the descriptor `fd`: a file, the same open file as another
    descriptor's, an `end` of a new pipe or pair of sockets, an event counter or queue, something
    that can be neither read nor written, or nothing."""

    fd: int
    path: str
    flags: int
    offset: int
    same: int
    pipe: int
    pair: int
    kind: int
    end: int
    count: int
    counts_down: bool
    watches: list[tuple[int, int, int]]
    dropped: bool
    closed: bool
    cloexec: bool


class PrepareRequest(TypedDict):
    """Import modules ahead of need."""

    q: int
    preload: list[str]


class ErrorRow(TypedDict):
    """Why something could not be done."""

    errno: int | None
    text: str


class Answer(TypedDict, total=False):
    """What a request is answered with: one of the three."""

    ok: Mapping[str, object]
    error: ErrorRow
    lost: str


class ExitRow(TypedDict):
    """The event of a process's end: wait status, s of processor time, bytes at the peak."""

    event: str
    process: int
    status: int
    cause: str | None
    cpu_user: float
    cpu_system: float
    peak_memory: int
    processes: int | None
    source: str
