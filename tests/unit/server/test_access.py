"""Whose key a key is takes as long to find out whatever is wrong with it."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from ms_enclave.manager import LocalSandboxManager
from ms_enclave.server import SandboxServer, create_server
from tests.unit.server.test_gate import KEY
from tests.unit.server.test_tenants import served

if TYPE_CHECKING:
    from pathlib import Path


class Guess(str):
    """A key that is not to be compared as texts are, which ends with the first difference."""

    __slots__ = ()

    @override
    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared as a text")

    @override
    def __ne__(self, other: object) -> bool:
        raise AssertionError("compared as a text")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """The pairs that were compared in a time that does not depend on them."""
    pairs: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        pairs.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    return pairs


async def tell_nothing(
    server: SandboxServer, right: str, first: int, compared: list[tuple[bytes, bytes]]
) -> None:
    """However much of a guess is right, from its character `first` on, it is compared in the same
    way, and what is compared has nothing in common with what is right."""
    wrong = "".join("x" if character != "x" else "y" for character in right)
    guesses = [right[:place] + wrong[place:] for place in range(first, len(right))]
    for guess in [*guesses, right[:-1], right + "x"]:
        assert await server.access.authenticate(Guess(guess)) is None
    for one, other in compared:
        assert len(one) == len(other) == len(compared[0][0])
        assert one[:4] != other[:4]
    found = await server.access.authenticate(Guess(right))
    assert found is not None
    assert compared[-1][0] == compared[-1][1]


async def test_one_wrong_key_is_compared_as_any_other(
    compared: list[tuple[bytes, bytes]],
) -> None:
    server = create_server(LocalSandboxManager(), api_key=KEY)
    await tell_nothing(server, KEY, 0, compared)
    assert len(compared) == len(KEY) + 3


async def test_one_wrong_key_of_a_tenant_is_compared_as_any_other(
    tmp_path: Path, compared: list[tuple[bytes, bytes]]
) -> None:
    async with served(tmp_path) as one:
        key = await one.key("mine")
        compared.clear()
        await tell_nothing(one.server, key.text, key.text.index(key.id) + len(key.id) + 1, compared)
        count = len(compared)
        other = f"mse_{'0' * len(key.id)}_{key.text[-43:]}"
        assert await one.server.access.authenticate(Guess(other)) is None
        assert len(compared) == count + 1, "an id that nobody has is told by the time it takes"
