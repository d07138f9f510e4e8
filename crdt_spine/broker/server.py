"""The embedded broker: one nats-server with JetStream, on loopback, in a folder of its own.

It has no authentication, so it listens on loopback only. JetStream decides locks and the cluster's configuration here,
so it makes every message durable before it acknowledges it (`sync_interval: always`; its default is every two
minutes). The folder belongs to one server at a time: the server inherits the lock and holds it as long as it lives.

Which port it got, and that it is this very server that answers there, is said by the file that it writes when it can
serve; then it must answer a connection with JetStream on.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crdt_spine.broker.binary import find_nats_server
from crdt_spine.broker.folder_lock import FolderLock, prepare_folder
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.limits import (
    BROKER_READY_SECONDS_MAX,
    BROKER_STOP_SECONDS_MAX,
    LOG_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    POLL_SECONDS,
)

LOCK_FILE = "broker.lock"
LOG_FILE = "nats-server.log"  # the server's own, rotated by it
OUTPUT_FILE = "nats-server.out"  # what it prints before it has a log, and when it panics; of the last start
CONFIG_FILE = "nats-server.conf"
PORTS_FOLDER = "ports"


class _UnknownFeatureFlags(Exception):
    """This server is older than the pinned flag."""


class EmbeddedBroker:
    """A running nats-server. `exited` is set once it has ended, for whatever reason."""

    def __init__(self, process: BoundProcess, folder: Path, host: str, port: int) -> None:
        self._process = process
        self.folder = folder
        self.host = host
        self.port = port
        self.pid = process.pid
        self.exited = process.exited

    @property
    def url(self) -> str:
        return f"nats://{_bracketed(self.host)}:{self.port}"

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by a signal); None while it runs."""
        return self._process.returncode

    @classmethod
    async def start(
        cls,
        data_dir: str | os.PathLike[str],
        port: int = 4222,
        host: str = "127.0.0.1",
        *,
        executable: str | os.PathLike[str] | None = None,
        keep_open: Sequence[int] = (),
    ) -> Self:
        """Start a server that keeps its data in `data_dir` and wait until it serves. Port 0 is a free one.

        `executable` overrides the search for nats-server; `keep_open` are file descriptors that it inherits. It is
        killed when the calling process (on Linux: thread) ends. Raises ConfigError: no nats-server, the port is taken,
        the folder is in use or can't be written to, the host is not loopback. Raises ConnectionFailed: it ended while
        starting, or was not ready within BROKER_READY_SECONDS_MAX.
        """
        _check_address(host, port)
        program = find_nats_server(executable)
        folder = prepare_folder(data_dir)
        lock = await FolderLock.acquire(folder, LOCK_FILE)
        try:
            _check_port_free(host, port)
            try:
                return await cls._start_locked(program, folder, host, port, lock, keep_open, pin_flags=True)
            except _UnknownFeatureFlags:
                return await cls._start_locked(program, folder, host, port, lock, keep_open, pin_flags=False)
        finally:
            lock.release()  # the server has inherited it

    @classmethod
    async def _start_locked(
        cls,
        program: Path,
        folder: Path,
        host: str,
        port: int,
        lock: FolderLock,
        keep_open: Sequence[int],
        *,
        pin_flags: bool,
    ) -> Self:
        config = _write_config(folder, host, port, pin_flags=pin_flags)
        with _open_output(folder) as output:
            process = await spawn_bound_to_parent(
                [program, "--config", config], output=output, keep_open=(lock.fileno(), *keep_open)
            )
        try:
            lock.name_holder(process.pid)
            async with asyncio.timeout(BROKER_READY_SECONDS_MAX):
                bound_port = await _wait_until_ready(process, folder, host, port)
        except BaseException as error:
            await process.stop(0)
            if isinstance(error, TimeoutError):
                raise ConnectionFailed(
                    f"the broker in {folder} was not ready at {host}:{port} within {BROKER_READY_SECONDS_MAX:.0f} s;"
                    f" its log is {folder / LOG_FILE}"
                ) from error
            raise
        return cls(process, folder, host, bound_port)

    async def healthy(self, timeout_seconds: float = 1.0) -> bool:
        """Does it answer a new connection within the time, with JetStream on?"""
        try:
            async with asyncio.timeout(timeout_seconds):
                return bool((await _greeting(self.host, self.port)).get("jetstream"))
        except (OSError, ValueError, TimeoutError):
            return False

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()

    async def stop(self, grace_seconds: float = BROKER_STOP_SECONDS_MAX) -> None:
        """Ask it to end, kill it after `grace_seconds`; returns once it is gone. May be called again."""
        await self._process.stop(grace_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_address(host: str, port: int) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise ConfigError(
            f"the embedded broker has no authentication and listens on loopback only, not on {host}:"
            " run a nats-server of your own for other machines and give its URL"
        )
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port {port} is not between 0 and 65535 (0 is a free one)")


def _check_port_free(host: str, port: int) -> None:
    """Say at once what the server would only say in its log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nats-server does: TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_in_use(host, port) from error
            raise ConfigError(
                f"the broker can't listen on {host} port {port}: {error.strerror};"
                " choose another port (0 is a free one)"
            ) from error


def _port_in_use(host: str, port: int) -> ConfigError:
    return ConfigError(
        f"port {port} on {host} is already in use: stop what listens there, or choose another port (0 is a free one)"
    )


def _write_config(folder: Path, host: str, port: int, *, pin_flags: bool) -> Path:
    def text(value: object) -> str:  # the configuration's strings are escaped as JSON's are
        return json.dumps(str(value), ensure_ascii=False)

    lines = [
        "# Written at every start of the embedded broker; changes are lost.",
        f"host: {text(host)}",
        f"port: {port or -1}",
        'server_name: "spine"',
        f"max_payload: {MESSAGE_BYTES_MAX}",
        f"log_file: {text(folder / LOG_FILE)}",
        f"logfile_size_limit: {LOG_BYTES_MAX}",
        "logfile_max_num: 2",
        f"ports_file_dir: {text(folder / PORTS_FOLDER)}",
        f"jetstream {{ store_dir: {text(folder)}, sync_interval: always }}",
    ]
    if pin_flags:
        lines.append("feature_flags { js_ack_fc_v2: false }")
    path = folder / CONFIG_FILE
    try:
        ports = folder / PORTS_FOLDER
        ports.mkdir(exist_ok=True)
        for stale in ports.iterdir():  # of a server that was killed
            stale.unlink()
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be written to: {error}") from error
    return path


def _open_output(folder: Path) -> Any:
    try:
        return (folder / OUTPUT_FILE).open("wb")
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be written to: {error}") from error


async def _wait_until_ready(process: BoundProcess, folder: Path, host: str, port: int) -> int:
    """The port that it listens on."""
    while not process.exited.is_set():
        bound = _port_written(folder)
        if bound is not None:
            try:
                if (await _greeting(host, bound)).get("jetstream"):
                    return bound
            except (OSError, ValueError):
                pass
        await asyncio.sleep(POLL_SECONDS)
    raise _why_it_ended(process, folder, host, port)


def _port_written(folder: Path) -> int | None:
    for path in (folder / PORTS_FOLDER).glob("*.ports"):
        try:
            return int(json.loads(path.read_bytes())["nats"][0].rpartition(":")[2])
        except (OSError, ValueError, LookupError):
            continue  # still being written
    return None


async def _greeting(host: str, port: int) -> dict[str, Any]:
    """What a NATS server says first on a connection. Raises OSError or ValueError where that is no NATS server."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        word, _, rest = (await reader.readline()).partition(b" ")
        if word != b"INFO":
            raise ValueError("no NATS server")
        greeting: dict[str, Any] = json.loads(rest)
        return greeting
    finally:
        writer.close()


def _why_it_ended(process: BoundProcess, folder: Path, host: str, port: int) -> Exception:
    said = _last_lines(folder / OUTPUT_FILE)
    if "unknown field" in said and "feature_flags" in said:
        return _UnknownFeatureFlags()
    logged = [line for line in _last_lines(folder / LOG_FILE).splitlines() if f"[{process.pid}]" in line]
    fatal = next((line.partition("[FTL]")[2].strip() for line in reversed(logged) if "[FTL]" in line), "")
    if port and "address already in use" in fatal:
        return _port_in_use(host, port)
    reason = fatal or " ".join(said.split()) or "it said nothing"
    return ConnectionFailed(
        f"the broker in {folder} ended with {process.returncode} while starting: {reason};"
        f" its log is {folder / LOG_FILE}"
    )


def _last_lines(path: Path, bytes_max: int = 4_096) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - bytes_max))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
