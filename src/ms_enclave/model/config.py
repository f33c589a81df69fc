"""Configs of sandboxes, managers and tools: data, checked when made and when changed.

A config is the caller's object: it may be changed until the sandbox takes its copy at the start.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, InstanceOf, SerializeAsAny, field_validator

from ms_enclave.model.base import StrictModel
from ms_enclave.model.checkpoints import MOST_CHECKPOINTS
from ms_enclave.model.legacy import drop_old_fields
from ms_enclave.model.limits import Limits, ResolvedLimits, resolve

__all__ = [
    "DockerNotebookConfig",
    "DockerSandboxConfig",
    "FileOperationConfig",
    "ProcessSandboxConfig",
    "PythonExecutorConfig",
    "SandboxConfig",
    "SandboxManagerConfig",
    "ShellExecutorConfig",
    "ToolConfig",
    "VolcengineSandboxConfig",
    "VolcengineSandboxManagerConfig",
]


class ToolConfig(StrictModel):
    """Options of one tool, for `tools_config`."""

    what: ClassVar[str] = "tool option"

    enabled: bool = True
    timeout: float | None = Field(default=None, gt=0)
    """Seconds for a call that names none itself."""
    description: str | None = None
    """What the model is told instead of the tool's own words."""


class PythonExecutorConfig(ToolConfig):
    """Options of `python_executor`."""


class ShellExecutorConfig(ToolConfig):
    """Options of `shell_executor`."""


class FileOperationConfig(ToolConfig):
    """Options of `file_operation`."""


class SandboxConfig(Limits):
    """What every sandbox can be told. A limit that is None has the least strict value there is."""

    what: ClassVar[str] = "sandbox config"

    timeout: float | None = Field(default=30.0, gt=0)
    tools_config: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Tools by name, with their options; a list of names will do."""
    working_dir: str = "/sandbox"
    """An absolute path inside: where programs start and relative paths belong."""
    env_vars: dict[str, str] = Field(default_factory=dict[str, str])
    """Environment variables of everything that runs inside."""
    resource_limits: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Limits by name, for callers that have them as one mapping; a field of its own goes before."""
    ttl: float | None = Field(default=None, gt=0)
    """Seconds from its creation until the manager removes it."""
    idle_timeout: float | None = Field(default=None, gt=0)
    """Seconds without a call after which the manager removes it."""
    network_enabled: bool = False
    """A network of its own: public addresses, never the host's network namespace."""
    isolation: Literal["namespace", "landlock", "gvisor", "best"] | None = None
    """The tier; None for the strongest there is by default, `best` for whatever can be had."""
    require: list[str] = Field(default_factory=list[str])
    """Guards without which the sandbox does not start."""
    on_owner_death: Literal["kill", "keep"] = "kill"
    snapshot: str | None = None
    """The name of a snapshot whose files it begins with; None for empty folders."""
    seed: int | None = None
    """Start of the random numbers of every Python run; None for a new one each."""
    atomic: bool = False
    """Whether nothing of a cell stays that does not succeed, where the call does not say."""
    auto_checkpoint: bool = False
    """Whether there is a checkpoint before every call of a tool."""
    max_checkpoints: int = Field(default=8, ge=0, le=MOST_CHECKPOINTS)
    """Checkpoints that have their kernel's memory, the last ones; older ones have the files."""

    def resolve_limits(
        self, per_call: Limits | None = None, timeout: float | None = None
    ) -> ResolvedLimits:
        """The limits of one call: the config's, made tighter by the call's.

        Args:
            timeout: seconds; goes before any other time-out.

        Raises:
            ValueError: `resource_limits` was changed to something that is not valid.
        """
        config: Limits = self
        if self.resource_limits:
            given = Limits.model_validate(self.resource_limits).model_dump(exclude_none=True)
            more = {name: value for name, value in given.items() if not self._says(name)}
            own = {name: getattr(self, name) for name in Limits.model_fields}
            config = Limits.model_validate({**own, **more})
        return resolve(config, per_call, timeout)

    def said(self) -> dict[str, Any]:
        """The fields that somebody set, or changed in place: what another config takes over."""
        fresh = type(self)()
        return {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in self.model_fields_set or getattr(self, name) != getattr(fresh, name)
        }

    def _says(self, limit: str) -> bool:
        return limit in self.model_fields_set and getattr(self, limit) is not None

    @field_validator("tools_config", mode="before")
    @classmethod
    def _name_tools(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("must be a list of tool names or a dict, not a text")  # noqa: TRY004
        if isinstance(value, Mapping) or not isinstance(value, Iterable):
            return cast("Any", value)
        names = cast("Iterable[Any]", value)
        return {str(getattr(name, "value", name)): cast("Any", {}) for name in names}

    @field_validator("working_dir", mode="after")
    @classmethod
    def _check_working_dir(cls, value: str) -> str:
        return _inside("working_dir", value)

    @field_validator("env_vars", mode="after")
    @classmethod
    def _check_environment(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name or "=" in name or "\0" in name + text:
                raise ValueError(f"no environment can hold {name!r}")
        return value

    @field_validator("resource_limits", mode="after")
    @classmethod
    def _check_resource_limits(cls, value: dict[str, Any]) -> dict[str, Any]:
        Limits.model_validate(value)
        return value


def _inside(what: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{what} must be an absolute path inside the sandbox: {path!r}")
    return posixpath.normpath("/" + path.lstrip("/"))


def _check_volumes(value: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Docker's shape: `{host: {"bind": path, "mode": "rw" | "ro"}}`."""
    volumes: dict[str, dict[str, str]] = {}
    for host, options in value.items():
        if not host or "\0" in host:
            raise ValueError(f"volumes: {host!r} is no path of the host")
        if not isinstance(options, Mapping):
            raise ValueError(f"volumes: {host} must be a dict with 'bind' and 'mode'")  # noqa: TRY004
        given = dict(cast("Mapping[str, Any]", options))
        bind, mode = given.pop("bind", None), given.pop("mode", None) or "rw"
        if given:
            raise ValueError(f"Unknown volume key {', '.join(map(repr, given))} of {host}")
        if not isinstance(bind, str):
            raise ValueError(f"volumes: {host} needs 'bind', a path inside the sandbox")  # noqa: TRY004
        if mode not in {"rw", "ro"}:
            raise ValueError(f"volumes: the mode of {host} must be 'rw' or 'ro', not {mode!r}")
        volumes[host] = {"bind": _inside("volumes: bind", bind), "mode": mode}
    return volumes


class ProcessSandboxConfig(SandboxConfig):
    """The embedded sandbox: Linux namespaces on this machine."""

    memory_limit: int | str | None = "1g"
    disk_limit: int | str | None = "256m"
    python: str | None = None
    """An interpreter or a virtual environment of the host; None for the one that runs us."""
    rootfs: str | None = None
    """A folder or `oci-archive:file.tar` to use as the root file system; None for the host's
    system libraries, read-only."""
    volumes: dict[str, dict[str, str]] = Field(default_factory=dict[str, dict[str, str]])
    """Folders of the host: `{host: {"bind": path, "mode": "rw" | "ro"}}`."""
    preload: list[str] = Field(default_factory=list[str])
    """Modules that every Python run finds imported."""

    @field_validator("volumes", mode="before")
    @classmethod
    def _check_volumes(cls, value: Any) -> Any:
        return (
            _check_volumes(cast("Mapping[str, Any]", value))
            if isinstance(value, Mapping)
            else value
        )


class DockerSandboxConfig(SandboxConfig):
    """A container of a Docker engine, or of one that speaks its language.

    Raises ConfigError at the start of a sandbox for what `hardening="strict"` does not allow.
    """

    image: str = Field(default="python:3.11-slim", min_length=1)
    pull: Literal["never", "missing", "always"] = "missing"
    """When the image is fetched: not at all, where the engine lacks it, or at every start."""
    python_image: str = Field(default="python:3.11-slim", min_length=1)
    """Whose Python an image gets that has none of its own (or only one older than 3.8)."""
    pull_progress: bool = True
    """Whether the progress of fetching it is logged."""
    pull_progress_interval: float = Field(default=1.0, gt=0)
    """Seconds between two lines of that."""
    command: str | list[str] | None = None
    """What runs in the background from the start on; `list_commands` has it, tagged "command".
    Text is split as a shell would, and not run by one."""
    entrypoint: str | list[str] | None = None
    """The program that `command` is arguments of; the image's own if None, and that only where
    there is a command."""
    user: str | int | None = None
    """Who everything runs as, by name or number; the image's own if None."""
    volumes: dict[str, dict[str, str]] = Field(default_factory=dict[str, dict[str, str]])
    """Folders where the engine runs, or names of volumes of the engine:
    `{host: {"bind": path, "mode": "rw" | "ro"}}`."""
    tmpfs: dict[str, str] = Field(default_factory=dict[str, str])
    """Folders in memory, with mount options: `{"/scratch": "size=64m"}`."""
    read_only: bool = False
    """Whether the image's own files cannot be changed; the working folder still can."""
    ports: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Ports of the container to ports of the host: `{"8080/tcp": 8080}`, `None` for any, a pair of
    address and port, or a list of ports. Without an address it is 127.0.0.1."""
    network: str | None = "bridge"
    """The engine's network, used where `network_enabled` says so."""
    extra_hosts: dict[str, str] = Field(default_factory=dict[str, str])
    """Names to addresses, for the container's `/etc/hosts`."""
    platform: str | None = Field(default=None, pattern=r"^[a-z0-9]+(/[a-z0-9_]+){0,2}$")
    """Operating system and architecture of the image: `linux/arm64`."""
    runtime: str | None = Field(default=None, min_length=1)
    """The engine's name of a runtime: `runsc`, `kata`."""
    hardening: Literal["default", "strict"] = "default"
    """`default` lets the images that people have go on working; `strict` gives up what they may
    need: a user of its own without any rights, a root that cannot be written to."""
    privileged: bool = False
    """No walls but the container's: for images that need the machine, never for a model's code."""
    cap_add: list[str] = Field(default_factory=list[str])
    """Capabilities of Linux beside the few that package managers need."""
    gpus: int | list[str] | Literal["all"] | None = None
    """How many, or which."""
    memory_limit: int | str | None = "4g"
    cpu_limit: float | None = 2.0
    disk_limit: int | str | None = "2g"
    pids_limit: int | None = Field(default=1024, gt=0)
    remove_on_exit: bool = True
    """Whether the container is removed when the sandbox stops."""

    @classmethod
    def upgrade(cls, values: dict[str, Any]) -> None:
        """Know `auto_remove`, and drop what has no use any more."""
        if "auto_remove" in values:
            values.setdefault("remove_on_exit", values.pop("auto_remove"))
            values.pop("auto_remove", None)
        drop_old_fields(values)

    @field_validator("volumes", mode="before")
    @classmethod
    def _check_volumes(cls, value: Any) -> Any:
        return (
            _check_volumes(cast("Mapping[str, Any]", value))
            if isinstance(value, Mapping)
            else value
        )

    @field_validator("tmpfs", mode="before")
    @classmethod
    def _name_tmpfs(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            value = dict.fromkeys(cast("list[Any]", value), "")
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[Any, Any]", value)
        return {_inside("tmpfs", str(path)): options for path, options in given.items()}

    @field_validator("ports", mode="before")
    @classmethod
    def _check_ports(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[Any, Any]", value)
        return {_port_inside(port): _port_of_host(host) for port, host in given.items()}

    @field_validator("cap_add", mode="after")
    @classmethod
    def _name_capabilities(cls, value: list[str]) -> list[str]:
        return [name.upper().removeprefix("CAP_") for name in value]

    @field_validator("user", mode="after")
    @classmethod
    def _check_user(cls, value: str | int | None) -> str | int | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.][\w.-]*(:[\w.-]+)?", str(value)):
            raise ValueError(f"user: {value!r} is no name and no number")
        return value

    @property
    def auto_remove(self) -> bool:
        """Another name of `remove_on_exit`."""
        return self.remove_on_exit


def _port_inside(port: Any) -> str:
    match = re.fullmatch(r"(\d{1,5})(/(?:tcp|udp|sctp))?", str(port))
    if match is None or not 0 < int(match[1]) < 1 << 16:
        raise ValueError(f"ports: {port!r} is no port of a container, like 8080 or '8080/tcp'")
    return match[1] + (match[2] or "/tcp")


def _port_of_host(host: Any) -> Any:
    """None, a port, a pair of address and port, or a list of such."""
    if host is None:
        return None
    if isinstance(host, (list, tuple)):
        parts = list(cast("list[Any]", host))
        if len(parts) == 2 and isinstance(parts[0], str) and not parts[0].isdigit():
            return [parts[0], _port_number(parts[1])]
        return [_port_of_host(part) for part in parts]
    return _port_number(host)


def _port_number(port: Any) -> int | None:
    if port is None:
        return None
    if isinstance(port, bool) or not str(port).isdigit() or not 0 <= int(port) < 1 << 16:
        raise ValueError(f"ports: {port!r} is no port of the host")
    return int(port)


class DockerNotebookConfig(DockerSandboxConfig):
    """A container that serves Jupyter kernels."""

    image: str = Field(default="jupyter-kernel-gateway", min_length=1)
    """The default one is built on first use; any other has to have the gateway."""
    base_image: str = Field(default="python:3.11-slim", min_length=1)
    """What the default image is built on."""
    wheels: str | None = None
    """A folder of wheels that the default image is built with, and then from no network."""
    host: str = "127.0.0.1"
    """The address of the host at which `port` is published."""
    port: int = Field(default=8888, ge=1, le=65535)
    """Where the gateway listens: on the container's own loopback, and on the host only where this
    is given."""
    token: str | None = Field(default=None, min_length=1, repr=False)
    """What the gateway asks for; a random one if None."""

    @property
    def is_published(self) -> bool:
        """Whether the gateway is to be reached from outside of the container."""
        return "port" in self.model_fields_set


_Served = Annotated[str | None, Field(pattern=r"^https?://")]


class VolcengineSandboxConfig(SandboxConfig):
    """A stateless remote runner that speaks SandboxFusion's `/run_code`."""

    base_url: _Served = None
    run_code_path: str = "/run_code"
    request_timeout: float = Field(default=30.0, gt=0)
    """Seconds that the server may take to answer, beyond those that the program may take."""
    verify_ssl: bool = True
    """Whether the server has to show a certificate that this machine trusts."""
    extra_headers: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    """Sent with each request."""
    api_key: str | None = Field(default=None, repr=False)
    """Sent as it is in the header `Authorization`."""
    dataset_language_map: dict[str, str] = Field(default_factory=dict[str, str])
    """The runner's name of a language by the name of a data set."""
    tool_language_map: dict[str, str] = Field(default_factory=dict[str, str])
    """The runner's name of a language by the name of a tool."""
    max_concurrency: int = Field(default=16, gt=0)
    """Requests at a time; further ones wait for their turn."""


class SandboxManagerConfig(StrictModel):
    """What a manager can be told."""

    what: ClassVar[str] = "manager config"

    base_url: _Served = None
    """Where the server is, for managers on another machine."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds that one request to the server may take; None for the manager's own choice."""
    api_key: str | None = Field(default=None, repr=False)
    cleanup_interval: float | None = 300.0
    """Seconds between two looks for sandboxes whose time is over; None for no looks."""
    pool_size: int = 0
    state_dir: str | None = None
    """The folder in which the next manager finds sandboxes with `on_owner_death="keep"`; one
    manager at a time has it. None: every sandbox ends with its manager."""
    sandbox_config: SerializeAsAny[InstanceOf[SandboxConfig]] | dict[str, Any] | None = None
    """The config of sandboxes for which the caller gives none."""

    @field_validator("cleanup_interval", mode="after")
    @classmethod
    def _check_interval(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("Cleanup interval must be positive or None")
        return value

    @field_validator("pool_size", mode="after")
    @classmethod
    def _check_pool_size(cls, value: int) -> int:
        if value < 0:
            raise ValueError("Pool size must be non-negative")
        return value


class VolcengineSandboxManagerConfig(SandboxManagerConfig):
    """A manager of stateless remote runners."""

    run_code_path: str = "/run_code"
    request_timeout: float = Field(default=30.0, gt=0)
    """Seconds that the server may take to answer, beyond those that the program may take."""
    verify_ssl: bool = True
    extra_headers: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    dataset_language_map: dict[str, str] = Field(default_factory=dict[str, str])
    tool_language_map: dict[str, str] = Field(default_factory=dict[str, str])
    max_concurrency: int = Field(default=16, gt=0)
