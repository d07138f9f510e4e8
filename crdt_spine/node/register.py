"""The register of who belongs to the cluster (core/membership.py): read, founded, made again, compared and set.

It is a cell where there is consensus (transport/base.py): a JetStream key-value entry, or a place in memory for an
embedded node. A node looks there before it does anything else; what it adopts is in its checkpoint as well. So a
register that was lost with the broker's disk is made again from the newest epoch that the nodes have.

It has the cluster's id, which was made at random by whoever founded it: there may be several of the same name, also at
the same address one after the other (docs/decisions/0037-a-cluster-has-an-identity.md).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from crdt_spine.core.layout import Layout
from crdt_spine.core.membership import Member, Membership, Settings, founded, from_json, to_json
from crdt_spine.core.messages import Hello, NodeInfo, Unreadable
from crdt_spine.core.placement import replicas_of
from crdt_spine.core.ring import ConsistentHashRing
from crdt_spine.core.subjects import DISCOVERY_SUBJECT
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.transport.base import Cell, Disconnected, Kept, Message, Subscription, Transport

log = logging.getLogger(__name__)

KEY = "membership"
START_SECONDS_MAX = 30.0  # for a register that does not answer, or is being made again by others, while a node starts
ANYBODY_SECONDS = 0.25  # before a register is founded: is there a cluster already that has one?
PAUSE_SECONDS = 0.2  # between two attempts
ID_BYTES = 5  # of a cluster's id, which has eight letters and digits then

_decode_hello = msgspec.json.Decoder(Hello).decode


def bucket_of(cluster: str) -> str:
    """The name of a cluster's bucket."""
    return f"spine_{cluster}"


def new_cluster_id() -> str:
    """The id of a cluster that is about to be founded."""
    return base64.b32encode(os.urandom(ID_BYTES)).decode().lower()


class TakenOut(ConfigError):
    """The cluster goes on without this node, and others have what it had."""


class Register:
    """The membership in a cell. Methods raise Disconnected or TimeoutError where nobody decides at the moment, or where
    there is the register of another cluster than `cluster_id` says (None: of whichever cluster)."""

    def __init__(self, cell: Cell) -> None:
        self.cluster_id: str | None = None
        self._cell = cell
        self._kept: Kept | None = None
        self._known: Membership | None = None

    async def look(self) -> Membership | None:
        """The newest, or None: there is none. The same object as long as nothing has changed."""
        kept = await self._cell.read()
        if kept != self._kept or kept is None:
            self._known = None if kept is None else _read(kept.value)
            self._kept = kept
            if self._is_foreign:
                log.error("the register is another cluster's of the same name: this node goes on without it")
        if self._is_foreign:
            raise Disconnected("what is there is the register of another cluster of the same name")
        return self._known

    @property
    def _is_foreign(self) -> bool:
        return self._known is not None and self.cluster_id not in (None, self._known.settings.cluster_id)

    async def replace(self, old: Membership | None, new: Membership) -> bool:
        """Put `new` there; False: there is something else than `old` by now."""
        value = to_json(new)
        if await self.look() != old:
            return self._kept is not None and self._kept.value == value
        return await self._cell.write(value, 0 if self._kept is None else self._kept.revision)

    async def watch(self, on_change: Callable[[], None]) -> Subscription:
        """Be told when to look."""
        return await self._cell.watch(on_change)


def _read(value: bytes) -> Membership:
    try:
        return from_json(value)
    except Unreadable as error:
        raise ConfigError(
            f"the register of the cluster can't be read, a newer program may have written it: {error}"
        ) from error


def member_of(node: NodeInfo) -> Member:
    """A node's entry."""
    return Member(host=node.host, port=node.port, zone=node.zone, role=node.role)


def beginning(hello: Hello, *, former: bool = False) -> Membership:
    """The membership of a cluster that begins as `hello` describes it, with its id. `former`: as an earlier program,
    which kept no register, has placed what is on the disks already."""
    settings = Settings(
        cluster=hello.cluster, cluster_id=hello.cluster_id, region=hello.region, partitions=hello.partitions,
        factor=hello.factor, write_quorum=hello.write_quorum, read_quorum=hello.read_quorum, placement=hello.placement,
    )  # fmt: skip
    members = {node.id: member_of(node) for node in hello.nodes}
    if len(members) <= hello.factor:  # there is nothing to choose
        return founded({number: list(members) for number in range(hello.partitions)}, members, settings)
    if not former:
        return founded(Layout(hello).replicas, members, settings)
    ring, zones = ConsistentHashRing(list(members)), {node.id: node.zone for node in hello.nodes}
    factor = min(hello.factor, len(members))
    replicas = {number: replicas_of(number, ring, factor, zones) for number in range(hello.partitions)}
    return founded(replicas, members, settings)


def saved_in(extra: Mapping[str, Any]) -> Membership | None:
    """The membership that a checkpoint has."""
    return from_json(extra["membership"]) if "membership" in extra else None


async def entered(
    register: Register, transport: Transport, first: Membership, saved: Membership | None, blank: bool, node: str
) -> Membership:
    """What a node that starts has to go by: the register. If there is none, it is founded with `first`, or made again
    of what the node, or another one, has `saved`. `blank`: the node's folder is new.

    Raises ConfigError: the node does not belong to the cluster any more, as TakenOut where it left in order, or what it
    has is of another cluster of that name; ConnectionFailed: the register is silent.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS_MAX
    while True:
        try:
            found = await register.look()
            if found is None:
                others = saved is None and await _anybody(transport, first.settings.cluster)
                if not others:
                    new = saved or first
                    log.warning("there is no register of the cluster yet: it begins with epoch %d", new.epoch)
                    await register.replace(None, new)
                    continue
            else:
                _check_same(found, saved, node)
                _check_welcome(found, node, blank)
                register.cluster_id = found.settings.cluster_id
                return saved if saved is not None and saved.epoch > found.epoch else found  # it is made again later
            reason = "it is lost, and the cluster's nodes have not made it again"
        except (Disconnected, TimeoutError) as error:
            reason = str(error)
        if loop.time() >= deadline:
            raise ConnectionFailed(f"no register of the cluster within {START_SECONDS_MAX:g} s: {reason}")
        await asyncio.sleep(PAUSE_SECONDS)


def _check_same(found: Membership, saved: Membership | None, node: str) -> None:
    """Raises ConfigError: what a node has on its disk is of another cluster of the same name."""
    here = found.settings.cluster_id
    if saved is not None and saved.settings.cluster_id != here:
        raise ConfigError(
            f"the data folder of node {node} belongs to another cluster that is called {found.settings.cluster!r} as "
            f"well: its id is {saved.settings.cluster_id!r}, the running one's is {here!r}. Give the node its own "
            "folder, or the folder its own broker. If the broker lost what it had, and a node with an empty folder has "
            "begun a new cluster since: stop all nodes, delete that folder and what the broker has, and start the "
            "others first"
        )


def _check_welcome(membership: Membership, node: str, blank: bool) -> None:
    """Raises ConfigError: this node was given up; TakenOut: it was taken out of the cluster."""
    if membership.refuses(node):
        raise ConfigError(
            f"node {node} was given up as dead, in epoch {membership.gone.get(node, 0)} of the cluster, and what has "
            "that id is refused for ever: what it had is in its folder still; start a new node with another id and "
            "another folder"
        )
    if node not in membership.members and node in membership.gone and not blank:
        raise TakenOut(
            f"node {node} was taken out of the cluster in epoch {membership.gone[node]}: take it out of the "
            "configuration, or give it a new, empty data folder to let it join again"
        )


async def _anybody(transport: Transport, cluster: str) -> bool:
    """Does a node of this cluster answer, which then has a membership?"""
    heard = asyncio.Event()

    def take(message: Message) -> None:
        try:
            hello = None if message.nobody else _decode_hello(message.payload)
        except Unreadable:
            return
        if hello is not None and hello.cluster == cluster and hello.epoch:
            heard.set()

    inbox = f"_INBOX.spine.register.{id(heard):x}"
    subscription = await transport.subscribe(inbox, take)
    try:
        transport.send(DISCOVERY_SUBJECT, b"", inbox)
        async with asyncio.timeout(ANYBODY_SECONDS):
            await heard.wait()
            return True
    except TimeoutError:
        return False
    finally:
        await subscription.cancel()
