"""The manager whose sandboxes are handles of one SandboxFusion service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from typing_extensions import override

from ms_enclave.boxes._inputs import coerce_config
from ms_enclave.errors import ConfigError, UnknownTypeError
from ms_enclave.manager.local_manager import AUTO, LocalSandboxManager
from ms_enclave.model import (
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxType,
    VolcengineSandboxConfig,
    VolcengineSandboxManagerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import CommandResult, SandboxConfig

__all__ = ["VolcengineSandboxManager"]

_SHARED = ("run_code_path", "request_timeout", "verify_ssl", "dataset_language_map",
           "tool_language_map")  # fmt: skip
_OF_THE_SERVICE = ("base_url", "api_key", "extra_headers")
"""What goes together: a key is for the service that it was given for, and for no other."""


class VolcengineSandboxManager(LocalSandboxManager):
    """Makes sandboxes of type `volcengine`; see `SandboxManager` and `docs/volcengine.md`.

    What the manager's config says of the service holds for each sandbox whose own config does not
    say it. All sandboxes together have at most `max_concurrency` requests under way.

    Args:
        config: the manager's config, or what it is made from.
        settings: as of `LocalSandboxManager`; `base_url` among them.

    Raises:
        ConfigError: there is no `base_url`.
    """

    config_class: ClassVar[type[SandboxManagerConfig]] = VolcengineSandboxManagerConfig

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(config, **settings)
        if not self.config.base_url:
            raise ConfigError("base_url must be provided for VolcengineSandboxManager")

    @property
    def _settings_of_service(self) -> VolcengineSandboxManagerConfig:
        return cast("VolcengineSandboxManagerConfig", self.config)

    @override
    async def _create(
        self,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        sandbox_id: str | None,
    ) -> Sandbox:
        if sandbox_type not in {AUTO, SandboxType.VOLCENGINE.value}:
            await self._load(sandbox_type)  # which says so where there is no such type at all
            raise UnknownTypeError(
                f"This manager has sandboxes of type volcengine only, not {sandbox_type}",
                remedy="use a LocalSandboxManager for the others",
            )
        return await self._create_one(
            SandboxType.VOLCENGINE.value, self._complete(config), sandbox_id
        )

    def _complete(
        self, config: SandboxConfig | Mapping[str, Any] | None
    ) -> VolcengineSandboxConfig:
        given = cast("VolcengineSandboxConfig", coerce_config(VolcengineSandboxConfig, config))
        said = given.said()
        elsewhere = _bare(given.base_url) not in {None, _bare(self.config.base_url)}
        names = _SHARED if elsewhere else (*_OF_THE_SERVICE, *_SHARED)
        ours = {name: getattr(self.config, name) for name in names}
        own = {name: value for name, value in said.items() if value is not None}
        own["max_concurrency"] = self._settings_of_service.max_concurrency
        return VolcengineSandboxConfig.model_validate({**ours, **own})

    @override
    async def _run_fresh(
        self,
        code: str,
        stdin: bytes | str | None,
        timeout: float | None,
        config: SandboxConfig | Mapping[str, Any] | None,
    ) -> CommandResult | None:
        """There is no shorter way."""
        del code, stdin, timeout, config
        return None

    @override
    async def get_stats(self) -> dict[str, Any]:
        """As of every manager, and which service it is."""
        own = self._settings_of_service
        return {
            **await super().get_stats(),
            "manager_type": SandboxManagerType.VOLCENGINE.value,
            "base_url": own.base_url,
            "max_concurrency": own.max_concurrency,
        }


def _bare(base_url: str | None) -> str | None:
    return None if base_url is None else base_url.rstrip("/")
