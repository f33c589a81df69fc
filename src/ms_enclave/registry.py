"""Names to classes: registered in this process, built in, or from an installed package.

A name is looked up in that order, and its class is imported on first use, so that naming a type
costs nothing and a broken package breaks its own types only. A built-in name cannot be taken over
by installing a package: replacing one needs an explicit call in this process.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
from difflib import get_close_matches
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ms_enclave.errors import ConfigError, UnknownTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MANAGERS", "SANDBOXES", "TOOLS", "Registry"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SANDBOXES: Mapping[str, str] = MappingProxyType(
    {
        "process": "ms_enclave.boxes.process_sandbox:ProcessSandbox",
        "docker": "ms_enclave.boxes.docker_sandbox:DockerSandbox",
        "docker_notebook": "ms_enclave.boxes.docker_notebook:DockerNotebook",
        "volcengine": "ms_enclave.boxes.volcengine:VolcengineSandbox",
    }
)
TOOLS: Mapping[str, str] = MappingProxyType(
    {
        "python_executor": "ms_enclave.tools.python_executor:PythonExecutor",
        "shell_executor": "ms_enclave.tools.shell_executor:ShellExecutor",
        "file_operation": "ms_enclave.tools.file_operation:FileOperation",
        "background_command": "ms_enclave.tools.background_command:BackgroundCommand",
        "multi_code_executor": "ms_enclave.tools.multi_code_executor:MultiCodeExecutor",
        "notebook_executor": "ms_enclave.tools.notebook_executor:NotebookExecutor",
        "checkpoint": "ms_enclave.tools.checkpoints:CheckpointTool",
        "rollback": "ms_enclave.tools.checkpoints:RollbackTool",
    }
)
MANAGERS: Mapping[str, str] = MappingProxyType(
    {
        "local": "ms_enclave.manager.local_manager:LocalSandboxManager",
        "http": "ms_enclave.manager.http_manager:HttpSandboxManager",
        "volcengine": "ms_enclave.manager.volcengine:VolcengineSandboxManager",
    }
)


class Registry(Generic[T]):
    """Classes of one kind by name. Safe to use from any thread.

    Args:
        kind: what the names are, as a message calls them.
        entry_point_group: where installed packages name theirs.
        builtins: our own, as `module:attribute`.
    """

    def __init__(self, kind: str, entry_point_group: str, builtins: Mapping[str, str]) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._builtins = dict(builtins)
        self._classes: dict[str, type[T]] = {}
        self._entry_points: dict[str, EntryPoint] | None = None
        self._lock = threading.Lock()

    def register(self, name: str, cls: type[T]) -> None:
        """Make a class known under a name; one that had it before is replaced.

        Raises:
            ConfigError: the name is empty or no text, or `cls` is no class.
        """
        name = _plain(name)
        if not isinstance(name, str) or not name.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{self.kind} must be a text that is not empty, not {name!r}")
        if not inspect.isclass(cls):
            raise ConfigError(f"{self.kind} {name} must be a class, not {cls!r}")
        with self._lock:
            self._classes[name] = cls

    def get(self, name: str) -> type[T]:
        """The class of that name. Imports it on first use: not to be called on an event loop
        before it was loaded once.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: an installed package names it, but it cannot be loaded.
            ImportError: one of ours cannot be imported here.
        """
        name = _plain(name)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._unknown(name)
        with self._lock:
            found = self._classes.get(name)
        if found is not None:
            return found
        if name in self._builtins:
            loaded = _resolve(self._builtins[name])
        else:
            entry_point = self._find_entry_point(name)
            if entry_point is None:
                raise self._unknown(name)
            loaded = self._load(entry_point)
        with self._lock:
            # Loading may have registered it by decoration; whoever came first stays.
            return self._classes.setdefault(name, loaded)

    def names(self) -> tuple[str, ...]:
        """All names there are: ours first, then the others in order of the alphabet."""
        with self._lock:
            registered = set(self._classes)
        others = (registered | set(self._installed())) - set(self._builtins)
        return (*self._builtins, *sorted(others))

    def _installed(self, *, again: bool = False) -> dict[str, EntryPoint]:
        found = self._entry_points
        if found is None or again:
            found = {}
            for entry_point in entry_points(group=self.entry_point_group):
                if entry_point.name in self._builtins:
                    logger.warning(
                        "%s %s of package %s is left out: the name is built in",
                        self.kind,
                        entry_point.name,
                        _package(entry_point),
                    )
                elif entry_point.name not in found:
                    found[entry_point.name] = entry_point
            self._entry_points = found
        return found

    def _find_entry_point(self, name: str) -> EntryPoint | None:
        # What was not there a moment ago may have been installed since.
        return self._installed().get(name) or self._installed(again=True).get(name)

    def _load(self, entry_point: EntryPoint) -> type[T]:
        what = f"{self.kind} {entry_point.name} of package {_package(entry_point)}"
        try:
            loaded: Any = entry_point.load()
        except Exception as error:
            raise ConfigError(
                f"{what} cannot be loaded: {type(error).__name__}: {error}",
                remedy="repair, update or remove that package",
            ) from error
        if not inspect.isclass(loaded):
            raise ConfigError(f"{what} is no class: {entry_point.value}")
        return cast("type[T]", loaded)

    def _unknown(self, name: object) -> UnknownTypeError:
        known = list(self.names())
        if self.kind == "Sandbox manager type":  # callers match these words
            return UnknownTypeError(
                f"{self.kind} {str(name)!r} not registered. Available types: {known}"
            )
        kind = "Tool name" if self.kind == "Tool" else self.kind
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return UnknownTypeError(
            f"{kind} {name} is not registered", remedy=f"{hint}use one of: {', '.join(known)}"
        )


def _plain(name: Any) -> Any:
    return name.value if isinstance(name, Enum) else name


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.module


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
