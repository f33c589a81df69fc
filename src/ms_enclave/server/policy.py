"""What whoever uses a server may ask for. Pure: a config in, the same or a refusal out.

It is looked at as it is meant, after every other spelling of a field has become the one there is.
"""

from __future__ import annotations

import posixpath
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ms_enclave.errors import NotAllowedError
from ms_enclave.model import DockerSandboxConfig, ProcessSandboxConfig
from ms_enclave.model.base import StrictModel
from ms_enclave.utils.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.model import SandboxConfig

__all__ = ["Policy"]

_ASK = "ask who runs the server: its policy says what may be asked for"
_IMAGES = ("image", "python_image", "base_image")
_PATHS = ("python", "rootfs", "wheels")


class Policy(StrictModel):
    """What may be asked for on a server. By default nothing of the machine it runs on, and no
    privilege; None in a list's place is everything.

    Raises:
        ConfigError: a field is unknown or has a value it cannot have.
    """

    what: ClassVar[str] = "policy"

    sandbox_types: tuple[str, ...] | None = ("process", "docker", "docker_notebook")
    """Types by name. The config of any other type than ours is not looked into: name it here only
    if all of its config may be asked for."""
    isolation: tuple[str, ...] | None = ("namespace", "gvisor")
    """Tiers of `process`. `best` may come to be any."""
    images: tuple[str, ...] | None = ("*",)
    """Images of containers, by patterns as a shell has them. What we take by ourselves may be."""
    host_paths: dict[str, Literal["ro", "rw"]] | None = Field(
        default_factory=dict[str, Literal["ro", "rw"]]
    )
    """Folders and files of the host, and the engine's volumes by name, that sandboxes may have, and
    how. Each stands for itself and not for what is below it: who may write there could lead a
    longer path elsewhere."""
    network: bool = False
    """Whether sandboxes may have a network."""
    networks: tuple[str, ...] | None = ("bridge",)
    """The engine's networks that they may have then."""
    publish: bool = False
    """Whether ports of theirs may be the host's."""
    runtimes: tuple[str, ...] | None = ("runsc",)
    """The engine's runtimes beside its default."""
    privileges: bool = False
    """Whether containers may be privileged, have capabilities added, or have graphics cards."""
    hardening: Literal["strict", "default"] = "strict"
    """What a container gets that asks for nothing, and the least that it may ask for."""
    stopped_containers: bool = False
    """Whether containers may stay when their sandbox has ended, where no quota counts them."""
    output: int | str | None = 16 << 20
    """Bytes, or like `"16m"`, of each output stream that are kept, which takes the server's memory:
    a sandbox that asks for more gets that."""

    checkpoints: int | None = Field(default=8, ge=0)
    """Checkpoints of a sandbox that have memory, which is the server's machine's: one that asks for
    more gets that many."""

    @field_validator("output", mode="after")
    @classmethod
    def _in_bytes(cls, value: int | str | None) -> int | None:
        return None if value is None else parse_size(value)

    @classmethod
    def everything(cls) -> Policy:
        """Everything, for those who may do everything on the server's machine anyway."""
        return cls(
            sandbox_types=None, isolation=None, images=None, host_paths=None, network=True,
            networks=None, publish=True, runtimes=None, privileges=True, hardening="default",
            stopped_containers=True, output=None, checkpoints=None,
        )  # fmt: skip

    def has_type(self, sandbox_type: str) -> bool:
        """Whether sandboxes of a type may be made."""
        return _among(sandbox_type, self.sandbox_types)

    def harden(self, config: SandboxConfig) -> SandboxConfig:
        """The same config, hardened where it is a container's that says nothing of it, and with no
        more output, and no more checkpoints in memory, than there may be."""
        more = dict[str, Any]()
        if isinstance(config, DockerSandboxConfig) and "hardening" not in config.model_fields_set:
            more["hardening"] = self.hardening
        if self.output is not None and config.resolve_limits().output > parse_size(self.output):
            more["output_limit"] = parse_size(self.output)
        if self.checkpoints is not None and config.max_checkpoints > self.checkpoints:
            more["max_checkpoints"] = self.checkpoints
        return config.model_copy(update=more) if more else config

    def check(self, config: SandboxConfig) -> None:
        """See that a config asks for nothing that may not be asked for.

        Raises:
            NotAllowedError: it does; the message names each.
        """
        refused = list(self._refusals(config))
        if refused:
            raise NotAllowedError(f"not allowed on this server: {'; '.join(refused)}", remedy=_ASK)

    def _refusals(self, config: SandboxConfig) -> Iterator[str]:
        if config.network_enabled and not self.network:
            yield "network_enabled"
        yield from self._paths(config)
        if isinstance(config, ProcessSandboxConfig):
            tier = config.isolation or "namespace"
            if not _among(tier, self.isolation):
                yield f"isolation={tier!r}"
        if isinstance(config, DockerSandboxConfig):
            yield from self._of_container(config)

    def _paths(self, config: SandboxConfig) -> Iterator[str]:
        if self.host_paths is None:
            return
        allowed = {_plain(path): mode for path, mode in self.host_paths.items()}
        for name in _PATHS:
            path = getattr(config, name, None)
            if path is not None and _plain(path.removeprefix("oci-archive:")) not in allowed:
                yield f"{name}={path!r}"
        volumes: dict[str, dict[str, str]] = getattr(config, "volumes", {})
        for path, options in volumes.items():
            mode = allowed.get(_plain(path))
            if mode is None or (mode == "ro" and options["mode"] != "ro"):
                yield f"the volume {path!r}" + (" writable" if mode else "")

    def _of_container(self, config: DockerSandboxConfig) -> Iterator[str]:
        for name in _IMAGES:
            image = getattr(config, name, None)
            if image is None or image == type(config).model_fields[name].default:
                continue
            if not self._has_image(image):
                yield f"{name}={image!r}"
        yield from self._of_engine(config)
        if not self.privileges:
            yield from (name for name in ("privileged", "cap_add", "gpus") if getattr(config, name))
        if self.hardening == "strict" and config.hardening != "strict":
            yield f"hardening={config.hardening!r}"
        if not self.stopped_containers and not config.remove_on_exit:
            yield "remove_on_exit=False"

    def _of_engine(self, config: DockerSandboxConfig) -> Iterator[str]:
        if config.network_enabled and not _among(config.network or "bridge", self.networks):
            yield f"network={config.network!r}"
        if config.runtime is not None and not _among(config.runtime, self.runtimes):
            yield f"runtime={config.runtime!r}"
        if not self.publish and config.ports:
            yield "ports"
        if not self.publish and "port" in config.model_fields_set:
            yield "port"

    def _has_image(self, image: str) -> bool:
        return self.images is None or any(fnmatchcase(image, one) for one in self.images)


def _among(name: str, names: tuple[str, ...] | None) -> bool:
    return names is None or name in names


def _plain(path: str) -> str:
    """One spelling for each path; a volume's name stays as it is."""
    return posixpath.normpath(path)
