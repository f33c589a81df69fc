"""What an engine tells of containers, and what that means for a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.boxes._docker_direct import belongs_to
from ms_enclave.boxes._docker_watch import Story, Watch
from ms_enclave.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([("pause", {})], "paused by somebody else"),
        ([("kill", {"signal": "9"}), ("die", {"exitCode": "137"})], r"killed .* \(signal 9\)"),
        ([("oom", {}), ("die", {"exitCode": "137"})], "memory was used up"),
        ([("die", {"exitCode": "3"})], "ended with status 3"),
        ([("died", {})], "ended with status ?"),
        ([("destroy", {})], "removed by somebody else"),
        ([("remove", {})], "removed by somebody else"),
    ],
)
def test_what_happened_is_said(events: list[tuple[str, dict[str, str]]], words: str) -> None:
    story = Story()
    *before, last = events
    assert [story.hear(*event) for event in before] == [None] * len(before)
    reason = story.hear(*last)
    assert reason is not None
    with pytest.raises(ValueError, match=words):
        raise ValueError(reason)


@pytest.mark.parametrize("action", ["kill", "oom", "exec_create: sh", "unpause"])
def test_what_need_not_be_the_end_is_none(action: str) -> None:
    assert Story().hear(action, {}) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [(None, "removed"), ("paused", "paused"), ("exited", "ended"), ("running", None)],
)
def test_what_is_seen_is_as_good(state: str | None, words: str | None) -> None:
    reason = Story().see(state)
    assert (reason is None) if words is None else (words in str(reason))


def test_a_pause_of_our_own_is_heard_of_and_means_nothing() -> None:
    story = Story()
    story.own_pauses = 1  # it has been asked for, and is heard of before or after the answer
    assert story.hear("pause", {}) is None
    story.is_paused = True
    assert story.see("paused") is None
    assert story.hear("pause", {}) is None
    story.is_paused = False
    assert "somebody else" in str(story.hear("pause", {}))
    assert "somebody else" in str(story.see("paused"))


def test_a_pause_of_our_own_that_was_missed_does_not_hide_anothers() -> None:
    story = Story()
    story.own_pauses = 1
    assert story.see("running") is None
    assert "somebody else" in str(story.hear("pause", {}))


class Engine:
    """Events and states as an engine would give them; each stream ends when it has no more."""

    def __init__(self, *streams: list[dict[str, Any]]) -> None:
        self.streams = list(streams)
        self.states: dict[str, str] = {}
        self.opened = 0

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        self.opened += 1
        if not self.streams:
            yield {}
            await anyio.sleep_forever()
        for event in self.streams.pop(0):
            if event.get("fails"):
                raise EngineUnavailableError("it has ended")
            yield event

    async def look(self) -> dict[str, str]:
        return self.states


def event(action: str, container: str = ID) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": container, "Attributes": {}}}


async def hear(watch: Watch) -> str | None:
    return await watch.reason(ID, 5)


async def test_whoever_follows_is_told_once() -> None:
    engine = Engine([{}, event("pause", "another"), event("pause"), event("destroy")])
    engine.states = {ID: "running"}
    watch, told = Watch(engine.events, engine.look), []
    watch.follow(ID, told.append)
    assert "paused" in str(await hear(watch))
    await anyio.wait_all_tasks_blocked()
    assert len(told) == 1
    watch.forget(ID)
    assert await hear(watch) is None


async def test_what_was_missed_is_found_when_it_can_be_heard_again() -> None:
    engine = Engine([{}, {"fails": True}], [{"fails": True}])
    engine.states = {ID: "running"}
    watch, told = Watch(engine.events, engine.look), []
    watch.follow(ID, told.append)
    with anyio.fail_after(5):
        while engine.opened < 2:
            await anyio.sleep(0.01)
        engine.states = {}
        assert "removed" in str(await hear(watch))
    assert engine.opened == 3
    watch.forget(ID)


@pytest.mark.parametrize(
    "groups",
    [
        f"0::/system.slice/docker-{ID}.scope\n",
        f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n",
        f"0::/../../docker/{ID}\n",
        f"0::/machine.slice/libpod-{ID}.scope/container\n",
    ],
)
def test_a_containers_process_is_known_by_its_groups(groups: str) -> None:
    assert belongs_to(groups, ID)
    assert not belongs_to(groups, "f" * 64)


@pytest.mark.parametrize("container", ["", "0123456789ab"])
def test_less_than_a_whole_id_is_nobodys(container: str) -> None:
    assert not belongs_to(f"0::/docker/{ID}", container)
