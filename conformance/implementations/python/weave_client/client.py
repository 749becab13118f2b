"""What programs use: a Client has a server make an Image."""
from __future__ import annotations

import math
import os
import re
import socket
import struct
import time
import zlib
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Optional, Union

from weave_client import codec
from weave_client.address import Address, default_address, parse_address
from weave_client.connection import ask, connect, prove

if TYPE_CHECKING:  # extras of the package, imported where they are used
    import numpy
    import PIL.Image


class NoImage(Exception):
    """The server's answer is an error; the connection can be used again.

    `code` is an ErrorCode, or a number that this version doesn't know. `status` is 400 if the request is to blame,
    500 if it is the server: then the same request may succeed later.
    """

    def __init__(self, error: codec.Error) -> None:
        known = codec.ERROR_CODES.get(error.error_code)  # others are legal: W1-ERR-006
        self.code: int = error.error_code if known is None else known
        self.status = error.status
        self.message = codec.printable(error.error_msg)
        super().__init__(f"{f'error {error.error_code}' if known is None else known.name}: {self.message}")


@dataclass(frozen=True)
class Image:
    """Pixels, a byte for each channel: rows from the top, pixels from the left, without padding."""

    width: int
    height: int
    channels: int  # 3 is RGB, 4 is RGBA
    pixels: bytes
    generation_time_ms: int  # without the time in the server's queue

    def numpy(self) -> numpy.ndarray[tuple[int, int, int], numpy.dtype[numpy.uint8]]:
        """The same bytes as an array [row, column, channel] that can't be written to. Needs NumPy."""
        import numpy
        return numpy.frombuffer(self.pixels, numpy.uint8).reshape(self.height, self.width, self.channels)

    def pil(self) -> PIL.Image.Image:
        """A copy as an image of Pillow, which has to be installed."""
        import PIL.Image
        mode = "RGB" if self.channels == 3 else "RGBA"
        return PIL.Image.frombytes(mode, (self.width, self.height), self.pixels)

    def png(self) -> bytes:
        """A PNG file."""
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        row = self.width * self.channels
        # Every row begins with its filter: none.
        rows = b"".join(b"\0" + self.pixels[at:at + row] for at in range(0, len(self.pixels), row))
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2 if self.channels == 3 else 6, 0, 0, 0)
        return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes a PNG file, over one that is there."""
        with open(path, "wb") as file:
            file.write(self.png())


class Client:
    """A connection to a server, for one request at a time and one thread.

    It connects when it is first needed, and again after a call that broke off. Leaving its `with` block closes it; a
    server may give up an image for which nobody waits any more.
    """

    def __init__(self, address: Optional[str] = None, *, token: Optional[str] = None, timeout: float = math.inf) -> None:
        """`address` is the path of a Unix socket, host:port or tcp://host:port; without it, where weaved listens.

        `token` is for TCP: the 64 digits of the server's --token-file, which the server must know. `timeout` is how many seconds a call may take,
        connecting included. Raises ValueError.
        """
        self.address: Address = parse_address(default_address() if address is None else address)
        if token is not None and not re.fullmatch("[0-9a-fA-F]{64}", token):
            raise ValueError("a token must have 64 hexadecimal digits and nothing else")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}, must be more than 0 seconds")
        # Over a Unix socket there is none: the kernel says who connects.
        self._token = bytes.fromhex(token) if token and isinstance(self.address, tuple) else None
        self._timeout = timeout
        self._sock: Optional[socket.socket] = None
        self._last_id = 0

    def generate(
        self,
        prompt: str,
        *,
        width: int = 512,
        height: int = 512,
        steps: int = 28,
        cfg_scale: float = 7.0,
        seed: int = 0,
    ) -> Image:
        """Has one image made and waits for it.

        width and height are in pixels: 64 to 2048, multiples of 64. steps: 1 to 100. cfg_scale: 0.0 to 20.0. seed: a
        u64; 0 leaves the choice to the server. The prompt has at most 2048 bytes of UTF-8.

        Raises OutOfRange (a ValueError) before anything is sent; NoImage if the server answers with an error;
        Broken if it breaks the protocol; TimeoutError, ConnectionError and other OSErrors.
        """
        request_id = self._last_id + 1
        request = codec.build_request(request_id, prompt, width=width, height=height, steps=steps,
                                      cfg_scale=cfg_scale, seed=seed)
        self._last_id = request_id
        deadline = time.monotonic() + self._timeout
        first = b""
        sock, self._sock = self._sock, None
        fresh = sock is None
        if sock is None:
            sock = connect(self.address, self._timeout)
        try:
            if fresh and self._token is not None:
                first = prove(sock, self._token, deadline)
            answer = next(ask(sock, {request_id: request}, deadline, first))
            if isinstance(answer, codec.Response) and (answer.image_width, answer.image_height) != (width, height):
                size = f"{answer.image_width}x{answer.image_height}"
                raise codec.Broken("W1-RSP-002", f"the image is {size}, asked for was {width}x{height}")
        except BaseException:
            sock.close()  # it may be out of step
            raise
        if isinstance(answer, codec.Error):
            if answer.request_id == 0:
                sock.close()  # the server does so, too: W1-CON-008
            else:
                self._sock = sock
            raise NoImage(answer)
        self._sock = sock
        return Image(answer.image_width, answer.image_height, answer.channels, answer.image_data,
                     answer.generation_time_ms)

    def close(self) -> None:
        """Closes the connection. The next call would make another."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
