"""Where a server listens: at the path of a Unix socket, or at host:port."""
from __future__ import annotations

import errno
import os
from typing import Union

Address = Union[str, tuple[str, int]]  # a path, or a host and a port

SYSTEM_SOCKET = "/run/weave/weave.sock"  # of a weaved for all users of a machine


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


def show_address(address: Address) -> str:
    """In a form that parse_address takes."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def default_address() -> str:
    """Where `weaved` listens and `weave` looks: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock.

    Without that variable it is ~/.weave/weave.sock. If nothing is there, /run/weave/weave.sock, if there is something.
    """
    named = os.environ.get("WEAVE_SOCKET", "").strip()
    if named:
        return named
    folder, home = os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("HOME", "")
    usual = None
    if os.path.isabs(folder):
        usual = os.path.join(folder, "weave", "weave.sock")
    elif os.path.isabs(home) and os.path.normpath(home) != "/":  # which users have who can't log in
        usual = os.path.join(home, ".weave", "weave.sock")
    if usual is not None and (is_there(usual) or not is_there(SYSTEM_SOCKET)):
        return usual
    if is_there(SYSTEM_SOCKET):
        return SYSTEM_SOCKET
    raise ValueError("where the server listens isn't known: WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing, and nothing "
                     f"is at {SYSTEM_SOCKET}; name its socket")


def is_there(path: str) -> bool:
    """Whether something is there, be it that this user may not look."""
    try:
        os.lstat(path)
    except OSError as fault:
        return fault.errno == errno.EACCES
    return True
