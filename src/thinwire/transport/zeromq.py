"""Messages over ZeroMQ: a ROUTER socket at the listener, a DEALER socket for a connection.

ZeroMQ's own threads send, receive and reconnect, so that neither call waits for the network. With a
key, both sides prove that they have it, and the traffic is encrypted (CURVE); the handshake fails
without the key. A message is sent in parts of one megabyte: each part that arrives shows that the
connection is alive, however long the whole message takes. The meter counts the bytes of messages;
ZeroMQ adds 9 bytes per part (25 with a key), and TCP adds its own headers.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from socket import SOCK_STREAM, gaierror, getaddrinfo
from time import monotonic

import numpy as np
import torch
import zmq
from torch import Tensor
from zmq.utils import z85

from thinwire.errors import UserError
from thinwire.transport.descriptors import require_descriptors
from thinwire.transport.keys import Key
from thinwire.transport.messages import Connection, Listener

# How long a socket continues to send its messages after it was closed.
LINGER_MILLISECONDS = 2_000
# The operating system detects a connection that was cut without being closed, after 20 seconds, and
# ZeroMQ opens it again: the system probes a silent peer three times, and limits the time in which
# the peer must confirm data. ZeroMQ's own heartbeats are not used: ZeroMQ 4.3.5 aborts a process
# that owes a heartbeat, or the answer to one, to a peer that has gone and has left more messages
# than the queue holds.
KEEPALIVE_SECONDS = 5
UNCONFIRMED_MILLISECONDS = 20_000
PART_BYTES = 1 << 20
# A context with a socket and its first connection opens fewer.
CONTEXT_DESCRIPTORS = 24
# Largest size of the messages that carry no rows or gradients; they are text.
SMALL_MESSAGE_BYTES = 1 << 20


class ZeroMQListener(Listener):
    """A server's socket.

    Args:
        listen: HOST:PORT; port 0 takes a free port.
        key: key of the run; None is allowed on loopback only.
        max_bytes: largest size of a message. A client that sends a larger one is disconnected, or
            its message is received as an empty one.

    Raises:
        UserError: it cannot listen at this address, or needs a key for it.
    """

    def __init__(self, listen: str, key: Key | None, max_bytes: int = -1) -> None:
        super().__init__()
        host, port = split_address(listen)
        if key is None and not is_loopback(host):
            raise UserError(
                f"{listen} can be reached from other machines, so the server needs --key FILE (it "
                "is made if it does not exist); 127.0.0.1 can be listened on without"
            )
        _allow_many_connections()
        self._context = _context()
        self._authenticator = _Authenticator(self._context, key) if key is not None else None
        self._socket = _socket(self._context, zmq.ROUTER, host)
        self._limit = max_bytes + SMALL_MESSAGE_BYTES if max_bytes >= 0 else None
        if self._limit is not None:
            self._socket.setsockopt(zmq.MAXMSGSIZE, self._limit)
        if key is not None:
            self._socket.curve_server = True
            self._socket.curve_secretkey = key.secret
            self._socket.curve_publickey = key.public
        try:
            self._socket.bind(f"tcp://{_ip_address(host)}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise UserError(f"cannot listen on {listen}: {error.strerror}") from None
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = f"{host}:{endpoint.rpartition(':')[2]}"
        """HOST:PORT, with the port that was taken."""
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if self._authenticator is not None:
            self._poller.register(self._authenticator.socket, zmq.POLLIN)

    def receive(self, timeout_seconds: float) -> tuple[bytes, Tensor] | None:
        """See `Listener`; also accepts or refuses new clients."""
        deadline = monotonic() + timeout_seconds
        while True:
            left = max(0.0, deadline - monotonic())
            ready = dict(self._poller.poll(round(1000 * left)))
            if self._authenticator is not None and self._authenticator.socket in ready:
                self._authenticator.answer()
            if self._socket in ready:
                client, *parts = self._socket.recv_multipart(copy=False)
                size = sum(map(len, parts))
                self.meter.count(received=size)
                if self._limit is not None and size > self._limit:
                    parts = []  # an empty message cannot be decoded, and the reader reports that
                return client.bytes, _joined(parts)
            if not left:
                return None

    def send(self, client: bytes, message: Tensor) -> None:
        """See `Listener`; a message to a client that has gone is dropped."""
        with suppress(zmq.Again):
            self._socket.send_multipart([client, *_parts(message)], zmq.NOBLOCK, copy=False)
            self.meter.count(sent=len(message))

    def close(self) -> None:
        """See `Listener`."""
        self._context.destroy(linger=LINGER_MILLISECONDS)


class ZeroMQConnection(Connection):
    """A worker's socket.

    Args:
        server: HOST:PORT.
        key: key of the run; None: the server has none.

    Raises:
        UserError: `server` is not an address, or is on another machine and there is no key.
    """

    def __init__(self, server: str, key: Key | None) -> None:
        super().__init__(server)
        host, port = split_address(server)
        if key is None and not is_loopback(host):
            raise UserError(
                f"{server} is on another machine, and a server there speaks only to workers that "
                "have the run's key: copy its key file here, and name it with --key FILE"
            )
        self._context = _context()
        self._socket = _socket(self._context, zmq.DEALER, host)
        if key is not None:
            self._socket.curve_serverkey = key.public
            self._socket.curve_secretkey = key.secret
            self._socket.curve_publickey = key.public
        self._socket.connect(f"tcp://{_ip_address(host)}:{port}")

    def send(self, message: Tensor) -> None:
        """See `Connection`."""
        with suppress(zmq.Again):
            self._socket.send_multipart(_parts(message), zmq.NOBLOCK, copy=False)
            self.meter.count(sent=len(message))

    def receive(self, timeout_seconds: float) -> Tensor | None:
        """See `Connection`."""
        if not self._socket.poll(round(1000 * timeout_seconds)):
            return None
        parts = self._socket.recv_multipart(copy=False)
        self.meter.count(received=sum(map(len, parts)))
        return _joined(parts)

    def close(self) -> None:
        """See `Connection`."""
        self._context.destroy(linger=LINGER_MILLISECONDS)


class _Authenticator:
    """Accepts clients that have proved to have the run's key (ZAP, ZeroMQ RFC 27)."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: Key) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._public = z85.decode(key.public)

    def answer(self) -> None:
        version, request, _domain, _address, _identity, mechanism, *credentials = (
            self.socket.recv_multipart()
        )
        known = mechanism == b"CURVE" and credentials == [self._public]
        status = [b"200", b"OK"] if known else [b"400", b"another key"]
        self.socket.send_multipart([version, request, *status, b"", b""])


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    require_descriptors(CONTEXT_DESCRIPTORS)
    return zmq.Context()


def _allow_many_connections() -> None:
    """Raise the limit of open files to the largest that the system allows.

    Every client takes a descriptor before it has proved to have the key, and a silent client keeps
    it for half a minute (ZeroMQ's handshake). With the usual limit of 1024, silent clients could
    use up all descriptors, and checkpoints could not be opened.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT.

    Raises:
        UserError: `address` does not have this form.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"{address!r} is no address of the form HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is a loopback address of this machine."""
    return ip_address(_ip_address(host).strip("[]")).is_loopback


def _ip_address(host: str) -> str:
    """The IP address of a host, which ZeroMQ needs to bind; * becomes 0.0.0.0."""
    if host == "*":
        return "0.0.0.0"
    try:
        found = getaddrinfo(host.strip("[]"), None, type=SOCK_STREAM)
    except gaierror as error:
        raise UserError(f"the host {host} is not known: {error.strerror}") from None
    numbers = [str(address[0]) for *_, address in found]
    # IPv4 first, because most networks support it.
    number = next((n for n in numbers if ":" not in n), numbers[0])
    return f"[{number}]" if ":" in number else number


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: zmq.SocketType, host: str
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = LINGER_MILLISECONDS
    for option, number in (
        (zmq.IPV6, int(":" in _ip_address(host))),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_SECONDS),
        (zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_SECONDS),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        (zmq.TCP_MAXRT, UNCONFIRMED_MILLISECONDS),
    ):
        socket.setsockopt(option, number)
    return socket


def _parts(message: Tensor) -> list[memoryview]:
    """The parts of a message, at least one. ZeroMQ keeps their memory until it has sent them."""
    memory = message.numpy().data if len(message) else memoryview(b"")
    return [memory[at : at + PART_BYTES] for at in range(0, max(1, len(memory)), PART_BYTES)]


def _joined(parts: Sequence[zmq.Frame]) -> Tensor:
    """The message of these parts. A single part is not copied if PyTorch may write to it."""
    arrays = [np.frombuffer(memoryview(part), dtype=np.uint8) for part in parts if len(part)]  # type: ignore[arg-type]
    if len(arrays) == 1 and arrays[0].flags.writeable:
        return torch.from_numpy(arrays[0])
    return torch.from_numpy(np.concatenate(arrays)) if arrays else torch.empty(0).byte()
