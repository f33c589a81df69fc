"""A sandbox's way out: a router between its slot and a helper that speaks for it on the host.

    slot, `eth0`  --  router's namespace, `slot` and `tap0`  --  helper, in the host's namespace

Nothing of a user is in the router's namespace, and nobody in the slot owns it. What must not be
reached is unreachable *there*, by routes that every packet has to pass: a program can go past the
routes of its own namespace, since a socket that is bound to a link takes everything to be at the
other end of it. The same routes in the slot only make a refusal quick.

IPv6 is off: no link has an address, and there is no route.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from . import _calls as calls
from . import root
from .root import DNS
from .rtnetlink import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .slot import Slot

__all__ = ["GATEWAY", "MTU", "SANDBOX", "TAP", "Network", "NetworkError"]

SANDBOX, GATEWAY = "192.0.2.100", "192.0.2.2"
"""What the helper knows: who is served, and itself. Of a range that is nobody's on any network."""
TAP = "tap0"
MTU = 65520

_ROUTER = "192.0.2.1"  # towards the slot
_TO_SLOT, _IN_SLOT = "slot", "eth0"
_DNS_PORT, _DNS_TABLE = 53, 100
_HELPER_IDS = 1024  # of the station's own; those of its slots begin at 65536
_PATIENCE = 5.0  # s for a helper to begin
_AGAIN = 0.5  # s between the starts of helpers that end by themselves
_LAST_WORDS = 2000


class NetworkError(OSError):
    """There is no way out, and why."""


class Network:
    """The way out of one slot, made for a sandbox and ended with it.

    Whoever has it polls its `descriptors` and calls `advance` when one of them says something, or
    when `wait` has passed.
    """

    def __init__(
        self,
        place: Slot,
        life: socket.socket,
        helpers: int,
        refused: Sequence[str],
        own_network: int,
    ) -> None:
        """Raises OSError, and then nothing of it is left.

        `life` is the line to the launcher, which can start `helpers` different programs; `refused`
        are the networks that nobody reaches; `own_network` is a descriptor of the station's network
        namespace, to come back to.
        """
        self.question: int | None = None
        """The request that waits until it is up."""
        self.up = False
        self._life = life
        self._helpers = helpers
        self._refused = refused
        self._choice = 0
        self._line: socket.socket | None = None
        self._started = 0.0
        self._controls: list[Control] = []
        one_id = place.first_id is None
        self._spaces = _make_namespaces(None if one_id else _HELPER_IDS + place.number)
        try:
            self._router, self._events = self._connect(place, own_network)
            self._start_helper()
        except BaseException:
            self.close()
            raise

    def _connect(self, place: Slot, own_network: int) -> tuple[Control, Control]:
        """Make the router; returns what commands it and what tells of its links."""
        inside = os.open(f"/proc/{place.init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                calls.setns(inside, calls.CLONE_NEWNET)
                self._controls.append(Control())
                calls.setns(self._spaces[1], calls.CLONE_NEWNET)
                self._controls.append(Control())
                self._controls.append(Control(events=True))
            finally:
                calls.come_back(own_network, calls.CLONE_NEWNET)
            slot, router, events = self._controls
            router.add_pair(_TO_SLOT, _IN_SLOT, inside, MTU)
        finally:
            os.close(inside)
        _furnish_router(router, self._refused)
        _furnish_slot(slot, self._refused)
        return router, events

    def _start_helper(self) -> None:
        """Have the launcher start one. Raises NetworkError if it cannot."""
        self._started = time.monotonic()
        socket.send_fds(self._life, [f"network {self._choice}".encode()], self._spaces)
        answer, descriptors, _, _ = socket.recv_fds(self._life, 1 << 16, 1)
        number, _, text = answer.decode().partition("|")
        if not descriptors:
            raise NetworkError(int(number or errno.EPIPE), text)
        self._line = socket.socket(fileno=descriptors[0])
        self._line.set_inheritable(False)
        for address in text.split():  # whatever the host calls itself is the host
            for control in self._controls[:2]:
                control.refuse(f"{address}/32")

    @property
    def descriptors(self) -> dict[int, int]:
        """What to poll, and for what besides a hang-up."""
        found: dict[int, int] = {}
        if self._line is not None:
            found[self._line.fileno()] = 0
            if not self.up:
                found[self._events.fileno()] = select.POLLIN
        return found

    @property
    def wait(self) -> float | None:
        """Seconds until something has to be done even if nobody says anything."""
        if self.up:
            return None
        patience = _AGAIN if self._line is None else _PATIENCE
        return max(0.0, self._started + patience - time.monotonic())

    def advance(self) -> None:
        """See what has become of it. Raises NetworkError when it cannot come up any more.

        A helper that ends later is replaced; meanwhile nothing gets out.
        """
        if self._line is None:
            if self.wait == 0.0:
                self._start_helper()
        elif _has_ended(self._line):
            words = _last_words(self._line)
            self._line.close()
            self._line = None
            if self.question is not None:
                self._try_another(words)
            self.up = False
        elif not self.up:
            self._events.drain()
            tap = self._router.find(TAP)
            if tap is not None:
                _furnish_tap(self._router, tap)
                self.up = True
            elif self.wait == 0.0:
                raise NetworkError(errno.ETIMEDOUT, "the helper for the network does nothing")

    def _try_another(self, words: str) -> None:
        """The first helper has failed: perhaps another one can."""
        self._choice += 1
        if self._choice >= self._helpers:
            raise NetworkError(errno.EIO, words or "the helper for the network has ended")
        self._start_helper()

    def leave(self) -> None:
        """Ask for its end, without waiting for it: when it is `gone` it is to be closed."""
        self.question = None
        if self._line is not None:
            self._line.shutdown(socket.SHUT_WR)

    @property
    def gone(self) -> bool:
        """Whether there is no helper of its any more."""
        return self._line is None or _has_ended(self._line)

    def close(self) -> None:
        """Forget it. The launcher ends a helper whose line is closed."""
        if self._line is not None:
            self._line.close()
        for control in self._controls:
            control.close()
        for descriptor in self._spaces:
            os.close(descriptor)


def _make_namespaces(helper_id: int | None) -> list[int]:
    """A user namespace whose only id is the helper's, and a network namespace that it owns.

    None stands for the only id of a one-id map.
    """
    read, write = os.pipe()
    opened: list[int] = []
    pid = calls.clone(calls.CLONE_NEWUSER | calls.CLONE_NEWNET)
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        if helper_id is None:
            _put(f"/proc/{pid}/setgroups", "deny")
        for name in ("gid_map", "uid_map"):
            _put(f"/proc/{pid}/{name}", f"0 {helper_id or 0} 1\n")
        for kind in ("user", "net"):
            place = f"/proc/{pid}/ns/{kind}"
            opened.append(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise
    finally:
        os.close(read)
        os.close(write)
        os.waitpid(pid, 0)
    return opened


def _furnish_router(router: Control, refused: Sequence[str]) -> None:
    """All that is fixed: who is served, who is refused, what little of the DNS there is.

    Of the name server only its port is there: behind that address a helper may have a whole
    machine, perhaps the host itself. The rules for the port that an answer comes from are for the
    kernel's check of who sent it; below 1024, nobody in a slot can send from one.
    """
    slot = _index(router, _TO_SLOT)
    router.raise_link(slot, mtu=MTU, forward=True)
    router.add_address(slot, _ROUTER)
    router.add_route(f"{SANDBOX}/32", slot)
    for network in refused:
        router.refuse(network)
    order = 1
    for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
        for side in ("to", "from"):
            router.use_table(_DNS_TABLE, DNS, protocol, _DNS_PORT, order, side=side)
            order += 1


def _furnish_tap(router: Control, tap: int) -> None:
    """The helper's end, which comes and goes with it."""
    router.raise_link(tap, mtu=MTU, forward=True)
    router.add_route(f"{GATEWAY}/32", tap)
    router.add_route(f"{DNS}/32", tap, table=_DNS_TABLE)
    router.add_route("0.0.0.0/0", tap, gateway=GATEWAY)


def _furnish_slot(slot: Control, refused: Sequence[str]) -> None:
    link = _index(slot, _IN_SLOT)
    slot.raise_link(link, mtu=MTU, forward=False)
    slot.add_address(link, SANDBOX)
    slot.add_route(f"{_ROUTER}/32", link)
    for network in refused:
        slot.refuse(network)
    for network in (f"{DNS}/32", "0.0.0.0/0"):
        slot.add_route(network, link, gateway=_ROUTER)


def show_resolver(place: Slot, own_mounts: int) -> None:
    """Let a slot know whom to ask for names."""
    inside = os.open(f"/proc/{place.init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    tree = -1
    try:
        tree = calls.open_tree(root.RESOLVER)
        calls.setns(inside, calls.CLONE_NEWNS)
        try:
            calls.move_mount(tree, "/etc/resolv.conf")
        finally:
            calls.come_back(own_mounts, calls.CLONE_NEWNS)
    finally:
        os.close(inside)
        if tree >= 0:
            os.close(tree)


def _index(control: Control, name: str) -> int:
    found = control.find(name)
    if found is None:
        raise NetworkError(errno.ENODEV, f"there is no link {name}")
    return found


def _has_ended(line: socket.socket) -> bool:
    """Whether nobody is at the other end any more; words that nobody has read do not count."""
    poll = select.poll()
    poll.register(line.fileno(), 0)
    return bool(poll.poll(0))


def _last_words(line: socket.socket) -> str:
    found = b""
    while data := line.recv(4096):
        found = (found + data)[-_LAST_WORDS:]
    return found.decode("utf-8", "replace").strip()


def _put(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
