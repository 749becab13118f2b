"""Where a server listens: at the path of a Unix socket, or at host:port."""
from __future__ import annotations

import os
from typing import Union

Address = Union[str, tuple[str, int]]  # a path, or a host and a port


def parse_address(text: str) -> Address:
    """What has a slash or no colon is a path, unless it begins with tcp://. [::1]:port is IPv6."""
    tcp = text[:6] == "tcp://"
    if not tcp and ("/" in text or ":" not in text):
        if not 1 <= len(text.encode("utf-8", "surrogateescape")) <= 107:
            raise ValueError(f"{text!r}: a socket's path must have 1 to 107 bytes")
        return text
    host, _, port = text[6 if tcp else 0:].rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is neither host:port nor a path; write ./{text} if it is a file")
    return host.strip("[]"), int(port)


def default_address() -> str:
    """Where `weaved` listens and `weave` looks: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock."""
    named = os.environ.get("WEAVE_SOCKET")
    if named:
        return named
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(folder):
        raise ValueError("neither WEAVE_SOCKET nor XDG_RUNTIME_DIR is set: name the server's socket")
    return os.path.join(folder, "weave", "weave.sock")
