"""Adds delay to TCP connections, both ways: `LISTEN:PORT TARGET:PORT MILLISECONDS`.

What comes in goes out so many milliseconds later, and meanwhile more comes in: messages take
longer, and the link's rate stays what it is.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import Queue, StreamReader, StreamWriter
from contextlib import suppress

PIECE_BYTES = 1 << 16
# Under way at most, each way: 20 ms of 1 Gbit/s are 40 whole pieces.
MOST_PIECES = 512


async def relay(listen: str, target: str, delay_seconds: float) -> None:
    """Accept connections at `listen`, each of which leads to `target`, until cancelled."""

    async def connect(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*_address(target))
        except OSError:  # nobody is there yet: who has come may come again
            writer.close()
            return
        await asyncio.gather(
            _forward(reader, far_writer, delay_seconds), _forward(far_reader, writer, delay_seconds)
        )
        writer.close()
        far_writer.close()

    server = await asyncio.start_server(connect, *_address(listen))
    async with server:
        await server.serve_forever()


async def _forward(reader: StreamReader, writer: StreamWriter, delay_seconds: float) -> None:
    """One way, until its end."""
    pieces: Queue[tuple[float, bytes]] = Queue(MOST_PIECES)
    sending = asyncio.create_task(_send(pieces, writer))
    clock = asyncio.get_running_loop().time
    piece = b"."
    while piece:
        piece = b""
        with suppress(ConnectionError):
            piece = await reader.read(PIECE_BYTES)
        await pieces.put((clock() + delay_seconds, piece))
    await sending


async def _send(pieces: Queue[tuple[float, bytes]], writer: StreamWriter) -> None:
    """Each piece when its time has come; an empty one is the end."""
    clock = asyncio.get_running_loop().time
    while True:
        due, piece = await pieces.get()
        await asyncio.sleep(due - clock())
        with suppress(OSError):  # it has been cut, and the other way will end too
            if piece:
                writer.write(piece)
                await writer.drain()
            else:
                writer.write_eof()
        if not piece:
            return


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000))
