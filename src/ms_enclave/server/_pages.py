"""What a page that a browser shows may ask here: nothing, unless it is of this server.

Where a key is needed no page of another place has it. Where none is, the browser of whoever runs
the server would be the way in: it sends what a page tells it to, and a page's own name may come to
mean this machine.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ms_enclave.errors import NotAllowedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OfThisMachine", "check_host", "check_origin", "is_loopback"]

_MARK = "of_this_machine"


class OfThisMachine:
    """An application that is served without a key where only this machine can reach it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Have the host of every request looked at."""
        if scope["type"] in {"http", "websocket"}:
            scope.setdefault("state", {})[_MARK] = True
        await self._app(scope, receive, send)


def check_host(scope: Any, headers: Mapping[bytes, bytes]) -> None:
    """Raises NotAllowedError where who can only be of this machine calls it by another's name."""
    host = headers.get(b"host")
    if scope.get("state", {}).get(_MARK) and host is not None and not _is_ours(host):
        raise NotAllowedError(
            "this server has no key, and is known by the names of this machine only",
            remedy="call it localhost or 127.0.0.1, or give it an api_key (--api-key)",
        )


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Raises NotAllowedError where a page of another place asks. Browsers hand it no answer to an
    ordinary request, but send that all the same, and ask nobody before they open a WebSocket."""
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise NotAllowedError("a page of another place may not connect to this server")


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may become anything


def _is_ours(host: bytes) -> bool:
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name.removesuffix(".")) or name.endswith(".localhost")
