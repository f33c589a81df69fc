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
    reason = Story().see(state, 0)
    assert (reason is None) if words is None else (words in str(reason))


def test_a_pause_of_our_own_is_heard_of_and_means_nothing() -> None:
    story = Story()
    story.change(True)  # it is heard of before or after the answer
    assert (story.hear("pause", {}), story.doubted) == (None, False)
    assert (story.see("paused", 1), story.doubted) == (None, False)
    story.change(False)
    assert (story.hear("pause", {}), story.doubted) == (None, True)  # it may be heard of so late
    assert (story.see("running", 2), story.doubted) == (None, False)
    assert "somebody else" in str(story.see("paused", 2))


def test_a_state_that_is_older_than_what_we_did_is_asked_for_again() -> None:
    story = Story()
    story.change(True)
    story.change(False)
    assert (story.see("paused", 1), story.doubted) == (None, True)
    assert "somebody else" in str(story.see("paused", 2))


class Engine:
    """Events and states as an engine would give them; each stream ends when it has no more."""

    def __init__(self, *streams: list[dict[str, Any]]) -> None:
        self.streams = list(streams)
        self.states: dict[str, str] = {}
        self.now: str | None = None
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

    async def state(self, container: str) -> str | None:
        return self.now or self.states.get(container)


def event(action: str, container: str = ID) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": container, "Attributes": {}}}


async def hear(watch: Watch) -> str | None:
    return await watch.reason(ID, 5)


async def test_whoever_follows_is_told_once() -> None:
    engine = Engine([{}, event("destroy", "another"), event("destroy"), event("die")])
    engine.states = {ID: "running"}
    watch, told = Watch(engine.events, engine.look, engine.state), []
    watch.follow(ID, told.append)
    assert "removed" in str(await hear(watch))
    await anyio.wait_all_tasks_blocked()
    assert len(told) == 1
    watch.forget(ID)
    assert await hear(watch) is None


@pytest.mark.parametrize(("state", "words"), [("paused", "paused"), ("running", "removed")])
async def test_a_pause_that_is_heard_of_counts_if_it_still_lasts(state: str, words: str) -> None:
    engine = Engine([{}, event("pause"), event("destroy")])
    engine.states = {ID: "running"}
    watch = Watch(engine.events, engine.look, engine.state)
    engine.now = state
    watch.follow(ID, lambda _reason: None)
    assert words in str(await hear(watch))
    watch.forget(ID)


async def test_what_was_missed_is_found_when_it_can_be_heard_again() -> None:
    engine = Engine([{}, {"fails": True}], [{"fails": True}])
    engine.states = {ID: "running"}
    watch, told = Watch(engine.events, engine.look, engine.state), []
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
