#!/usr/bin/env python3
"""Passes TCP connections on: one end of a way that a test cuts in the middle.

  relay.py LISTEN TARGET [LISTEN TARGET]…     each as ADDRESS:PORT

Bytes go as they come, and so does the end of either direction. A target that cannot be reached closes the connection.
"""

import asyncio
import sys

PIECE_BYTES = 1 << 16


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def pump(reader, writer):
    """Copies until the end or a failure of one of the two, and hands the end on."""
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    writer.close()


def serve(target):
    async def connected(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(*address(target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    return connected


async def main(arguments):
    pairs = list(zip(arguments[::2], arguments[1::2]))
    servers = [await asyncio.start_server(serve(target), *address(listen)) for listen, target in pairs]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
