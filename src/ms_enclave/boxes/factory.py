"""Sandboxes by the name of their type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import EnclaveError
from ms_enclave.registry import SANDBOXES, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ms_enclave.model import SandboxConfig

__all__ = ["SandboxFactory", "register_sandbox", "types_offering"]

_registry: Registry[Sandbox] = Registry("Sandbox type", "ms_enclave.sandboxes", SANDBOXES)

_SandboxClass = TypeVar("_SandboxClass", bound=type[Sandbox])


class SandboxFactory:
    """Makes sandboxes by type: registered here, built in, or from an installed package."""

    @classmethod
    def register_sandbox(cls, sandbox_type: str, sandbox_class: type[Sandbox]) -> None:
        """Make a sandbox class known under a type, in this process."""
        _registry.register(sandbox_type, sandbox_class)

    @classmethod
    def get_class(cls, sandbox_type: str) -> type[Sandbox]:
        """The class of a type. May import it.

        Raises:
            UnknownTypeError: nothing has that name.
        """
        return _registry.get(sandbox_type)

    @classmethod
    def create_sandbox(
        cls,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> Sandbox:
        """A sandbox, not yet started: `async with` starts and stops it.

        Args:
            config: the backend's config, or what it is made from.
            sandbox_id: 1 to 64 letters, digits, `_` or `-`; a new one where None.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config or the id is not valid.
        """
        return cls.get_class(sandbox_type)(config, sandbox_id)

    @classmethod
    def get_available_types(cls) -> list[str]:
        """The types that `create_sandbox` takes, whether or not they work on this machine."""
        return list(_registry.names())


def register_sandbox(sandbox_type: str) -> Callable[[_SandboxClass], _SandboxClass]:
    """Decorate a `Sandbox` class to make it known under a type."""

    def register(sandbox_class: _SandboxClass) -> _SandboxClass:
        SandboxFactory.register_sandbox(sandbox_type, sandbox_class)
        return sandbox_class

    return register


def types_offering(capability: str) -> list[str]:
    """The types whose boxes have a capability where the machine allows it."""
    offering: list[str] = []
    for name in _registry.names():
        try:
            sandbox_class = _registry.get(name)
        except (EnclaveError, ImportError):
            continue  # a type that cannot even be loaded here is no help to the caller
        if capability in sandbox_class.offers | sandbox_class.basics:
            offering.append(name)
    return offering
