"""Measures a link: `receive ADDRESS`, `send ADDRESS BYTES` (prints bit/s)."""

from __future__ import annotations

import socket
import sys
import time

PORT = 20213
PIECE = bytes(1 << 16)


def receive(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 16):
                pass
            connection.sendall(b".")


def send(address: str, num_bytes: int) -> None:
    for _ in range(100):
        try:
            connection = socket.create_connection((address, PORT))
            break
        except OSError:
            time.sleep(0.05)
    began, left = time.perf_counter(), num_bytes
    with connection:
        while left > 0:
            connection.sendall(PIECE[: min(left, len(PIECE))])
            left -= len(PIECE)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # all has arrived
    print(8 * num_bytes / (time.perf_counter() - began))


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]))
