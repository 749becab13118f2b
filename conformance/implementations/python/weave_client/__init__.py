"""A client for Weave: images from a server on a Unix socket or a TCP port.

    with Client() as client:
        client.generate("a cat in space").save("cat.png")

`weave_client.codec` has the protocol itself, for clients and servers, without sockets.
"""
from weave_client.address import default_address, parse_address
from weave_client.client import Client, Image, NoImage
from weave_client.codec import Broken, ErrorCode, OutOfRange

__all__ = ["Broken", "Client", "ErrorCode", "Image", "NoImage", "OutOfRange", "default_address", "parse_address"]
