#!/usr/bin/env python3
"""Write `ms_enclave/sandbox/`, the other spelling of our names; `--check` fails where it is stale.

Code of others imports from `ms_enclave.sandbox.…`. Each module there is one row of the table below
and holds the same objects as the module that it names: nothing is defined there. A part that is
new is one more row.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src" / "ms_enclave" / "sandbox"

REQUESTS = """
    ExecuteCodeRequest ExecuteCommandRequest FileOperationRequest ReadFileRequest
    ToolExecutionRequest WriteFileRequest
"""
RESPONSES = "CommandResult ExecutionResult HealthCheckResult SandboxInfo ToolResult"
ENUMS = "ExecutionStatus SandboxManagerType SandboxStatus SandboxType ToolType"
CONFIGS = """
    DockerNotebookConfig DockerSandboxConfig FileOperationConfig PythonExecutorConfig SandboxConfig
    SandboxManagerConfig ShellExecutorConfig ToolConfig VolcengineSandboxConfig
    VolcengineSandboxManagerConfig
"""
TOOL_CLASSES = """
    FileOperation MultiCodeExecutor NotebookExecutor PythonExecutor ShellExecutor
"""

# Module below ms_enclave.sandbox ("" is the package itself) -> where its names live -> the names.
TABLE: dict[str, dict[str, str]] = {
    "": {
        "ms_enclave.boxes": "DockerSandbox Sandbox SandboxFactory",
        "ms_enclave.manager": "HttpSandboxManager LocalSandboxManager",
        "ms_enclave.model": """
            DockerSandboxConfig ExecuteCodeRequest ExecuteCommandRequest ExecutionStatus
            HealthCheckResult ReadFileRequest SandboxConfig SandboxInfo SandboxStatus
            ToolExecutionRequest ToolResult WriteFileRequest
        """,
        "ms_enclave.server": "SandboxServer create_server",
        "ms_enclave.tools": "PythonExecutor Tool ToolFactory",
    },
    "boxes": {
        "ms_enclave.boxes": """
            DockerNotebook DockerNotebookSandbox DockerSandbox Sandbox SandboxFactory
            StatelessSandbox VolcengineSandbox register_sandbox
        """,
    },
    "boxes.docker_notebook": {"ms_enclave.boxes": "DockerNotebook DockerNotebookSandbox"},
    "boxes.docker_sandbox": {"ms_enclave.boxes": "DockerSandbox"},
    "boxes.stateless_sandbox": {"ms_enclave.boxes": "StatelessSandbox"},
    "boxes.volcengine": {"ms_enclave.boxes": "VolcengineSandbox"},
    "boxes.base": {"ms_enclave.boxes": "Sandbox SandboxFactory register_sandbox"},
    "manager": {
        "ms_enclave.manager": """
            HttpSandboxManager LocalSandboxManager SandboxManager SandboxManagerFactory
            VolcengineSandboxManager
        """,
    },
    "manager.base": {
        "ms_enclave.manager": "SandboxManager SandboxManagerFactory register_manager",
    },
    "manager.http_manager": {"ms_enclave.manager": "HttpSandboxManager"},
    "manager.local_manager": {"ms_enclave.manager": "LocalSandboxManager"},
    "manager.volcengine": {"ms_enclave.manager": "VolcengineSandboxManager"},
    "model": {
        "ms_enclave.model": f"""
            {ENUMS} {CONFIGS} {REQUESTS} {RESPONSES} DEFAULT_POOL_EXECUTION_TIMEOUT
        """,
    },
    "model.base": {"ms_enclave.model": ENUMS},
    "model.config": {"ms_enclave.model": CONFIGS},
    "model.constants": {"ms_enclave.model": "DEFAULT_POOL_EXECUTION_TIMEOUT"},
    "model.requests": {"ms_enclave.model": REQUESTS},
    "model.responses": {"ms_enclave.model": RESPONSES},
    "server": {"ms_enclave.server": "SandboxServer create_server"},
    "server.server": {"ms_enclave.server": "SandboxServer create_server"},
    "tools": {
        "ms_enclave.tools": """
            FileOperation PythonExecutor ShellExecutor Tool ToolFactory register_tool
        """,
    },
    "tools.base": {"ms_enclave.tools": "Tool ToolFactory register_tool"},
    "tools.sandbox_tool": {"ms_enclave.tools": "SandboxTool"},
    "tools.sandbox_tools": {"ms_enclave.tools": TOOL_CLASSES},
    "tools.sandbox_tools.file_operation": {"ms_enclave.tools": "FileOperation"},
    "tools.sandbox_tools.multi_code_executor": {"ms_enclave.tools": "MultiCodeExecutor"},
    "tools.sandbox_tools.notebook_executor": {"ms_enclave.tools": "NotebookExecutor"},
    "tools.sandbox_tools.python_executor": {"ms_enclave.tools": "PythonExecutor"},
    "tools.sandbox_tools.shell_executor": {"ms_enclave.tools": "ShellExecutor"},
    "tools.tool_info": {
        "ms_enclave.tools.tool_info": """
            ToolInfo ToolParam ToolParams parse_docstring parse_tool_info
        """,
    },
    "utils": {},
    "utils.archive": {"ms_enclave.utils.archive": "tar_directory tar_file"},
}

HEADER = '''"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations
'''


def render(module: str) -> str:
    """The source of one module of the tree."""
    homes = TABLE[module]
    names = sorted({name for text in homes.values() for name in text.split()})
    lines = [HEADER]
    for home in sorted(homes):
        lines += [f"from {home} import {name} as {name}" for name in sorted(homes[home].split())]
    lines += ["", f"__all__: list[str] = {names!r}" if not names else f"__all__ = {names!r}"]
    return _formatted("\n".join(lines) + "\n")


def _formatted(source: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--quiet", "--fix-only", "--select", "I,RUF022"], ["format"]):
        source = subprocess.run(
            [str(ruff), *command, "--stdin-filename", str(TARGET / "x.py"), "-"],
            input=source,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            cwd=ROOT,
        ).stdout
    return source


def tree() -> dict[Path, str]:
    """Every file of the tree with its content."""
    packages = {parent for module in TABLE for parent in _parents(module)} | {""}
    files: dict[Path, str] = {}
    for module in TABLE:
        path = TARGET.joinpath(*module.split(".")) if module else TARGET
        is_package = module in packages or module == "utils"
        files[path / "__init__.py" if is_package else path.with_suffix(".py")] = render(module)
    return files


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def stale(files: dict[Path, str]) -> list[str]:
    """What has to change on disk, as text for a reader."""
    said: list[str] = []
    for path, source in files.items():
        there = path.read_text() if path.exists() else ""
        if there != source:
            name = str(path.relative_to(ROOT))
            said += difflib.unified_diff(
                there.splitlines(), source.splitlines(), name, name, "", ""
            )
    present = set(TARGET.rglob("*.py"))
    said += [f"not in the table: {path.relative_to(ROOT)}" for path in sorted(present - set(files))]
    return said


def main() -> int:
    """Write the tree, or say what is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    check = parser.parse_args().check
    files = tree()
    if check:
        said = stale(files)
        print("\n".join(said) or "ms_enclave/sandbox is up to date")
        return 1 if said else 0
    for path in set(TARGET.rglob("*.py")) - set(files):
        path.unlink()
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
