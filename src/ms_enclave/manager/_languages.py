"""One program in one language in a sandbox that is already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ms_enclave.errors import ConfigError
from ms_enclave.model import CommandResult, ToolResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.context import LanguageContext

__all__ = ["run_in"]


async def run_in(
    sandbox: Sandbox,
    code: str,
    *,
    language: str,
    stdin: bytes | str | None,
    files: Mapping[str, bytes | str],
    timeout: float | None,
) -> CommandResult:
    """Run a program: Python as itself, everything else by `multi_code_executor`'s table.

    Raises:
        ConfigError: nothing can run that language, or that language cannot be given that.
    """
    if "languages" in sandbox.capabilities:
        own = cast("LanguageContext", sandbox)
        return await own.run_language(language, code, files=files, stdin=stdin, timeout=timeout)
    if language == "python":
        for name, content in files.items():
            await sandbox.files.write(name, content)
        return await sandbox.run_code(code, stdin=stdin, timeout=timeout)
    from ms_enclave.tools._languages import LANGUAGES  # a large table that most programs never need
    from ms_enclave.tools.multi_code_executor import MultiCodeExecutor

    if language.lower() not in LANGUAGES:
        raise ConfigError(f"language must be one of {', '.join(sorted(LANGUAGES))}: {language!r}")
    parameters: dict[str, Any] = {"language": language, "code": code, "files": _texts(files)}
    if stdin is not None:
        parameters["stdin"] = _text("stdin", stdin)
    if timeout is not None:
        parameters["run_timeout"] = timeout
    context = await sandbox.get_execution_context()
    result = await MultiCodeExecutor().execute(context, **parameters)
    shared = set(CommandResult.model_fields) & set(ToolResult.model_fields)
    return CommandResult(command=code, **{name: getattr(result, name) for name in shared})


def _texts(files: Mapping[str, bytes | str]) -> dict[str, str]:
    return {name: _text(f"file {name}", content) for name, content in files.items()}


def _text(what: str, content: bytes | str) -> str:
    try:
        return content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{what} must be text for a language other than python") from None
