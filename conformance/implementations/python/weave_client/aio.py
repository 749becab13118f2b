"""The same as Client for asyncio: an AsyncClient has a server make images, several at a time."""
from __future__ import annotations

import asyncio
import math
from typing import Optional

from weave_client import codec
from weave_client.address import Address
from weave_client.client import Job, NoImage, Server, knows_its_arguments
from weave_client.connection import RECEIVE_SIZE, Prover, Unreachable, closed_early
from weave_client.image import Image


class AsyncClient:
    """Asks a server for images, from any number of tasks. Each call has a connection of its own.

    A call that is cancelled, by asyncio.timeout or in another way, closes its connection at once: a server may give up an
    image for which nobody waits any more (`weaved` does).
    """

    def __init__(self, address: Optional[str] = None, *, token: Optional[str] = None, timeout: float = math.inf,
                 at_once: int = 8) -> None:
        """`at_once` is how many calls ask the server at the same time; the others wait. The rest is as Client has it."""
        self._server = Server.of(address, token, timeout)
        self.address: Address = self._server.address
        self._at_once = at_once
        self._room: Optional[asyncio.Semaphore] = None  # made within the event loop to which Python 3.9 ties it

    @knows_its_arguments
    async def generate(
        self,
        prompt: str,
        *,
        width: int = 512,
        height: int = 512,
        steps: int = 28,
        cfg_scale: float = 7.0,
        seed: int = 0,
    ) -> Image:
        """Has one image made and waits for it: arguments and errors are those of Client.generate.

        `timeout` begins when there is room for the call.
        """
        job = Job.of(1, prompt, width, height, steps, cfg_scale, seed)
        if self._room is None:
            self._room = asyncio.Semaphore(self._at_once)
        limit = None if self._server.timeout == math.inf else self._server.timeout
        async with self._room:
            try:
                return await asyncio.wait_for(self._ask(job), limit)
            except asyncio.TimeoutError:  # which is another before Python 3.11
                raise TimeoutError("the time is up") from None

    async def _ask(self, job: Job) -> Image:
        try:
            if isinstance(self.address, tuple):
                reader, writer = await asyncio.open_connection(*self.address)
            else:
                reader, writer = await asyncio.open_unix_connection(self.address)
        except OSError as fault:
            raise Unreachable(self.address, fault) from fault
        try:
            proof = await self._prove(reader, writer)
            writer.write(proof + job.frame)
            answers = codec.ClientReader()
            while data := await self._read(reader):
                for answer in answers.feed(data):
                    if isinstance(answer, codec.Error) and answer.request_id in (0, job.request_id):
                        raise NoImage(answer)
                    if isinstance(answer, codec.Error) or answer.request_id != job.request_id:
                        raise codec.Broken("W1-CON-002", f"no answer to request_id {answer.request_id} is due")
                    return job.image(answer)
            raise closed_early(answers, 1)
        finally:
            writer.transport.abort()  # without waiting for anything to be sent

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        if self._server.token is None:
            return b""
        prover = Prover(self._server.token)
        writer.write(prover.first)
        while data := await self._read(reader):
            if prover.feed(data):
                break
        return prover.proof()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(RECEIVE_SIZE)
        except ConnectionError:  # the server closed with some of ours unread
            return b""
