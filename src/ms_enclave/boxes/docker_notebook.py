"""Containers whose kernels are Jupyter's, behind a Jupyter Kernel Gateway.

This module only makes the gateway a part of a container's life; see `_notebook_gateway`.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio.to_thread

from ms_enclave.boxes import _notebook_image as images
from ms_enclave.boxes.docker_sandbox import DockerSandbox, load_engine
from ms_enclave.boxes.factory import register_sandbox
from ms_enclave.errors import CapabilityError, EnclaveError, SandboxLostError
from ms_enclave.model import DockerNotebookConfig

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ms_enclave.boxes import _docker_plan as plans
    from ms_enclave.boxes._docker_engine import Engine
    from ms_enclave.boxes._notebook_gateway import Gateway
    from ms_enclave.channel.process import KernelProcess, KernelRequest
    from ms_enclave.model import DockerSandboxConfig, SandboxConfig

__all__ = ["DockerNotebook", "DockerNotebookSandbox"]


logger = logging.getLogger(__name__)


@register_sandbox("docker_notebook")
class DockerNotebook(DockerSandbox):
    """A container with a Jupyter Kernel Gateway; see `docs/docker.md`.

    Raises at its start what `DockerSandbox` does, and SandboxStartError where the image cannot be
    built, or lacks the gateway.
    """

    sandbox_type = "docker_notebook"
    config_class: ClassVar[type[SandboxConfig]] = DockerNotebookConfig
    offers = DockerSandbox.offers | {"notebook"}

    _gateway: Gateway | None = None
    _kernel_id: str | None = None

    @property
    def _settings_of_notebook(self) -> DockerNotebookConfig:
        return cast("DockerNotebookConfig", self.config)

    @property
    def kernel_id(self) -> str | None:
        """What the gateway calls the kernel that was started last."""
        return self._kernel_id

    @property
    def base_url(self) -> str | None:
        """Where the gateway answers: on the host where a port is published, else inside."""
        config = self._settings_of_notebook
        if self._gateway is None or not config.is_published:
            return None if self._gateway is None else self._gateway.url
        return f"http://{config.host}:{config.port}"

    @property
    def ws(self) -> None:
        """None: each kernel has a connection of its own."""
        return

    # --- its life ---

    async def _open(self, stack: AsyncExitStack) -> None:
        gateways = await anyio.to_thread.run_sync(_load_gateway)
        if self.config.on_owner_death == "keep":
            raise CapabilityError(
                "keep",
                message="A notebook's gateway and kernels end with whoever started them",
                remedy="use a sandbox of type docker or process, or leave it out",
            )
        await super()._open(stack)
        config = self._settings_of_notebook
        gateway = gateways.Gateway(
            await self._get_guest(),
            self._spawn,
            image=config.image,
            port=config.port or 8888,
            token=config.token or secrets.token_urlsafe(32),
            environment={**self._environment, **config.env_vars},
            working_dir=config.working_dir,
            published=config.is_published,
        )
        stack.push_async_callback(gateway.aclose)
        await gateway.start()
        self._gateway = gateway
        self._capabilities |= {"notebook"}
        # A notebook is ready when a cell can run: the kernel that most ask for is there before.
        try:
            await self._find_kernels().prepare(self._kernel_request())
        except EnclaveError as error:
            logger.warning("notebook %s starts without a kernel: %s", self.id, error)

    async def _find_image(self, engine: Engine, config: DockerSandboxConfig) -> dict[str, Any]:
        """The image that the config names, built where it is ours and not there as it should be."""
        own = cast("DockerNotebookConfig", config)
        if not images.uses_ours(own):
            return await super()._find_image(engine, config)
        image, base = await engine.image(own.image), await engine.image(own.base_image)
        if image is not None and images.is_current(image, base):
            return image
        base = await super()._find_image(engine, own.model_copy(update={"image": own.base_image}))
        return await _load_build().build(engine, own, base)

    async def _create(
        self, engine: Engine, config: DockerSandboxConfig, image: dict[str, Any], uid: int,
        python: str, volume: str | None,
    ) -> plans.Plan:  # fmt: skip
        own = cast("DockerNotebookConfig", config)
        if own.is_published:
            ports = {**own.ports, f"{own.port}/tcp": [own.host, own.port]}
            config = own.model_copy(update={"ports": ports})
        return await super()._create(engine, config, image, uid, python, volume)

    async def _start_kernel(self, request: KernelRequest) -> KernelProcess:
        if not request.ipython:
            raise CapabilityError(
                "ipython=False",
                message="The kernels of a notebook are IPython's",
                remedy="leave `ipython` out, or use a sandbox of type docker",
            )
        gateway = self._gateway
        if gateway is None:
            raise SandboxLostError(f"Sandbox {self.id} has no gateway")
        request = replace(request, limits=request.limits or self._limits)
        self._kernel_id, kernel = await gateway.start_kernel(request)
        return kernel


DockerNotebookSandbox = DockerNotebook


def _load_gateway() -> Any:
    """The module that talks to gateways: it imports much, and files are read for it once."""
    load_engine()
    from ms_enclave.boxes import _notebook_gateway

    _load_build()
    _notebook_gateway.load_files()
    return _notebook_gateway


def _load_build() -> Any:
    """What builds images; loaded with the other."""
    from ms_enclave.boxes import _notebook_build

    images.load()
    return _notebook_build
