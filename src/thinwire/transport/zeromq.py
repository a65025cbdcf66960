"""Messages over ZeroMQ: a ROUTER socket at the listener, a DEALER socket for a connection.

ZeroMQ's own threads send and receive, so that neither call waits for the wire, and reconnect by
themselves. With a key both sides prove that they have it, and the wire is encrypted (CURVE); who
has none, or another, does not get past the handshake. A message goes in parts of a megabyte: each
that arrives shows that the connection lives, however long the whole takes. What is counted is the
messages: ZeroMQ adds 9 bytes to a part (25 with a key), and TCP its own headers.
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

# How long a socket that is closed goes on sending what it was given.
LINGER_MILLISECONDS = 2_000
# A connection that is cut, not closed, is noticed by the system after about 20 seconds, and made
# anew: it asks a silent peer three times, and waits that long for what was sent to be confirmed.
# ZeroMQ's own heartbeats are not used: 4.3.5 aborts a process that owes a heartbeat, or the answer
# to one, to a peer which has gone and has left more messages than the queue holds.
KEEPALIVE_SECONDS = 5
UNCONFIRMED_MILLISECONDS = 20_000
PART_BYTES = 1 << 20
# A context with a socket and its first connection opens fewer.
CONTEXT_DESCRIPTORS = 24
# Messages of the protocol besides rows and gradients; they are text of this size at most.
SMALL_MESSAGE_BYTES = 1 << 20


class ZeroMQListener(Listener):
    """A server's socket.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        key: the run's; None on loopback only.
        max_bytes: no message is larger; a client that sends one is cut off, or not understood.

    Raises:
        UserError: it cannot listen there, or may not without a key.
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
        self._gate = _Gate(self._context, key) if key is not None else None
        self._socket = _socket(self._context, zmq.ROUTER, host)
        self._limit = max_bytes + SMALL_MESSAGE_BYTES if max_bytes >= 0 else None
        if self._limit is not None:
            self._socket.setsockopt(zmq.MAXMSGSIZE, self._limit)
        if key is not None:
            self._socket.curve_server = True
            self._socket.curve_secretkey = key.secret
            self._socket.curve_publickey = key.public
        try:
            self._socket.bind(f"tcp://{_numeric(host)}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise UserError(f"cannot listen on {listen}: {error.strerror}") from None
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = f"{host}:{endpoint.rpartition(':')[2]}"
        """HOST:PORT, the port as it was found."""
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if self._gate is not None:
            self._poller.register(self._gate.socket, zmq.POLLIN)

    def receive(self, timeout_seconds: float) -> tuple[bytes, Tensor] | None:
        """See `Listener`; those who knock meanwhile are let in or not."""
        deadline = monotonic() + timeout_seconds
        while True:
            left = max(0.0, deadline - monotonic())
            ready = dict(self._poller.poll(round(1000 * left)))
            if self._gate is not None and self._gate.socket in ready:
                self._gate.answer()
            if self._socket in ready:
                client, *parts = self._socket.recv_multipart(copy=False)
                size = sum(map(len, parts))
                self.meter.count(received=size)
                if self._limit is not None and size > self._limit:
                    parts = []  # it cannot be read, and who reads says so
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
        key: the run's; None: the server has none.

    Raises:
        UserError: that is no address, or one on another machine and there is no key.
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
        self._socket.connect(f"tcp://{_numeric(host)}:{port}")

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


class _Gate:
    """Says who may come in (ZAP, ZeroMQ RFC 27): those who have proved to have the run's key."""

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
    """Raise the limit of open files to what the system allows.

    Whoever connects takes a descriptor before it has shown a key, and those that stay silent keep
    it for half a minute (ZeroMQ's handshake); the usual limit of 1024 is soon reached, and then
    checkpoints cannot be opened either.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT in two.

    Raises:
        UserError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"{address!r} is no address of the form HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host's name or number stands for this machine alone."""
    return ip_address(_numeric(host).strip("[]")).is_loopback


def _numeric(host: str) -> str:
    """A host's number, which is what ZeroMQ binds to; all interfaces are 0.0.0.0."""
    if host == "*":
        return "0.0.0.0"
    try:
        found = getaddrinfo(host.strip("[]"), None, type=SOCK_STREAM)
    except gaierror as error:
        raise UserError(f"the host {host} is not known: {error.strerror}") from None
    numbers = [str(address[0]) for *_, address in found]
    # IPv4 first: it is what most networks that a name leads to have.
    number = next((n for n in numbers if ":" not in n), numbers[0])
    return f"[{number}]" if ":" in number else number


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: zmq.SocketType, host: str
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = LINGER_MILLISECONDS
    for option, number in (
        (zmq.IPV6, int(":" in _numeric(host))),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_SECONDS),
        (zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_SECONDS),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        (zmq.TCP_MAXRT, UNCONFIRMED_MILLISECONDS),
    ):
        socket.setsockopt(option, number)
    return socket


def _parts(message: Tensor) -> list[memoryview]:
    """A message's own memory, which stays until ZeroMQ has sent it; at least one part."""
    memory = message.numpy().data if len(message) else memoryview(b"")
    return [memory[at : at + PART_BYTES] for at in range(0, max(1, len(memory)), PART_BYTES)]


def _joined(parts: Sequence[zmq.Frame]) -> Tensor:
    """A received message: the memory of its only part, where PyTorch may have it, or a copy."""
    arrays = [np.frombuffer(memoryview(part), dtype=np.uint8) for part in parts if len(part)]  # type: ignore[arg-type]
    if len(arrays) == 1 and arrays[0].flags.writeable:
        return torch.from_numpy(arrays[0])
    return torch.from_numpy(np.concatenate(arrays)) if arrays else torch.empty(0).byte()
