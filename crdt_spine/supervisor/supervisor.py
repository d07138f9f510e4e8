"""What `spine up` runs: a broker and nodes, kept running.

    DIR/supervisor.lock   held by the supervisor and every child: the folder is free once all of them are gone
    DIR/cluster.yaml      who the nodes are (cluster_file.py)
    DIR/broker/           the broker's store, configuration and log
    DIR/spine-1/          a node's data, and node.log

Up: the broker, then the nodes and other services, all at once. Down: those first, because they still write to the
broker while they end, then the broker. Every child is tied to this process (`broker/guard.py`): when it is killed,
nothing of it remains, and a new supervisor in the same folder waits until that is so.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from crdt_spine.broker.folder_lock import FolderLock, prepare_folder
from crdt_spine.errors import ConnectionFailed, InvalidInput
from crdt_spine.supervisor.cluster_file import ClusterFile, open_cluster_file
from crdt_spine.supervisor.events import Event, Listener, SpineReady
from crdt_spine.supervisor.keeper import ChildStatus, Keeper, RestartPolicy
from crdt_spine.supervisor.ports import Ports
from crdt_spine.supervisor.service import BrokerLauncher, ServiceLauncher, ServiceSpec

LOCK_FILE = "supervisor.lock"
NODE_KIND = "node"

#: The command of a node: its id, cluster.yaml, its folder, the broker's URL.
NodeCommand = Callable[[str, Path, Path, str], Sequence[str]]


def node_command(id: str, config: Path, folder: Path, url: str) -> list[str]:
    """`spine node` in this interpreter."""
    spine = [sys.executable, "-m", "crdt_spine.cli.main"]
    return [*spine, "node", "--config", str(config), "--id", id, "--data", str(folder), "--server", url]


class Supervisor:
    """One broker and its nodes. `start` once, then `wait` or do something else, then `stop`; or `async with`.

    `nodes`, `http_port` and `region` as in `open_cluster_file`; `nats_port` 0 is a free one. `on_event` hears every
    event, in the loop's thread; it must return at once. `services` run beside the nodes. Call it from a thread that
    lives as long as the children shall.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        nodes: int | None = None,
        nats_port: int = 4222,
        http_port: int | None = None,
        region: str | None = None,
        on_event: Listener | None = None,
        services: Sequence[ServiceSpec] = (),
        node_command: NodeCommand = node_command,
        executable: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folder = Path(data_dir).absolute()
        self.cluster: ClusterFile | None = None  # from the start on
        self.url = ""  # from the start on
        self._wanted = (nodes, http_port, region)
        self._nats_port = nats_port
        self._on_event = on_event
        self._services = tuple(services)
        self._node_command = node_command
        self._executable = executable
        self._lock: FolderLock | None = None
        self._ports = Ports()
        self._broker: Keeper | None = None
        self._beside: dict[str, Keeper] = {}  # nodes and services
        self._node_policy = RestartPolicy()
        self._keeping: list[asyncio.Task[None]] = []
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    # -- up and down ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything and wait until all of it serves; when that fails, stop what was started.

        Raises ConfigError: the folder is in use, not writable or of another shape, a port is taken, nats-server is
        missing. Raises ConnectionFailed: the broker or a node ended or did not serve in time; or `stop` was called.
        """
        assert self._starting is None, "a supervisor is started once"
        if self._stopping is not None:
            raise ConnectionFailed("the supervisor was stopped")
        self._starting = asyncio.create_task(self._start(), name="supervisor-start")
        try:
            await self._starting
        except asyncio.CancelledError:
            await self.stop()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ConnectionFailed("the supervisor was stopped while it started") from None
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        prepare_folder(self.folder)
        self._lock = await FolderLock.acquire(self.folder, LOCK_FILE)
        self.cluster = open_cluster_file(self.folder, *self._wanted, self._ports)
        keep_open = (self._lock.fileno(),)
        broker = BrokerLauncher(self.folder / "broker", self._nats_port, keep_open, self._executable)
        self._broker = Keeper(broker, RestartPolicy(), self._tell)
        await self._broker.start()
        self.url = broker.url
        self._keep(self._broker)
        for spec in (*self._node_specs(self.cluster), *self._services):
            launcher = ServiceLauncher(spec, self.folder / spec.name, self.url, keep_open)
            policy = self._node_policy if spec.kind == NODE_KIND else RestartPolicy()
            assert spec.name not in self._beside, f"two children are called {spec.name}"
            self._beside[spec.name] = Keeper(launcher, policy, self._tell)
        await _all(keeper.start() for keeper in self._beside.values())
        for keeper in self._beside.values():
            self._keep(keeper)
        self._tell(SpineReady(self.url, {node.id: node.url for node in self.cluster.nodes}))

    def _node_specs(self, cluster: ClusterFile) -> list[ServiceSpec]:
        def spec(id: str) -> ServiceSpec:
            return ServiceSpec(
                name=id,
                kind=NODE_KIND,
                command=lambda url: self._node_command(id, cluster.path, self.folder / id, url),
            )

        return [spec(node.id) for node in cluster.nodes]

    def _keep(self, keeper: Keeper) -> None:
        self._keeping.append(asyncio.create_task(keeper.keep(), name=f"keep-{keeper.name}"))

    async def wait(self) -> None:
        """Return once `stop` was called. Raises what broke the supervision itself, should that ever happen."""
        while self._stopping is None and self._keeping:
            done, _ = await asyncio.wait(self._keeping, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def stop(self) -> None:
        """End everything that was started, in order, within 5 s; may be called again, and while it starts.

        A caller that is cancelled leaves early; the stopping goes on.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="supervisor-stop")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        tasks = [*self._keeping, *([self._starting] if self._starting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.gather(*(keeper.stop() for keeper in self._beside.values()))
            if self._broker is not None:
                await self._broker.stop()
        finally:
            self._ports.release()
            if self._lock is not None:
                self._lock.release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- looking and meddling ------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[ChildStatus]:
        """The nodes as they are now, in the order of the cluster file."""
        return [keeper.status for keeper in self._beside.values() if keeper.kind == NODE_KIND]

    @property
    def children(self) -> list[ChildStatus]:
        """Everything that this supervisor keeps running."""
        keepers = [*([self._broker] if self._broker is not None else []), *self._beside.values()]
        return [keeper.status for keeper in keepers]

    def set_node_restart(self, automatic: bool, delay_seconds: float | None = None) -> None:
        """Whether nodes that died come back by themselves, and after how long (None: the doubling pause).

        Nodes that are down now follow the new rule at once.
        """
        self._node_policy.automatic = automatic
        self._node_policy.delay_seconds = delay_seconds
        for keeper in self._beside.values():
            keeper.policy_changed()

    async def kill_node(self, id: str) -> int | None:
        """Kill a node's process (SIGKILL); its id once it is gone, None where none ran. Raises InvalidInput."""
        return await self._node(id).kill()

    def start_node(self, id: str) -> None:
        """Start a node that is down without waiting for its pause. Raises InvalidInput: there is no such node."""
        self._node(id).start_now()

    def _node(self, id: str) -> Keeper:
        keeper = self._beside.get(id)
        if keeper is None or keeper.kind != NODE_KIND:
            raise InvalidInput(f"there is no node {id!r}; there are {', '.join(node.id for node in self.nodes)}")
        return keeper

    def _tell(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception as error:  # a listener must not end the supervision
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the listener of a supervisor failed at {event}", "exception": error}
            )


async def _all(starts: Iterable[Coroutine[None, None, None]]) -> None:
    """All of them at once; when one fails, the others are cancelled and over before its error is raised."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
