"""The part of a sandbox that is about kernels."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._life import Life
from ms_enclave.errors import CapabilityError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.boxes.kernels import Kernel, Kernels, Savepoint
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import KernelProcess, KernelRequest
    from ms_enclave.model import IsolationReport, SandboxConfig
    from ms_enclave.model.kernels import KernelInfo

__all__ = ["KernelMethods"]


class KernelMethods(Life):
    """`kernel` and what belongs to it."""

    config: SandboxConfig
    _environment: Mapping[str, str]
    _isolation: IsolationReport | None
    _kernels: Kernels | None = None

    @abstractmethod
    async def _require(self, capability: str) -> None:
        """Refuse what the box cannot do. Raises CapabilityError."""

    @abstractmethod
    async def _get_guest(self) -> GuestConnection:
        """The guest of the sandbox's own user."""

    async def _start_kernel(self, request: KernelRequest) -> KernelProcess:
        """Start a kernel in the box. The caller closes it. Only where there is the capability."""
        return await (await self._get_guest()).start_kernel(request)

    @on_loop
    async def kernel(
        self,
        name: str = "default",
        *,
        preload: Sequence[str] = (),
        ipython: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Kernel:
        """The kernel of that name, made where there is none: a Python that keeps its variables.

        One that is there is given as it is, also where it is dead; the other arguments are for one
        that is made.

        Args:
            preload: modules that it has imported already, besides those of the config.
            ipython: whether IPython runs the cells where the sandbox has it; without it a kernel
                is quicker and smaller, and has no magics.

        Raises:
            CapabilityError: the sandbox has no kernels.
            ConfigError: an argument is none, or a module cannot be preloaded.
            SandboxStartError: the kernel does not start.
        """
        inputs.validate_kernel_name(name)
        request = self._kernel_request(preload, ipython=ipython, cwd=cwd, env=env)
        async with self._using():
            await self._require("kernel")
            return await self._find_kernels().get(name, request)

    def _kernel_request(
        self,
        preload: Sequence[str] = (),
        *,
        ipython: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> KernelRequest:
        from ms_enclave.channel.process import KernelRequest  # only kernels need these

        return KernelRequest(
            preload=inputs.validate_modules(preload),
            ipython=ipython,
            cwd=inputs.resolve_cwd(cwd, self.config.working_dir),
            env=inputs.merge_environment(self._environment, self.config.env_vars, env),
            seed=self.config.seed,
        )

    @on_loop
    async def list_kernels(self) -> list[KernelInfo]:
        """The kernels that it has, the dead ones too."""
        async with self._using():
            return [] if self._kernels is None else self._kernels.list()

    async def _savepoint(self, kernel: Kernel) -> Savepoint:
        """Keep how it is before a cell: for boxes that have the capability `checkpoint`."""
        del kernel
        await self._require("checkpoint")  # says why not
        raise CapabilityError("checkpoint")

    def _find_kernels(self) -> Kernels:
        if self._kernels is None:
            from ms_enclave.boxes.kernels import Home, Kernels

            self._kernels = Kernels(
                Home(
                    using=self._using,
                    start=self._start_kernel,
                    limits=lambda timeout: self.config.resolve_limits(None, timeout),
                    own=self._own,
                    tier=lambda: None if self._isolation is None else self._isolation.tier,
                    atomic=lambda: self.config.atomic,
                    savepoint=self._savepoint,
                )
            )
        return self._kernels
