"""What happens to sandboxes, told to others by signed requests that are tried again."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from ms_enclave import wire
from ms_enclave.errors import ConfigError
from ms_enclave.http_client import HttpClient, Place, check_place
from ms_enclave.loop import to_the_end
from ms_enclave.model.base import say_what_is_invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ms_enclave.model.events import SandboxEvent

__all__ = ["SIGNATURE_HEADER", "Webhook", "Webhooks", "sign"]

logger = logging.getLogger(__name__)

SIGNATURE_HEADER = "enclave-signature"
DELIVERY_HEADER = "enclave-delivery"

MOST_WAITING = 1000
"""Events that wait for one place; beyond it the oldest are dropped, and the log says so."""
_SECONDS = 10.0
_LAST_SECONDS = 3.0
"""What a delivery under way has when the server ends."""


class Webhook(BaseModel):
    """A place that is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    secret: SecretStr = Field(min_length=16)
    """What each request is signed with."""
    events: tuple[Literal["started", "stopped", "failed", "deleted"], ...] | None = None
    """Which ones it is told of; all where None."""
    tenant: str | None = None
    """Whose; everybody's where None."""
    tries: int = Field(default=6, ge=1, le=20)
    """How often each is tried, with pauses that double."""
    pause: float = Field(default=1.0, gt=0, le=60)
    """Seconds before the second try."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be like https://host/path")
        try:
            check_place(Place(f"{parts.scheme}://{parts.netloc}"))
        except ConfigError as error:
            raise ValueError(error.message) from None
        return url

    def wants(self, tenant: str, event: SandboxEvent) -> bool:
        """Whether it is told of an event."""
        named = self.events is None or event.event in self.events
        return named and self.tenant in (None, tenant)


def sign(secret: str, body: bytes, at: int) -> str:
    """The header of a request: when it was made, and HMAC-SHA256 of `<when>.<body>` in hex. Who is
    told compares it in constant time, and refuses one that is old.

    Args:
        at: seconds since 1970.
    """
    said = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={said}"


class Webhooks:
    """Tells places of what happens. Owns their connections and tasks until `aclose`.

    Each place has a queue and a task of its own, so that one that is slow holds up no other.

    Raises:
        ConfigError: one of them makes no sense.
    """

    def __init__(self, hooks: Iterable[Webhook | Mapping[str, Any]] = ()) -> None:
        self._places = [_Place(_checked(hook)) for hook in hooks]

    def tell(self, tenant: str, event: SandboxEvent) -> None:
        """Tell of an event; waits for nobody. On the private loop."""
        for place in self._places:
            if place.hook.wants(tenant, event):
                place.put({"tenant": tenant, **event.model_dump(mode="json")})

    @to_the_end
    async def aclose(self) -> None:
        """Let what waits be told for a moment, and end."""
        async with anyio.create_task_group() as group:
            for place in self._places:
                group.start_soon(place.aclose)


class _Place:
    """One place, and what waits to be told there."""

    def __init__(self, hook: Webhook) -> None:
        self.hook = hook
        self._waiting: deque[dict[str, Any]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._dropped = 0

    def put(self, said: dict[str, Any]) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # now and then, and not for each
                logger.warning("%d events were not told to %s", self._dropped, self._shown)
        self._waiting.append({"id": secrets.token_hex(16), **said})
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._tell_all())

    @property
    def _shown(self) -> str:
        parts = urlsplit(self.hook.url)
        return f"{parts.scheme}://{parts.hostname}"

    async def _tell_all(self) -> None:
        while self._waiting:  # something may come while the connections of before are closed
            await self._tell_those()

    async def _tell_those(self) -> None:
        parts = urlsplit(self.hook.url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        client = await HttpClient.open(Place(f"{parts.scheme}://{parts.netloc}"))
        try:
            while self._waiting:
                await self._tell(client, path, self._waiting.popleft())
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()

    async def _tell(self, client: HttpClient, path: str, said: dict[str, Any]) -> None:
        body = wire.dump(said)
        why = ""
        for attempt in range(self.hook.tries):
            if attempt:
                await anyio.sleep(self.hook.pause * 2 ** (attempt - 1))
            why = await self._try(client, path, said["id"], body)
            if not why:
                return
        logger.warning("an event was not told to %s: %s", self._shown, why)

    async def _try(self, client: HttpClient, path: str, name: str, body: bytes) -> str:
        """Why it failed; nothing where it did not."""
        headers = {
            "content-type": wire.JSON,
            DELIVERY_HEADER: name,
            SIGNATURE_HEADER: sign(self.hook.secret.get_secret_value(), body, int(time.time())),
        }
        try:
            with anyio.fail_after(_SECONDS):
                answer = await client.send(
                    "POST", path, content=body, headers=headers, most=1 << 16
                )
        except TimeoutError:
            return "no answer in time"
        except Exception as error:  # noqa: BLE001 - whatever it is, the next ones are told
            return str(error) or type(error).__name__
        return "" if 200 <= answer.status < 300 else f"status {answer.status}"

    async def aclose(self) -> None:
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=_LAST_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])


def _checked(given: Webhook | Mapping[str, Any]) -> Webhook:
    if isinstance(given, Webhook):
        return given
    try:
        return Webhook.model_validate(dict(given))
    except ValueError as error:
        raise ConfigError(f"Invalid webhook: {say_what_is_invalid(error)}") from None
