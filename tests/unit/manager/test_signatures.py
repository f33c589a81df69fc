"""Local, over HTTP, and without `await`: one contract, with the same names and parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from ms_enclave import blocking
from ms_enclave.boxes.base import Sandbox
from ms_enclave.boxes.commands import Command
from ms_enclave.boxes.kernels import Kernel
from ms_enclave.boxes.shells import Shell
from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager, SandboxManager
from ms_enclave.manager._remote_commands import RemoteCommand, RemoteShell
from ms_enclave.manager._remote_kernels import RemoteKernel
from ms_enclave.manager._remote_sandbox import RemoteSandbox

OF_THE_OWNER = frozenset({"hand_over", "cleanup_expired"})
"""What only whoever has the sandboxes can do: leave them on that machine to a next owner, and do at
once what its own housekeeping does anyway."""
OF_THE_CLASS = frozenset({"config_class"})


def public(kind: type) -> dict[str, Any]:
    """Methods and properties by name."""
    found = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    return {
        name: member
        for name, member in found.items()
        if not name.startswith("_") and (callable(member) or isinstance(member, _MEMBERS))
    }


_MEMBERS = (property, classmethod, staticmethod)


def parameters(kind: type, name: str) -> list[tuple[str, Any, Any]]:
    """Of a method: names, kinds and defaults."""
    signature = inspect.signature(getattr(kind, name))
    return [(each.name, each.kind, each.default) for each in signature.parameters.values()]


MANAGERS = [HttpSandboxManager, blocking.LocalSandboxManager, blocking.HttpSandboxManager]


@pytest.mark.parametrize("other", MANAGERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_manager_has_every_method_of_the_local_one(other: type) -> None:
    ours, its = public(LocalSandboxManager), public(other)
    absent = OF_THE_OWNER if "Http" in other.__name__ else frozenset[str]()
    assert ours.keys() - its.keys() == absent | OF_THE_CLASS
    for name in ours.keys() & its.keys():
        if not isinstance(ours[name], property) and not inspect.isclass(ours[name]):
            assert parameters(LocalSandboxManager, name) == parameters(other, name), name


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        (Sandbox, RemoteSandbox),
        (Command, RemoteCommand),
        (Shell, RemoteShell),
        (Kernel, RemoteKernel),
    ],
    ids=lambda kind: kind.__name__,
)
def test_a_remote_handle_has_what_a_local_one_has(local: type, remote: type) -> None:
    ours = public(local)
    assert ours.keys() <= public(remote).keys()
    for name, member in ours.items():
        if not isinstance(member, property) and not inspect.isclass(member):
            assert parameters(local, name) == parameters(remote, name), name


MADE_OF_OTHERS = frozenset({"run", "run_stream"})
"""Methods of a kernel that are made of methods which the handle has of its own."""


@pytest.mark.parametrize(
    ("local", "remote"),
    [(Command, RemoteCommand), (Shell, RemoteShell), (Kernel, RemoteKernel)],
    ids=lambda kind: kind.__name__,
)
def test_no_remote_handle_has_a_method_of_what_it_is_not(local: type, remote: type) -> None:
    """One that was forgotten would look for a process on this machine."""
    for name in public(local):
        home = next(kind for kind in remote.__mro__ if name in vars(kind))
        is_made = local is Kernel and name in MADE_OF_OTHERS
        assert home is remote or is_made, name


def test_a_manager_says_nothing_that_its_base_does_not() -> None:
    more = public(HttpSandboxManager).keys() - public(SandboxManager).keys()
    assert more == set()
