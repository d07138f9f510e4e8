"""Nodes that come and go: processes beside those of the supervisor, kept running as it keeps its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from crdt_spine.core.messages import NodeInfo
from crdt_spine.supervisor.keeper import ChildStatus, Keeper, RestartPolicy
from crdt_spine.supervisor.ports import Ports
from crdt_spine.supervisor.service import ServiceLauncher, ServiceSpec

FIRST_START_SECONDS_MAX = 60.0

#: The command of a node: its id, cluster.yaml, its folder, the broker's URL.
Command = Callable[[str, Path, Path, str], Sequence[str]]


class Newcomer:
    """One node that is not in the cluster's file. `start`, then it is kept running until `stop`."""

    def __init__(self, id: str, folder: Path, url: str, command: Command) -> None:
        self.id = id
        self._folder = folder
        self._ports = Ports()
        [port] = self._ports.take([("127.0.0.1", 0)])
        self.info = NodeInfo(id=id, zone=f"zone-of-{id}", host="127.0.0.1", port=port)
        config = folder / f"{id}.yaml"
        self._policy = RestartPolicy(automatic=True, delay_seconds=0.3)
        spec = ServiceSpec(name=id, kind="node", command=lambda url: command(id, config, folder / id, url))
        self._config = config
        self._keeper = Keeper(ServiceLauncher(spec, folder / id, url, ()), self._policy, lambda event: None)
        self._keeping: asyncio.Task[None] | None = None

    @property
    def status(self) -> ChildStatus:
        return self._keeper.status

    def start(self) -> None:
        """Start it, again and again until it serves: it does once the cluster has taken it in."""
        document = yaml.safe_load((self._folder / "cluster.yaml").read_text())
        info = self.info
        document["cluster"]["nodes"].append({"id": info.id, "host": info.host, "port": info.port, "zone": info.zone})
        self._config.write_text(yaml.safe_dump(document))
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            try:
                await self._keeper.start()
                break
            except Exception:
                await asyncio.sleep(0.3)
        await self._keeper.keep()

    async def kill(self) -> None:
        await self._keeper.kill()

    def keep_down(self, down: bool) -> None:
        """Whether it stays away once it was killed."""
        self._policy.automatic = not down
        self._keeper.policy_changed()
        if not down:
            self._keeper.start_now()

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(BaseException):
                await self._keeping
        await self._keeper.stop()
        self._ports.release()
