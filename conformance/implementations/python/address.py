"""ADDRESS, as the client and the server take it: the path of a Unix socket, or host:port."""
from __future__ import annotations


def parse_address(text: str) -> str | tuple[str, int]:
    """A path, or a host and a port. What has a slash or no colon is a path; [::1]:port is IPv6."""
    if "/" in text or ":" not in text:
        if not 1 <= len(text.encode("utf-8", "surrogateescape")) <= 107:
            raise ValueError(f"{text!r}: a socket's path must have 1 to 107 bytes")
        return text
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is neither host:port nor a path; write ./{text} if it is a file")
    return host.strip("[]"), int(port)
