"""`multi_code_executor`: a program in any language of the table, compiled and run."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio
from typing_extensions import override

from ms_enclave.errors import ConfigError, EnclaveError
from ms_enclave.model import CommandResult, ExecutionStatus, ToolResult, Verdict
from ms_enclave.tools._languages import (
    LANGUAGES,
    Language,
    Plan,
    Program,
    choose,
    heap_mib,
    make_plan,
    wanted,
)
from ms_enclave.tools._program import PROGRAM_PARAMETERS, BuiltinTool, seconds
from ms_enclave.tools._results import error_text, from_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.context import LanguageContext, SandboxContext
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["MultiCodeExecutor"]

COMPILE_TIMEOUT = 60.0
"""Seconds for compiling where the call says nothing: compilers are slower than programs."""

PROBE_TIMEOUT = 30.0
CLEAN_UP_TIMEOUT = 5.0

# Prints “name<TAB>path” for each argument that is there: a file pattern, or a program.
_PROBE = """for name do
  case $name in
    /*) for path in $name; do
          if [ -e "$path" ]; then printf '%s\\t%s\\n' "$name" "$path"; break; fi
        done ;;
    *) path=$(command -v "$name") && printf '%s\\t%s\\n' "$name" "$path" ;;
  esac
done
exit 0
"""
_PROBE_MODULES = """import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)), sep="\\n")
"""


@dataclass(frozen=True)
class _Job:
    """One call: where it runs, and what every command of it is given."""

    context: SandboxContext
    language: str
    env: Mapping[str, str]
    user: str | None
    run_timeout: float | None
    compile_timeout: float
    stdin: str | None
    cwd: str | None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


class MultiCodeExecutor(BuiltinTool):
    """Compiles and runs one program in a folder of its own, which is removed afterwards.

    The result's `metadata` says how far it came: `stage` is `probe`, `compile` or `run`; `compile`
    holds what the compiler said, `programs` what was used. What a sandbox lacks is a result with
    `metadata["missing"]` and `metadata["packages"]`.
    """

    _name = "multi_code_executor"
    _description = (
        "Compile and run a program in one of many languages in an isolated sandbox and return "
        "what it prints."
    )
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "language": {
                "type": "string",
                "description": "The language of the code.",
                "enum": list(LANGUAGES),
            },
            "code": {"type": "string", "description": "The source of the program."},
            "files": {
                "type": "object",
                "description": "Further files beside the code: relative name to text.",
                "additionalProperties": {"type": "string"},
            },
            "compile_timeout": seconds("Seconds that compiling may take. Default: 60."),
            "run_timeout": seconds("Seconds that the program may run. Default: `timeout`."),
            **PROGRAM_PARAMETERS,
        },
        "required": ["language", "code"],
    }

    @override
    def check_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        language = parameters.get("language")
        if isinstance(language, str):
            parameters = {**parameters, "language": language.lower()}
        return super().check_parameters(parameters)

    @override
    async def _run(
        self,
        context: SandboxContext,
        *,
        language: str,
        code: str,
        files: Mapping[str, str] | None = None,
        compile_timeout: float | None = None,
        run_timeout: float | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> ToolResult:
        job = _Job(
            context=context,
            language=language,
            env=env or {},
            user=options.get("user"),
            run_timeout=run_timeout or timeout,
            compile_timeout=compile_timeout or timeout or COMPILE_TIMEOUT,
            stdin=options.get("stdin"),
            cwd=options.get("cwd"),
            metadata={"language": language, "stage": "probe"},
        )
        started = time.monotonic()
        if "languages" in context.capabilities:
            result = await self._hand_over(job, code, files or {})
        else:
            result = await self._execute_job(job, LANGUAGES[language], code, files or {})
        result.execution_time = time.monotonic() - started
        return result

    async def _hand_over(self, job: _Job, code: str, files: Mapping[str, str]) -> ToolResult:
        """Let a sandbox do it that has languages of its own."""
        other = [name for name in ("cwd", "env", "user") if getattr(job, name)]
        if other:
            raise ConfigError(f"{', '.join(other)}: not where the sandbox has its own languages")
        result = await cast("LanguageContext", job.context).run_language(
            job.language,
            code,
            files=files,
            stdin=job.stdin,
            timeout=job.run_timeout,
            compile_timeout=job.compile_timeout,
        )
        return from_command(self.name, result, {"language": job.language})

    async def _execute_job(
        self, job: _Job, language: Language, code: str, files: Mapping[str, str]
    ) -> ToolResult:
        folder = f"{job.context.config.working_dir.rstrip('/')}/run-{secrets.token_hex(6)}"
        found: dict[str, str] = {}
        names = wanted(language, job.context.capabilities)
        if names:
            probe = await _probe(job, names)
            if probe.status != ExecutionStatus.SUCCESS:
                return from_command(self.name, probe, job.metadata)
            found = _found(probe)
        modules = await _find_modules(job, language)
        toolchain, lacking = choose(language, job.context.capabilities, found, modules)
        if lacking:
            return self._lacking(job, lacking)
        limits = job.context.config.resolve_limits()
        plan = make_plan(
            language,
            toolchain,
            code=code,
            files=files,
            folder=folder,
            found=found,
            heap=heap_mib(limits.memory),
        )
        job.metadata["programs"] = {
            program.names[0]: next(found[name] for name in program.names if name in found)
            for program in toolchain.programs.values()
        }
        try:
            await _place(job, folder, plan)
            return await self._compile_and_run(job, plan, folder)
        finally:
            await _remove(job, folder)

    async def _compile_and_run(self, job: _Job, plan: Plan, folder: str) -> ToolResult:
        env = {**plan.env, **job.env}
        job.metadata["stage"] = "compile"
        for step in plan.compile:
            result = await job.context.execute_command(
                list(step), job.compile_timeout, cwd=folder, env=env, user=job.user
            )
            job.metadata["compile"] = _summary(result)
            if result.status != ExecutionStatus.SUCCESS:
                return self._not_compiled(job, result)
        job.metadata["stage"] = "run"
        options: dict[str, Any] = {
            "timeout": job.run_timeout,
            "stdin": job.stdin,
            "cwd": job.cwd or folder,
            "env": env,
            "user": job.user,
        }
        if plan.launcher is not None:
            result = await job.context.run_code(plan.launcher, args=plan.run, **options)
        else:
            result = await job.context.execute_command(list(plan.run), **options)
        return from_command(self.name, result, job.metadata)

    def _not_compiled(self, job: _Job, result: CommandResult) -> ToolResult:
        """Says that it was the compiler; some write what is wrong to stdout."""
        told = from_command(self.name, result, job.metadata)
        told.error = f"Compilation failed: {error_text(result)}"
        if result.stdout:
            told.error += f"\n{result.stdout}"
        return told

    def _lacking(self, job: _Job, lacking: Mapping[str, Program]) -> ToolResult:
        needs = ", ".join(" or ".join(program.names) for program in lacking.values())
        packages = list(dict.fromkeys(program.package for program in lacking.values()))
        return ToolResult(
            tool_name=self.name,
            status=ExecutionStatus.ERROR,
            verdict=Verdict.ERROR,
            output="",
            error=(
                f"{job.language} needs {needs}, which this sandbox does not have. "
                f"Who has it: {', '.join(packages)}."
            ),
            metadata={**job.metadata, "missing": list(lacking), "packages": packages},
        )


def _summary(result: CommandResult) -> dict[str, Any]:
    return {
        "status": str(result.status.value),
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "execution_time": result.execution_time,
    }


async def _probe(job: _Job, names: Sequence[str]) -> CommandResult:
    """Look for programs as the program itself would: with its environment, as its user."""
    return await job.context.execute_command(
        ["sh", "-c", _PROBE, "probe", *names], PROBE_TIMEOUT, env=job.env, user=job.user
    )


def _found(result: CommandResult) -> dict[str, str]:
    """Where the sandbox has what was looked for, by name."""
    return dict(line.split("\t", 1) for line in result.stdout.splitlines() if "\t" in line)


async def _find_modules(job: _Job, language: Language) -> set[str]:
    """Which of the Python modules that the language takes the sandbox has."""
    names = [name for toolchain in language.toolchains for name in toolchain.modules]
    if not names or "python" not in job.context.capabilities:
        return set()
    result = await job.context.run_code(_PROBE_MODULES, args=names, timeout=PROBE_TIMEOUT)
    return set(result.stdout.split())


async def _place(job: _Job, folder: str, plan: Plan) -> None:
    """Put the program into its folder, which the user who runs it may write to."""
    for name, text in plan.files.items():
        await job.context.files.write(f"{folder}/{name}", text)
    for name in plan.folders:
        await job.context.files.mkdir(f"{folder}/{name}")
    if job.user is not None:
        await job.context.execute_command(["chmod", "-R", "a+rwX", folder])


async def _remove(job: _Job, folder: str) -> None:
    """Leave nothing behind, also when cancelled; what ended the run is the news, not this.

    Folders that the program made are its user's, and only that user can empty them.
    """
    files = job.context.files
    with anyio.move_on_after(CLEAN_UP_TIMEOUT, shield=True):
        for view in (files,) if job.user is None else (files.as_user(job.user), files):
            with contextlib.suppress(OSError, EnclaveError):
                await view.remove(folder, recursive=True)
