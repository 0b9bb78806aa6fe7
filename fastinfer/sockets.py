"""Binding what the server listens on."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastinfer.errors import ConfigurationError

if TYPE_CHECKING:
    from fastinfer.settings import Settings

BACKLOG = 2048
INHERITED = "_FASTINFER_SOCKETS"  # process number, descriptors, gRPC's, and the file's inode, of the program before
# Whoever may enter the socket's folder may connect, as with a port on loopback: the folder is the lock.
UNIX_MODE = 0o666


@dataclass(frozen=True, slots=True)
class Listeners:
    """What a server listens on.

    Attributes:
        sockets: of each worker, bound and listening. A TCP address has a socket a worker, among which the kernel
            shares out new connections; a Unix socket is one that all workers accept from.
        url: where a client on this machine asks.
        addresses: of the TCP sockets of each worker.
        file: the Unix socket's path, or None.
        inode: of that file as it was made.
        grpc: sockets that hold gRPC's addresses for the workers, each of which listens there with its own.
        inherited: whether a process before this one bound them.
    """

    sockets: list[list[socket.socket]]
    url: str
    addresses: list[Any] = field(default_factory=list)
    file: Path | None = None
    inode: int = 0
    grpc: list[socket.socket] = field(default_factory=list)
    inherited: bool = False

    @property
    def grpc_addresses(self) -> list[str]:
        """What gRPC listens on, as it writes addresses."""
        bound = [each.getsockname()[:2] for each in self.grpc]
        if any(host == "::" for host, _ in bound):
            bound = [(host, port) for host, port in bound if host == "::"]  # for which it takes IPv4 too
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in bound]

    def bequeath(self, copies: list[socket.socket]) -> dict[str, str]:
        """The environment of a program that is to take this process's place, and these sockets with it."""
        for each in (*copies, *self.grpc):
            each.set_inheritable(True)
        numbers = [",".join(str(each.fileno()) for each in group) for group in (copies, self.grpc)]
        return {**os.environ, INHERITED: f"{os.getpid()}:{':'.join(numbers)}:{self.inode}"}

    def close(self, keep: int | None = None) -> None:
        """Close this process's copies of the sockets, but for those of the worker `keep`."""
        kept = [] if keep is None else self.sockets[keep]
        for each in itertools.chain(*self.sockets):
            if each not in kept:
                each.close()

    def rest(self, worker: int) -> None:
        """Let new connections go to the other workers. What waits in this one's queues is reset."""
        if self.file is None:  # a Unix socket's queue is everybody's
            for each in self.sockets[worker]:
                each.shutdown(socket.SHUT_RD)

    def resume(self, worker: int) -> None:
        """Undo `rest`.

        Raises:
            OSError: somebody else has taken the address meanwhile.
        """
        if self.file is None:
            for each, address in zip(self.sockets[worker], self.addresses, strict=True):
                if each.getsockname() != address:  # the kernel drew the port, and took it back
                    each.bind(address)
                each.listen(BACKLOG)

    def release(self) -> None:
        """Close the sockets, gRPC's too, and remove the Unix socket's file unless a successor has put its own there."""
        self.close()
        for each in self.grpc:
            each.close()
        if self.file is not None:
            with contextlib.suppress(OSError):
                if self.file.stat().st_ino == self.inode:
                    self.file.unlink()


def bind(settings: Settings) -> Listeners:
    """Listen on the settings' `uds`, or on `host` and `port`, for all workers, and hold `grpc_port` for gRPC.

    Raises:
        ConfigurationError: it is in use, not allowed, or no address of this machine; or others than this machine reach
            it, and could load and unload models.
    """
    listeners = _bind(settings)
    try:
        if settings.grpc_port is not None and not listeners.grpc:
            listeners.grpc.extend(_hold(settings.host, settings.grpc_port))
        if settings.model_control == "explicit":
            _refuse_strangers(settings, listeners)
    except ConfigurationError:
        listeners.release()
        raise
    return listeners


def _refuse_strangers(settings: Settings, listeners: Listeners) -> None:
    tcp = [] if listeners.file is not None else listeners.sockets[0]
    if not all(map(_is_loopback, [*tcp, *listeners.grpc])):
        raise ConfigurationError(f"with model_control explicit, whoever reaches the server may load and unload models: "
                                 f"it listens on a loopback address or a --uds, not on {settings.host}.")


def _hold(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to an address nobody else listens on, and let others of this user bind it too.

    Those do not listen, so that no connection ever waits in them.
    """
    first = _bind_tcp(host, port, "--grpc-port")
    try:
        return [_bind_beside(each, listens=False) for each in first]
    except OSError as error:
        raise ConfigurationError(_why_not(error, host, first[0].getsockname()[1], "--grpc-port")) from error
    finally:
        for each in first:
            each.close()


def _bind(settings: Settings) -> Listeners:
    inherited, grpc, inode = _inherited()
    if settings.uds is not None:
        first = inherited or [_bind_unix(settings.uds)]
        inode = inode or settings.uds.stat().st_ino
        return Listeners([first] * settings.workers, "http://localhost", file=settings.uds, inode=inode,
                         grpc=grpc, inherited=bool(inherited))  # fmt: skip
    first = inherited or _bind_tcp(settings.host, settings.port)
    host = settings.host if settings.host not in ("", "0.0.0.0", "::") else "localhost"  # noqa: S104 - compared
    port = first[0].getsockname()[1]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    listeners = Listeners([first], url, [each.getsockname() for each in first], grpc=grpc,
                          inherited=bool(inherited))  # fmt: skip
    try:
        for _ in range(1, settings.workers):
            listeners.sockets.append([_bind_beside(each) for each in first])
    except OSError as error:
        listeners.close()
        raise ConfigurationError(_why_not(error, settings.host, port)) from error
    return listeners


def _is_loopback(listener: socket.socket) -> bool:
    address: str = listener.getsockname()[0]
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _inherited() -> tuple[list[socket.socket], list[socket.socket], int]:
    """The sockets that this process bound as another program, gRPC's too, and its file's inode."""
    owner, *rest = os.environ.pop(INHERITED, "").split(":")
    if owner != str(os.getpid()):  # a child of that one has none of them
        return [], [], 0
    *groups, inode = rest
    sockets, grpc = [[socket.socket(fileno=int(number)) for number in filter(None, group.split(","))]
                     for group in groups]  # fmt: skip
    for each in (*sockets, *grpc):
        each.set_inheritable(False)
    return sockets, grpc, int(inode)


def _bind_beside(first: socket.socket, *, listens: bool = True) -> socket.socket:
    """Another socket on the same address.

    The first one listens before it is told to share, so that it was alone: another server on this address, of several
    workers or of one, keeps it from listening, and is kept from listening by it.
    """
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener = socket.socket(first.family, first.type, first.proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(first.getsockname())
        if listens:
            listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_tcp(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(f"--host {host}: no such address ({getattr(error, 'strerror', error)}).") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            listener = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a machine without IPv6
        sockets.append(listener)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Port 0 is drawn once, for every address of the host.
            listener.bind((address[0], sockets[0].getsockname()[1] or port, *address[2:]))
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and len(sockets) > 1:
                sockets.pop().close()  # "localhost" names ::1 on machines where IPv6 is off
                continue
            for each in sockets:
                each.close()
            raise ConfigurationError(_why_not(error, host, port, option)) from error
    if not sockets:
        raise ConfigurationError(f"--host {host}: this machine has no such address.")
    return sockets


def _why_not(error: OSError, host: str, port: int, option: str = "--port") -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host or 'this machine'} is in use. Choose another with {option}, or 0 for a free one."
    if error.errno == errno.EACCES:
        return f"port {port} needs a privilege that this user lacks. Choose one from 1024 up with {option}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine has no such address."
    return f"cannot listen on {host}:{port}: {error.strerror}."


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(UNIX_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on --uds {path}: {error.strerror or error}.") from error
    except ConfigurationError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """A server that was killed leaves its file behind; one that answers, or another kind of file, is left alone."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"--uds {path} exists and is not a socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise ConfigurationError(f"--uds {path} is in use by another server.")
