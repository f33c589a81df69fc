"""Links, addresses and routes of a network namespace, by the kernel's own messages (rtnetlink).

A `Control` belongs to the namespace that its maker was in when it was made, wherever that maker is
later. Formats: linux/rtnetlink.h, linux/if_link.h, linux/fib_rules.h. Addresses are text.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Control"]

_NEW_LINK, _GET_LINK, _SET_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 18, 19, 20, 22
_NEW_ROUTE, _NEW_RULE = 24, 32
_ERROR, _DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP, _REPLACE, _EXCLUSIVE, _CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
_LINK_EVENTS = 1  # RTMGRP_LINK
_UP = 1
_MAIN, _BY_US, _UNIVERSE, _LINK_SCOPE = 254, 4, 0, 253
_UNICAST, _UNREACHABLE = 1, 7
_ON_LINK = 4  # RTNH_F_ONLINK
_PEER, _INFO_KIND, _INFO_DATA = 1, 1, 2
_IFLA_NAME, _IFLA_MTU, _IFLA_INFO, _IFLA_FAMILIES, _IFLA_NAMESPACE = 3, 4, 18, 26, 28
_FORWARDING, _PROXY_ARP = 1, 3  # of IPV4_DEVCONF_*
_NO_ADDRESS_OF_ITS_OWN = 1  # IN6_ADDR_GEN_MODE_NONE
_TO_TABLE = 1  # FR_ACT_TO_TBL


class Control:
    """A socket to the network namespace that the caller is in. Close it."""

    def __init__(self, *, events: bool = False) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._number = 0
        try:
            self._socket.bind((0, _LINK_EVENTS if events else 0))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Forget what was told of links; the caller looks for itself."""
        while True:
            try:
                self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    # --- links ---

    def add_pair(self, name: str, peer: str, namespace: int, mtu: int) -> None:
        """Make two connected links: one here, its peer in a namespace given by descriptor."""
        other = bytes(16) + _text(_IFLA_NAME, peer) + _number(_IFLA_MTU, mtu)
        other += _number(_IFLA_NAMESPACE, namespace)
        kind = _text(_INFO_KIND, "veth") + _field(_INFO_DATA, _field(_PEER, other))
        body = bytes(16) + _text(_IFLA_NAME, name) + _number(_IFLA_MTU, mtu)
        self._do(_NEW_LINK, body + _field(_IFLA_INFO, kind), _CREATE | _EXCLUSIVE)

    def find(self, name: str) -> int | None:
        """A link's number."""
        try:
            answers = self._ask(_GET_LINK, bytes(16) + _text(_IFLA_NAME, name), 0)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return struct.unpack_from("=i", answers[0], 4)[0]

    def raise_link(self, index: int, *, mtu: int, forward: bool) -> None:
        """Take a link into use, without any address that the kernel would give it by itself.

        `forward`: pass on what comes in by it, and answer there for what is reached elsewhere.
        """
        header = struct.pack("=BxHiII", 0, 0, index, 0, 0)
        try:
            mode = _field(8, bytes([_NO_ADDRESS_OF_ITS_OWN]))
            six = _field(_IFLA_FAMILIES, _field(socket.AF_INET6, mode))
            self._do(_SET_LINK, header + six)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6
                raise
        settings = b""
        if forward:
            values = _number(_FORWARDING, 1) + _number(_PROXY_ARP, 1)
            settings = _field(_IFLA_FAMILIES, _field(socket.AF_INET, _field(1, values)))
        header = struct.pack("=BxHiII", 0, 0, index, _UP, _UP)
        self._do(_SET_LINK, header + _number(_IFLA_MTU, mtu) + settings)

    # --- addresses and routes ---

    def add_address(self, index: int, address: str) -> None:
        """Give a link an address that reaches nobody else."""
        packed = socket.inet_aton(address)
        body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _UNIVERSE, index)
        self._do(_NEW_ADDRESS, body + _field(2, packed) + _field(1, packed), _CREATE)

    def addresses(self) -> list[tuple[int, bytes]]:
        """Family and packed bytes of every address of this namespace."""
        found: list[tuple[int, bytes]] = []
        for row in self._ask(_GET_ADDRESS, bytes(8), _DUMP):
            fields = dict(_fields(row[8:]))
            packed = fields.get(2) or fields.get(1)  # IFA_LOCAL, or IFA_ADDRESS where there is none
            if packed:
                found.append((row[0], packed))
        return found

    def refuse(self, network: str) -> None:
        """Have every destination of a network (`10.0.0.0/8`) unreachable."""
        family, packed, length = _network(network)
        body = _route(family, length, _UNREACHABLE, _UNIVERSE)
        self._do(_NEW_ROUTE, body + _field(1, packed), _CREATE | _REPLACE)

    def add_route(
        self, network: str, index: int, *, gateway: str | None = None, table: int = _MAIN
    ) -> None:
        """Reach a network by a link: directly, or by a gateway that is reached directly."""
        family, packed, length = _network(network)
        scope = _LINK_SCOPE if gateway is None else _UNIVERSE
        body = _route(family, length, _UNICAST, scope, table, 0 if gateway is None else _ON_LINK)
        if length:
            body += _field(1, packed)
        if gateway is not None:
            body += _field(5, socket.inet_aton(gateway))
        self._do(_NEW_ROUTE, body + _number(4, index), _CREATE | _REPLACE)

    def use_table(
        self, table: int, address: str, protocol: int, port: int, order: int, *, side: str
    ) -> None:
        """Take a table's routes to an address for packets `to` or `from` one port.

        `order` says which of such rules comes first; all come before the routes for everything.
        """
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, table, 0, 0, _TO_TABLE, 0)
        body += _field(1, socket.inet_aton(address)) + _number(6, order)
        body += _field(22, bytes([protocol]))
        body += _field(24 if side == "to" else 23, struct.pack("=HH", port, port))
        self._do(_NEW_RULE, body, _CREATE | _EXCLUSIVE)

    # --- messages ---

    def _do(self, kind: int, body: bytes, flags: int = 0) -> None:
        self._ask(kind, body, flags | _ACKNOWLEDGE)

    def _ask(self, kind: int, body: bytes, flags: int) -> list[bytes]:
        """Send a request; returns the bodies of what answers it."""
        self._number += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, self._number, 0)
        self._socket.send(header + body)
        found: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 16)
            for row_kind, number, row in _messages(data):
                if number != self._number:
                    continue  # an event
                if row_kind == _DONE:
                    return found
                if row_kind == _ERROR:
                    failure = -struct.unpack_from("=i", row)[0]
                    if failure:
                        raise OSError(failure, os.strerror(failure))
                    return found
                found.append(row)
                if not flags & (_DUMP | _ACKNOWLEDGE):
                    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _, number, _ = struct.unpack_from("=IHHII", data)
        yield kind, number, data[16:length]
        data = data[(length + 3) & ~3 :]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(max(length, 4) + 3) & ~3 :]


def _field(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _text(kind: int, value: str) -> bytes:
    return _field(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _field(kind, struct.pack("=I", value))


def _route(
    family: int, length: int, kind: int, scope: int, table: int = _MAIN, flags: int = 0
) -> bytes:
    return struct.pack("=BBBBBBBBI", family, length, 0, 0, table, _BY_US, scope, kind, flags)


def _network(text: str) -> tuple[int, bytes, int]:
    address, _, length = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address), int(length)
