"""The kernel spec: how Jupyter's clients find and start the bridge."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpecManager

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["install", "spec"]


def spec(display_name: str, sandbox_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `kernel.json` holds."""
    return {
        "argv": [
            sys.executable, "-m", "ms_enclave.jupyter", "-f", "{connection_file}",
            "--type", sandbox_type, "--config", json.dumps(dict(config)),
        ],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": False},
    }  # fmt: skip


def install(
    name: str, content: Mapping[str, Any], *, user: bool = False, prefix: str | None = None
) -> str:
    """Install a kernel spec; gives the folder it is in.

    Raises:
        PermissionError: the folder may not be written to.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.json").write_text(json.dumps(dict(content), indent=1))
        return str(KernelSpecManager().install_kernel_spec(folder, name, user=user, prefix=prefix))
