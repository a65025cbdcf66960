"""Messages over ZeroMQ on loopback: as the in-process listener; strangers get nothing."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic

import pytest
import torch
import zmq
from torch import Tensor

from thinwire.errors import UserError
from thinwire.transport.keys import Key, read_or_make_key
from thinwire.transport.messages import Connection
from thinwire.transport.zeromq import (
    CONTEXT_DESCRIPTORS,
    PART_BYTES,
    ZeroMQConnection,
    ZeroMQListener,
    is_loopback,
    split_address,
)

PATIENCE_SECONDS = 20.0
# What a stranger is given to get in.
STRANGER_SECONDS = 0.5


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["plain", "key"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Key | None:
    return read_or_make_key(tmp_path / "key")[0] if request.param else None


def opened(
    stack: ExitStack, key: Key | None, listen: str = "127.0.0.1:0", max_bytes: int = 1 << 20
) -> ZeroMQListener:
    return stack.enter_context(closing(ZeroMQListener(listen, key, max_bytes)))


def connected(stack: ExitStack, address: str, key: Key | None) -> ZeroMQConnection:
    return stack.enter_context(closing(ZeroMQConnection(address, key)))


def exchanged(listener: ZeroMQListener, connection: Connection, message: Tensor) -> Tensor:
    """What comes back of a message that the listener sends back."""
    connection.send(message)
    arrived = listener.receive(PATIENCE_SECONDS)
    assert arrived is not None
    listener.send(*arrived)
    answer = connection.receive(PATIENCE_SECONDS)
    assert answer is not None
    return answer


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_001])
def test_messages_arrive_whole_and_are_counted(
    size: int, key: Key | None, stack: ExitStack
) -> None:
    listener = opened(stack, key, max_bytes=size)
    connection = connected(stack, listener.address, key)
    message = torch.arange(size).to(torch.uint8)
    assert torch.equal(exchanged(listener, connection, message), message)
    assert [listener.meter.sent, listener.meter.received] == [size, size]
    assert [connection.meter.sent, connection.meter.received] == [size, size]


def test_a_large_message_goes_in_parts(stack: ExitStack) -> None:
    """Each of them shows on a slow link that the connection lives."""
    listener = opened(stack, None)
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://{listener.address}")
        peer.send(b"hello")
        arrived = listener.receive(PATIENCE_SECONDS)
        assert arrived is not None
        listener.send(arrived[0], torch.ones(2 * PART_BYTES + 1, dtype=torch.uint8))
        assert peer.poll(round(1000 * PATIENCE_SECONDS))
        assert [len(part) for part in peer.recv_multipart()] == [PART_BYTES, PART_BYTES, 1]


def test_what_is_received_can_be_written_to(stack: ExitStack) -> None:
    listener = opened(stack, None)
    connection = connected(stack, listener.address, None)
    answer = exchanged(listener, connection, torch.ones(100_000, dtype=torch.uint8))
    answer += 1
    assert int(answer.sum()) == 200_000


def test_each_worker_is_answered_on_its_own_line(key: Key | None, stack: ExitStack) -> None:
    listener = opened(stack, key)
    connections = [connected(stack, listener.address, key) for _ in range(3)]
    for number, connection in enumerate(connections):
        connection.send(torch.tensor([number], dtype=torch.uint8))
    for _ in connections:
        arrived = listener.receive(PATIENCE_SECONDS)
        assert arrived is not None
        listener.send(*arrived)
    for number, connection in enumerate(connections):
        answer = connection.receive(PATIENCE_SECONDS)
        assert answer is not None and answer.tolist() == [number]


def test_a_line_finds_a_door_that_opens_again(key: Key | None, stack: ExitStack) -> None:
    listener = ZeroMQListener("127.0.0.1:0", key)
    connection = connected(stack, listener.address, key)
    first = torch.tensor([1], dtype=torch.uint8)
    exchanged(listener, connection, first)
    listener.close()
    listener = opened(stack, key, listener.address)
    deadline = monotonic() + PATIENCE_SECONDS
    arrived = None
    while arrived is None and monotonic() < deadline:
        connection.send(first)
        arrived = listener.receive(0.2)
    assert arrived is not None


def test_strangers_get_nothing_and_disturb_nothing(stack: ExitStack, tmp_path: Path) -> None:
    key, _ = read_or_make_key(tmp_path / "key")
    other, _ = read_or_make_key(tmp_path / "other")
    listener = opened(stack, key)
    friend = connected(stack, listener.address, key)
    hello = torch.ones(10, dtype=torch.uint8)
    public, secret = zmq.curve_keypair()
    strangers = [
        connected(stack, listener.address, None),  # no key
        connected(stack, listener.address, other),  # that of another run
        # who knows the server's public key, but not its secret one
        _knows(stack, listener.address, key.public, Key(public, secret)),
    ]
    for stranger in strangers:
        stranger.send(hello)
    raw = stack.enter_context(
        socket.create_connection(("127.0.0.1", split_address(listener.address)[1]))
    )
    raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 40)
    assert listener.receive(STRANGER_SECONDS) is None
    assert torch.equal(exchanged(listener, friend, hello), hello)
    assert all(stranger.receive(0.0) is None for stranger in strangers)
    assert listener.receive(STRANGER_SECONDS) is None


def _knows(stack: ExitStack, address: str, server: bytes, own: Key) -> Connection:
    class Knowing(ZeroMQConnection):
        def __init__(self) -> None:
            super().__init__(address, None)
            self._socket.close()
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.curve_serverkey = server
            self._socket.curve_publickey, self._socket.curve_secretkey = own.public, own.secret
            self._socket.connect(f"tcp://{address}")

    return stack.enter_context(closing(Knowing()))


def test_messages_that_are_too_large_are_received_as_nothing(stack: ExitStack) -> None:
    """Nothing that could be read comes out, and the listener goes on."""
    listener = opened(stack, None)  # it takes 1 + 1 MB
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://{listener.address}")
        peer.send_multipart([bytes(1 << 20)] * 3)
        arrived = listener.receive(PATIENCE_SECONDS)
        assert arrived is not None and len(arrived[1]) == 0
        peer.send(bytes(3 << 20))
        assert listener.receive(STRANGER_SECONDS) is None
    connection = connected(stack, listener.address, None)
    assert exchanged(listener, connection, torch.ones(5, dtype=torch.uint8)).tolist() == [1] * 5


def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(UserError, match=r"0\.0\.0\.0:0 can be reached from other machines"):
        ZeroMQListener("0.0.0.0:0", None)
    with pytest.raises(UserError, match=r"192\.0\.2\.1:5555 is on another machine"):
        ZeroMQConnection("192.0.2.1:5555", None)


def test_beyond_loopback_with_a_key(stack: ExitStack, tmp_path: Path) -> None:
    key, _ = read_or_make_key(tmp_path / "key")
    listener = opened(stack, key, "*:0")
    connection = connected(stack, f"127.0.0.1:{split_address(listener.address)[1]}", key)
    assert exchanged(listener, connection, torch.ones(5, dtype=torch.uint8)).tolist() == [1] * 5


def test_a_port_that_is_taken(stack: ExitStack) -> None:
    listener = opened(stack, None)
    with pytest.raises(
        UserError, match=f"cannot listen on {listener.address}: Address already in use"
    ):
        ZeroMQListener(listener.address, None)


@pytest.mark.parametrize("address", ["", "5555", ":5555", "host:", "host:port", "host:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="is no address of the form HOST:PORT"):
        split_address(address)


def test_hosts() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("[::1]")
    assert not is_loopback("*") and not is_loopback("0.0.0.0") and not is_loopback("192.0.2.1")
    with pytest.raises(UserError, match=r"the host nowhere\.invalid is not known"):
        is_loopback("nowhere.invalid")


def test_a_listener_raises_the_limit_of_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        listener = ZeroMQListener("127.0.0.1:0", None)
        try:
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        finally:
            listener.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts this process's files")
def test_too_few_descriptors_are_said_before_zeromq_ends_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 5, before[1]))
    try:
        with pytest.raises(UserError, match="need 24 more open files, and the system allows "):
            ZeroMQConnection("127.0.0.1:9", None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with ExitStack() as stack:
        listener = opened(stack, Key.new())
        assert len(os.listdir("/proc/self/fd")) - num_open <= CONTEXT_DESCRIPTORS
        assert listener.address


def test_a_client_that_leaves_more_than_is_read_and_goes_does_not_end_the_listener() -> None:
    """ZeroMQ aborts where it owes a heartbeat or the answer to one: so in a process of its own."""
    program = """
import time
import torch
from thinwire.transport import zeromq
listener = zeromq.ZeroMQListener("127.0.0.1:0", None)
client = zeromq.ZeroMQConnection(listener.address, None)
for _ in range(5000):
    client.send(torch.zeros(8, dtype=torch.uint8))
while listener.receive(60.0) is None:
    pass
time.sleep(0.3)  # more messages arrive, as many as the queue holds
client._context.destroy(linger=100)
time.sleep(0.3)  # it is noticed that it has gone
while listener.receive(0.3) is not None:
    pass
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"still here\n"), done.stderr


def test_a_cut_connection_is_noticed_by_the_system_and_not_by_heartbeats(stack: ExitStack) -> None:
    """Heartbeats, of either side, bring back what the test above shows."""
    listener = opened(stack, None)
    for socket_ in (listener._socket, connected(stack, listener.address, None)._socket):
        assert socket_.getsockopt(zmq.HEARTBEAT_IVL) == 0
        assert socket_.getsockopt(zmq.TCP_KEEPALIVE) == 1
        assert socket_.getsockopt(zmq.TCP_MAXRT) == 20_000
        idle, interval, count = (
            socket_.getsockopt(option)
            for option in (zmq.TCP_KEEPALIVE_IDLE, zmq.TCP_KEEPALIVE_INTVL, zmq.TCP_KEEPALIVE_CNT)
        )
        assert idle + interval * count == 20
