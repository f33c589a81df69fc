"""Programs run by a SandboxFusion service, one request each.

What is sent and what an answer means is decided by `_fusion`; `http_client` does the talking.
"""

from __future__ import annotations

import contextvars
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

import anyio
import anyio.to_thread
from typing_extensions import override

from ms_enclave.boxes import _fusion as fusion
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes.base import PROCESS_WIDE
from ms_enclave.boxes.factory import register_sandbox
from ms_enclave.boxes.stateless_sandbox import StatelessSandbox
from ms_enclave.errors import ConfigError
from ms_enclave.http_client import HttpClient, Place
from ms_enclave.loop import on_loop
from ms_enclave.model import (
    Diagnosis,
    IsolationReport,
    Problem,
    SandboxConfig,
    VolcengineSandboxConfig,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AsyncExitStack

    from ms_enclave.boxes._execution import Job
    from ms_enclave.channel.process import SpawnRequest
    from ms_enclave.model import CommandResult, SandboxInfo, ToolResult
    from ms_enclave.model.limits import ResolvedLimits

__all__ = ["VolcengineSandbox"]

_MOST_STDIN = 16 << 20
"""Bytes of input that one request may carry."""

_HIDDEN = "***"

_tool: contextvars.ContextVar[str | None] = contextvars.ContextVar("tool", default=None)
"""The tool that asks, where one does."""

_clients: dict[str, dict[Place, HttpClient]] = {}
"""By manager: all its sandboxes together do not ask a service for more at a time than one may."""


@register_sandbox("volcengine")
class VolcengineSandbox(StatelessSandbox):
    """A handle of a SandboxFusion service; see `docs/volcengine.md`.

    Starting one asks nothing of the service. Each run raises, whoever's fault a failure of the
    service is: ServerUnreachableError, AuthenticationError, QuotaExceededError, SandboxLostError.
    """

    sandbox_type = "volcengine"
    config_class: ClassVar[type[SandboxConfig]] = VolcengineSandboxConfig
    offers = frozenset({"python", "languages"})

    _http: HttpClient
    _place: Place

    @property
    def _settings_of_service(self) -> VolcengineSandboxConfig:
        return cast("VolcengineSandboxConfig", self.config)

    @override
    async def _open(self, stack: AsyncExitStack) -> None:
        self._place = _place_of(self._settings_of_service)
        if self._owner == PROCESS_WIDE:
            self._http = await HttpClient.open(self._place)
            stack.push_async_callback(self._http.aclose)
        else:
            self._http = await _client_of(self._owner, self._place)
        self._capabilities = self.offers
        self._isolation = IsolationReport(tier="remote")

    @classmethod
    @override
    async def release_owner(cls, owner: str) -> None:
        """Close the connections that sandboxes of one manager shared."""
        for client in _clients.pop(owner, {}).values():
            await client.aclose()

    @classmethod
    @override
    async def diagnose(cls) -> Diagnosis:
        """It works where there is a service, which nobody but the caller knows."""
        return Diagnosis(
            sandbox_type=cls.sandbox_type,
            works=False,
            problems=[
                Problem(
                    what="programs run on a SandboxFusion service, and none is known here",
                    remedy='name one in the config: {"base_url": "http://host:8080"}',
                    blocks=False,  # nothing of this machine has to be mended for it
                )
            ],
        )

    @override
    def get_info(self) -> SandboxInfo:
        """A description of it, as of now, without what only the service may know."""
        info = super().get_info()
        if info.config.get("api_key"):
            info.config["api_key"] = _HIDDEN
        info.config["extra_headers"] = dict.fromkeys(info.config["extra_headers"], _HIDDEN)
        return info

    # --- runs ---

    @override
    async def execute_tool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool, in the language that `tool_language_map` has for it. See `Sandbox`."""
        with _asked_by(tool_name):
            return await super().execute_tool(tool_name, parameters, timeout=timeout)

    @override
    async def _run_there(self, request: SpawnRequest, job: Job) -> CommandResult:
        folder = fusion.folder_of_run(request.cwd, self.config.working_dir)
        if request.code is not None:
            source = fusion.python_source(request.code, request.args, folder, request.env)
            language = self._language_of_tool("python_executor", "python")
        else:
            source = fusion.shell_source(job.command, folder, request.env)
            language = self._language_of_tool("shell_executor", "bash")
        return await self._ask(
            fusion.Run(source, language, job.limits, await _text_of(job.stdin)),
            job.command,
            job.metadata,
        )

    @on_loop
    async def run_language(
        self,
        language: str,
        code: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        compile_timeout: float | None = None,
    ) -> CommandResult:
        """Compile and run a program in a language of the service.

        Args:
            language: a name of `multi_code_executor`'s, of `dataset_language_map`, or the
                service's own.
            files: further files beside the program, by relative name.
            timeout: seconds for running; the config's where None.
            compile_timeout: seconds for compiling; the service's own where None.

        Raises:
            ConfigError: the service does not have that language, or an argument is none.
            Otherwise as the class says.
        """
        source = inputs.validate_code(code)
        limits = self.config.resolve_limits(None, inputs.validate_timeout(timeout))
        run = fusion.Run(
            code=source,
            language=self._language(language),
            limits=limits,
            stdin=await _text_of(inputs.normalise_stdin(stdin)),
            files={name: _bytes(name, content) for name, content in (files or {}).items()},
            compile_timeout=inputs.validate_timeout(compile_timeout),
        )
        async with self._using():
            return await self._ask(run, source, {"language": run.language})

    def _language(self, name: str) -> str:
        known = self._settings_of_service.dataset_language_map
        return known.get(name) or fusion.LANGUAGES.get(name, name)

    def _language_of_tool(self, usual_tool: str, otherwise: str) -> str:
        known = self._settings_of_service.tool_language_map
        return known.get(_tool.get() or usual_tool) or otherwise

    async def _ask(
        self, run: fusion.Run, command: str | list[str], metadata: Mapping[str, Any]
    ) -> CommandResult:
        config = self._settings_of_service
        began, started = datetime.now(timezone.utc), time.monotonic()
        answer = await self._http.post_json(
            _path(config),
            fusion.document(run),
            seconds=_patience(config, run.limits, run.compile_timeout),
            most=fusion.most_bytes(run.limits),
        )
        secrets = [value for _, value in self._place.headers if value]
        body = fusion.read_answer(answer, self._place.shown, secrets)
        return fusion.to_result(
            body,
            run,
            command,
            began=began,
            wall=time.monotonic() - started,
            metadata={**metadata, "language": run.language},
        )


@contextmanager
def _asked_by(tool_name: str) -> Generator[None, None, None]:
    token = _tool.set(tool_name)
    try:
        yield
    finally:
        _tool.reset(token)


def _place_of(config: VolcengineSandboxConfig) -> Place:
    if not config.base_url:
        raise ConfigError(
            "base_url must be provided for VolcengineSandbox", remedy="say where the service is"
        )
    headers = dict(config.extra_headers)
    if config.api_key:
        headers = {n: v for n, v in headers.items() if n.lower() != "authorization"}
        headers["Authorization"] = config.api_key
    return Place(
        base_url=config.base_url.rstrip("/"),
        headers=tuple(headers.items()),
        verify_ssl=config.verify_ssl,
        max_concurrency=config.max_concurrency,
    )


def _path(config: VolcengineSandboxConfig) -> str:
    return "/" + config.run_code_path.lstrip("/")


def _patience(
    config: VolcengineSandboxConfig, limits: ResolvedLimits, compile_timeout: float | None
) -> float:
    """Seconds: what the program may take, and then the service."""
    return limits.timeout + (compile_timeout or 0.0) + config.request_timeout


async def _client_of(owner: str, place: Place) -> HttpClient:
    known = _clients.setdefault(owner, {})
    client = known.get(place)
    if client is None:
        made = await HttpClient.open(place)
        client = known.setdefault(place, made)
        if client is not made:  # two began at once
            await made.aclose()
    return client


async def _text_of(stdin: bytes | BinaryIO | None) -> str | None:
    if stdin is None:
        return None
    data = stdin
    if not isinstance(data, bytes):
        data = await anyio.to_thread.run_sync(data.read, _MOST_STDIN + 1)
    if len(data) > _MOST_STDIN:
        raise ConfigError(f"stdin has more than {_MOST_STDIN} bytes, which no request can carry")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError("stdin must be UTF-8 text for a volcengine sandbox") from None


def _bytes(name: str, content: bytes | str) -> bytes:
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\0" in name:
        raise ConfigError(f"a file's name must be relative and stay beside the program: {name!r}")
    return content.encode() if isinstance(content, str) else content
