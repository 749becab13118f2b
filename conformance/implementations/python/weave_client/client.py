"""What programs use: a Client has a server make an Image."""
from __future__ import annotations

import functools
import inspect
import math
import re
import secrets
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Optional, TypeVar, cast

from weave_client import codec
from weave_client.address import Address, default_address, parse_address
from weave_client.connection import HungUp, ask, connect, prove
from weave_client.image import Image

MEANT = {"cfg": "cfg_scale", "guidance_scale": "cfg_scale", "num_inference_steps": "steps", "timeout": "Client(timeout=…)"}


Method = TypeVar("Method", bound=Callable[..., object])


def knows_its_arguments(method: Method) -> Method:
    """For who takes an argument's name from another library: the error says what it is called here."""
    names = inspect.signature(method).parameters

    @functools.wraps(method)
    def call(*values: object, **named: object) -> object:
        for name in named.keys() - names.keys():
            hint = f"; it is called {MEANT[name]}" if name in MEANT else ""
            raise TypeError(f"{method.__name__}() has no argument {name!r}{hint}")
        return method(*values, **named)

    return cast(Method, call)


class NoImage(Exception):
    """The server's answer is an error; the connection can be used again.

    `code` says why; a number that this version doesn't know has a name such as UNKNOWN_4242. `status` is 400 if the request
    is to blame, 500 if it is the server: then the same request may succeed later.
    """

    def __init__(self, error: codec.Error) -> None:
        known = error.error_code in codec.ERROR_CODES
        self.code: codec.ErrorCode = codec.error_code(error.error_code, error.status)
        self.status = error.status
        self.message = codec.printable(error.error_msg)
        super().__init__(f"{self.code.name if known else f'error {error.error_code}'}: {self.message}")


class Server(NamedTuple):
    """Where to connect, with what, and how long a call may take."""

    address: Address
    token: Optional[bytes]  # of TCP: over a Unix socket the kernel says who connects
    timeout: float

    @classmethod
    def of(cls, address: Optional[str], token: Optional[str], timeout: float) -> Server:
        parsed = parse_address(default_address() if address is None else address)
        if token is not None and not re.fullmatch("[0-9a-fA-F]{64}", token):
            raise ValueError("a token must have 64 hexadecimal digits and nothing else")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}, must be more than 0 seconds")
        return cls(parsed, bytes.fromhex(token) if token and isinstance(parsed, tuple) else None, timeout)


class Job(NamedTuple):
    """One image to be made: what is asked, and what may be answered."""

    frame: bytes
    request_id: int
    prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int

    @classmethod
    def of(cls, request_id: int, prompt: str, width: int, height: int, steps: int, cfg_scale: float, seed: int) -> Job:
        if seed == 0:
            seed = draw_seed()
        try:
            frame = codec.build_request(request_id, prompt, width=width, height=height, steps=steps, cfg_scale=cfg_scale,
                                        seed=seed)
        except codec.OutOfRange as fault:
            if not fault.field.startswith("clip_l"):
                raise
            raise wrong_prompt(prompt) from None  # it goes to all encoders, of which nobody here has heard
        return cls(frame, request_id, prompt, width, height, steps, cfg_scale, seed)

    def image(self, answer: codec.Response) -> Image:
        """Raises Broken if it is another image than was asked for."""
        if (answer.image_width, answer.image_height) != (self.width, self.height):
            size = f"{answer.image_width}x{answer.image_height}"
            raise codec.Broken("W1-RSP-002", f"the image is {size}, asked for was {self.width}x{self.height}")
        return Image(answer.image_width, answer.image_height, answer.channels, answer.image_data, answer.generation_time_ms,
                     self.prompt, self.steps, self.cfg_scale, self.seed)


def wrong_prompt(prompt: str) -> codec.OutOfRange:
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError:
        return codec.OutOfRange("prompt", "not UTF-8", "UTF-8")
    if size in codec.PROMPT_LENGTHS:
        return codec.OutOfRange("prompt", "text with a byte 0", "without")
    return codec.OutOfRange("prompt", f"{size} bytes long" if size else "empty", "1 to 2048 bytes")


def draw_seed() -> int:
    """32 bits, never 0: what other programs take, and not too much to type."""
    return secrets.randbelow(2**32 - 1) + 1


class Client:
    """A connection to a server, for one request at a time and one thread.

    It connects when it is first needed, and again after a call that broke off. If the server has closed a connection that
    was idle, the call is made once more on a new one, unless anything of an answer had come: that is safe, since a request
    always has a seed. Leaving its `with` block closes it; a server may give up an image for which nobody waits any more.
    """

    def __init__(self, address: Optional[str] = None, *, token: Optional[str] = None, timeout: float = math.inf) -> None:
        """`address` is the path of a Unix socket, host:port or tcp://host:port; without it, where weaved listens.

        `token` is for TCP: the 64 digits of the server's --token-file, which the server must know. `timeout` is how many
        seconds a call may take, connecting included. Raises ValueError.
        """
        self._server = Server.of(address, token, timeout)
        self.address: Address = self._server.address
        self._sock: Optional[socket.socket] = None
        self._last_id = 0

    @knows_its_arguments
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
        u64; for 0 the client draws one, which Image.seed says. The prompt has at most 2048 bytes of UTF-8.

        Raises OutOfRange (a ValueError) before anything is sent; NoImage if the server answers with an error;
        Broken if it breaks the protocol; Unreachable (a ConnectionError), TimeoutError and other OSErrors.
        """
        job = Job.of(self._last_id + 1, prompt, width, height, steps, cfg_scale, seed)
        self._last_id = job.request_id
        deadline = time.monotonic() + self._server.timeout
        if self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            self.close()  # whatever comes unasked, it is the end
        was_idle = self._sock is not None
        try:
            return self._ask(job, deadline)
        except HungUp:
            if not was_idle:
                raise
            return self._ask(job, deadline)

    def _ask(self, job: Job, deadline: float) -> Image:
        first = b""
        sock, self._sock = self._sock, None
        fresh = sock is None
        if sock is None:
            sock = connect(self.address, deadline - time.monotonic())
        try:
            if fresh and self._server.token is not None:
                first = prove(sock, self._server.token, deadline)
            answer = next(ask(sock, {job.request_id: job.frame}, deadline, first))
            result = NoImage(answer) if isinstance(answer, codec.Error) else job.image(answer)
        except BaseException:
            sock.close()  # it may be out of step
            raise
        if answer.request_id == 0:
            sock.close()  # the server does so, too: W1-CON-008
        else:
            self._sock = sock
        if isinstance(result, NoImage):
            raise result
        return result

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
