"""Names to classes, from three places."""

from __future__ import annotations

import threading
from enum import Enum
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from ms_enclave import registry
from ms_enclave.errors import ConfigError, UnknownTypeError
from ms_enclave.registry import MANAGERS, SANDBOXES, TOOLS, Registry


class Thing:
    """What is registered here."""


class Other(Thing):
    """Another one."""


class Name(str, Enum):
    """A name as an enum member."""

    THING = "thing"


@pytest.fixture
def things() -> Registry[Thing]:
    return Registry("Sandbox type", "ms_enclave.none", {"built": f"{__name__}:Thing"})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """What packages name; a test adds to it."""
    points: list[EntryPoint] = []

    def found(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry, "entry_points", found)
    return points


def test_a_registered_class_is_found_by_name_and_by_enum(things: Registry[Thing]) -> None:
    things.register(Name.THING, Thing)
    assert things.get("thing") is Thing
    assert things.get(Name.THING) is Thing
    assert things.names() == ("built", "thing")


def test_registering_again_replaces_also_what_is_built_in(things: Registry[Thing]) -> None:
    things.register("built", Other)
    assert things.get("built") is Other
    assert things.names() == ("built",)


@pytest.mark.parametrize("name", ["", "  ", None, 5, b"x"])
def test_what_is_no_name_is_refused(things: Registry[Thing], name: Any) -> None:
    with pytest.raises(ConfigError, match="Sandbox type"):
        things.register(name, Thing)
    with pytest.raises(UnknownTypeError, match="is not registered"):
        things.get(name)


def test_only_classes_are_registered(things: Registry[Thing]) -> None:
    thing: Any = Thing()
    with pytest.raises(ConfigError, match="must be a class"):
        things.register("thing", thing)


def test_an_unknown_name_says_what_there_is_and_what_was_meant(things: Registry[Thing]) -> None:
    with pytest.raises(UnknownTypeError, match="Sandbox type bulit is not registered") as caught:
        things.get("bulit")
    assert "did you mean built?" in str(caught.value)


def test_a_class_of_a_package_is_loaded_on_first_use(
    things: Registry[Thing], installed: list[EntryPoint]
) -> None:
    installed.append(EntryPoint("theirs", f"{__name__}:Other", "ms_enclave.none"))
    assert things.names() == ("built", "theirs")
    assert things.get("theirs") is Other


def test_a_package_that_is_installed_later_is_found(
    things: Registry[Thing], installed: list[EntryPoint]
) -> None:
    with pytest.raises(UnknownTypeError):
        things.get("theirs")
    installed.append(EntryPoint("theirs", f"{__name__}:Other", "ms_enclave.none"))
    assert things.get("theirs") is Other


def test_a_package_cannot_take_over_a_built_in_name(
    things: Registry[Thing], installed: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    installed.append(EntryPoint("built", f"{__name__}:Other", "ms_enclave.none"))
    assert things.names() == ("built",)
    assert things.get("built") is Thing
    assert "the name is built in" in caplog.text


@pytest.mark.parametrize("value", ["no_such_module:X", f"{__name__}:NoSuchClass", "json:dumps"])
def test_a_broken_package_breaks_its_own_names_only(
    things: Registry[Thing], installed: list[EntryPoint], value: str
) -> None:
    installed.append(EntryPoint("theirs", value, "ms_enclave.none"))
    with pytest.raises(ConfigError, match="theirs of package"):
        things.get("theirs")
    assert things.get("built") is Thing


def test_threads_get_the_same_class(things: Registry[Thing]) -> None:
    found: list[type[Thing]] = []
    threads = [threading.Thread(target=lambda: found.append(things.get("built"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Thing] * 8


@pytest.mark.parametrize("table", [SANDBOXES, TOOLS, MANAGERS])
def test_what_is_built_in_can_be_imported(table: dict[str, str]) -> None:
    built: Registry[Any] = Registry("Thing", "ms_enclave.none", table)
    for name in built.names():
        assert built.get(name).__module__ == table[name].partition(":")[0]
    with pytest.raises(TypeError):
        table["x"] = "y"
