"""A client for Weave: images from a server on a Unix socket or a TCP port.

    with Client() as client:
        client.generate("a cat in space").save("cat.png")

AsyncClient is the same for asyncio. `weave_client.codec` has the protocol itself, for clients and servers, without sockets.
"""
__version__ = "0.1.0"  # before the imports: images say it in their files

from weave_client.address import default_address, parse_address
from weave_client.aio import AsyncClient
from weave_client.client import Client, NoImage
from weave_client.codec import Broken, ErrorCode, OutOfRange
from weave_client.connection import Unreachable
from weave_client.image import Image

__all__ = ["AsyncClient", "Broken", "Client", "ErrorCode", "Image", "NoImage", "OutOfRange", "Unreachable",
           "default_address", "parse_address"]
