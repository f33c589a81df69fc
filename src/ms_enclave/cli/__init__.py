"""The command `ms-enclave`."""

from ms_enclave.cli.cli import run_cmd

__all__ = ["run_cmd"]
