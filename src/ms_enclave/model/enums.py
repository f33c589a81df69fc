"""Closed sets of names. Every member equals its plain string, so callers may use either."""

from __future__ import annotations

from enum import Enum

from ms_enclave.model.legacy import OldStates, add_old_states

__all__ = [
    "ExecutionStatus",
    "SandboxManagerType",
    "SandboxStatus",
    "SandboxType",
    "ToolType",
    "Verdict",
]


class SandboxStatus(OldStates, str, Enum):
    """Where a sandbox is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


add_old_states(SandboxStatus)


class SandboxType(str, Enum):
    """The types of sandbox that are ours. Other packages add names, not members."""

    PROCESS = "process"
    DOCKER = "docker"
    DOCKER_NOTEBOOK = "docker_notebook"
    VOLCENGINE = "volcengine"
    DUMMY = "dummy"

    @classmethod
    def get_compatible_types(cls, sandbox_type: str) -> set[str]:
        """The types whose tools a sandbox of this type accepts, itself among them."""
        own = cls._member(sandbox_type)
        return {own, cls.DOCKER} if own is cls.DOCKER_NOTEBOOK else {own}

    @classmethod
    def is_compatible(cls, sandbox_type: str, required_type: str) -> bool:
        """Whether a sandbox of one type accepts what was made for another."""
        return required_type in cls.get_compatible_types(sandbox_type)

    @classmethod
    def _member(cls, name: str) -> str:
        try:
            return cls(name)
        except ValueError:  # another package's: a name like any other
            return name


class SandboxManagerType(str, Enum):
    """The types of manager that are ours."""

    LOCAL = "local"
    HTTP = "http"
    VOLCENGINE = "volcengine"


class ToolType(str, Enum):
    """What a tool works on."""

    SANDBOX = "sandbox"
    FUNCTION = "function"
    EXTERNAL = "external"


class ExecutionStatus(str, Enum):
    """How an execution ended, in one word. `Verdict` says why."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class Verdict(str, Enum):
    """Why an execution ended. Decided outside of what the program can reach."""

    OK = "ok"
    ERROR = "error"
    INVALID_PARAMETERS = "invalid_parameters"
    WALL_TIMEOUT = "wall_timeout"
    CPU_TIMEOUT = "cpu_timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    PROCESS_LIMIT = "process_limit"
    DISK_LIMIT = "disk_limit"
    SIGNAL = "signal"
    POLICY_DENIED = "policy_denied"
    CANCELLED = "cancelled"
    INFRA = "infra"
