"""Places that are told what happens to sandboxes: signed, tried again, and never waited for."""

from __future__ import annotations

import hashlib
import hmac
import logging
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from aiohttp import web
from typing_extensions import override

from ms_enclave import wire
from ms_enclave.errors import ConfigError
from ms_enclave.http_client import HttpClient
from ms_enclave.loop import on_loop
from ms_enclave.model.events import SandboxEvent
from ms_enclave.server import webhooks as module
from ms_enclave.server.webhooks import Webhooks, sign

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SECRET = "a secret of the tests"


class Place:
    """A place that is told, and fails as often as it is to."""

    def __init__(self) -> None:
        self.fails = 0
        self.heard: list[tuple[str, str, bytes]] = []
        self.enough = anyio.Event()
        self.wanted = 1
        self.url = ""

    async def hear(self, request: web.Request) -> web.Response:
        said = await request.read()
        headers = request.headers
        self.heard.append((headers["enclave-delivery"], headers["enclave-signature"], said))
        if len(self.heard) >= self.wanted:
            self.enough.set()
        if len(self.heard) <= self.fails:
            return web.Response(status=503)
        return web.Response()


@asynccontextmanager
async def listening(wanted: int = 1, fails: int = 0) -> AsyncGenerator[Place, None]:
    place = Place()
    place.wanted, place.fails = wanted, fails
    app = web.Application()
    app.router.add_post("/told", place.hear)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        place.url = f"http://{host}:{port}/told"
        yield place
    finally:
        await runner.cleanup()


def hook(place: Place, **more: Any) -> dict[str, Any]:
    return {"url": place.url, "secret": SECRET, "pause": 0.01, **more}


def event(name: Any = "started", sandbox_id: str = "one") -> SandboxEvent:
    return SandboxEvent(
        event=name, sandbox_id=sandbox_id, sandbox_type="process", at=datetime.now(timezone.utc)
    )


@on_loop
async def tell_and_check() -> None:
    async with listening() as place:
        hooks = Webhooks([hook(place)])
        hooks.tell("somebody", event())
        with anyio.fail_after(20):
            await place.enough.wait()
        await hooks.aclose()
    [(_, signature, body)] = place.heard
    said = wire.load(body)
    assert (said["tenant"], said["event"], said["sandbox_id"]) == ("somebody", "started", "one")
    at, mac = (part.split("=")[1] for part in signature.split(","))
    right = hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(right, mac)
    assert signature == sign(SECRET, body, int(at))
    assert sign("another secret of it", body, int(at)) != signature


async def test_what_is_told_is_signed_as_the_docs_say() -> None:
    await tell_and_check()


@on_loop
async def fail_and_tell_again() -> None:
    async with listening(wanted=4, fails=2) as place:
        hooks = Webhooks([hook(place)])
        hooks.tell("somebody", event())
        hooks.tell("somebody", event("stopped"))
        with anyio.fail_after(20):
            await place.enough.wait()
        await hooks.aclose()
    assert [wire.load(body)["event"] for _, _, body in place.heard] == [
        "started", "started", "started", "stopped",
    ]  # fmt: skip
    assert len({name for name, _, _ in place.heard}) == 2


async def test_one_that_fails_is_told_again_under_the_same_id_and_in_order() -> None:
    await fail_and_tell_again()


@on_loop
async def give_up(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(wanted=3, fails=2) as place:
        hooks = Webhooks([hook(place, tries=2)])
        with caplog.at_level(logging.WARNING):
            hooks.tell("somebody", event())
            hooks.tell("somebody", event("stopped"))
            with anyio.fail_after(20):
                await place.enough.wait()
        await hooks.aclose()
    assert [wire.load(body)["event"] for _, _, body in place.heard] == [
        "started", "started", "stopped",
    ]  # fmt: skip
    assert "status 503" in caplog.text
    assert SECRET not in caplog.text


async def test_after_so_many_tries_the_next_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    await give_up(caplog)


@on_loop
async def choose() -> None:
    async with listening(wanted=2) as place:
        hooks = Webhooks([hook(place, events=["failed"], tenant="mine"), hook(place, tenant="no")])
        for tenant, name in [("mine", "started"), ("yours", "failed"), ("mine", "failed")]:
            hooks.tell(tenant, event(name, tenant))
        hooks.tell("no", event("deleted", "no"))
        with anyio.fail_after(20):
            await place.enough.wait()
        await hooks.aclose()
    heard = [wire.load(body) for _, _, body in place.heard]
    assert {(said["tenant"], said["event"]) for said in heard} == {
        ("mine", "failed"), ("no", "deleted"),
    }  # fmt: skip


async def test_a_place_is_told_of_what_it_wants_only() -> None:
    await choose()


@on_loop
async def overflow(caplog: pytest.LogCaptureFixture) -> None:
    hooks = Webhooks([{"url": "http://127.0.0.1:1/", "secret": SECRET, "pause": 60}])
    with caplog.at_level(logging.WARNING):
        for number in range(module.MOST_WAITING + 10):
            hooks.tell("somebody", event(sandbox_id=f"n{number}"))
    assert "8 events were not told" in caplog.text
    await hooks.aclose()


async def test_a_place_that_is_not_there_costs_a_bounded_amount_and_the_end_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.1)
    with anyio.fail_after(20):
        await overflow(caplog)


@on_loop
async def tell_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(wanted=2) as place:

        class Closing(HttpClient):
            """Something happens while its connections are closed."""

            @override
            async def aclose(self) -> None:
                if len(place.heard) == 1:
                    hooks.tell("somebody", event("stopped"))
                await super().aclose()

        monkeypatch.setattr(module, "HttpClient", Closing)
        hooks = Webhooks([hook(place)])
        hooks.tell("somebody", event())
        with anyio.fail_after(10):
            await place.enough.wait()
        await hooks.aclose()
    assert [wire.load(body)["event"] for _, _, body in place.heard] == ["started", "stopped"]


async def test_what_comes_at_the_last_moment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    await tell_at_the_last_moment(monkeypatch)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "ftp://x", "secret": SECRET}, "url"),
        ({"url": f"http://me:{SECRET}@x", "secret": SECRET}, "a name or a password"),
        ({"url": "http://x", "secret": "short"}, "secret"),
        ({"url": "http://x", "secret": SECRET, "events": ["born"]}, "events"),
        ({"url": "http://x", "secret": SECRET, "evnts": []}, "evnts"),
    ],
)
def test_one_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Webhooks([wrong])
    assert SECRET not in str(caught.value)
