"""The sandboxes: what all of them promise, and one class for each backend.

The names are imported when they are first used: to plan a sandbox takes less than to have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.boxes.commands import Command
    from ms_enclave.boxes.docker_notebook import DockerNotebook, DockerNotebookSandbox
    from ms_enclave.boxes.docker_sandbox import DockerSandbox
    from ms_enclave.boxes.factory import SandboxFactory, register_sandbox
    from ms_enclave.boxes.files import Files
    from ms_enclave.boxes.kernels import Kernel
    from ms_enclave.boxes.ports import PortStream
    from ms_enclave.boxes.shells import Shell
    from ms_enclave.boxes.stateless_sandbox import StatelessSandbox
    from ms_enclave.boxes.volcengine import VolcengineSandbox

__all__ = [
    "Command",
    "DockerNotebook",
    "DockerNotebookSandbox",
    "DockerSandbox",
    "Files",
    "Kernel",
    "PortStream",
    "Sandbox",
    "SandboxFactory",
    "Shell",
    "StatelessSandbox",
    "VolcengineSandbox",
    "register_sandbox",
]

_HOMES = {
    "Command": "commands",
    "DockerNotebook": "docker_notebook",
    "DockerNotebookSandbox": "docker_notebook",
    "DockerSandbox": "docker_sandbox",
    "Files": "files",
    "Kernel": "kernels",
    "PortStream": "ports",
    "Sandbox": "base",
    "SandboxFactory": "factory",
    "Shell": "shells",
    "StatelessSandbox": "stateless_sandbox",
    "VolcengineSandbox": "volcengine",
    "register_sandbox": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
