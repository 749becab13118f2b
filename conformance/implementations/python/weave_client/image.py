"""What a server has made, and the file that says how."""
from __future__ import annotations

import json
import os
import secrets
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from weave_client import __version__, codec

if TYPE_CHECKING:  # extras of the package, imported where they are used
    import numpy
    import PIL.Image


@dataclass(frozen=True)
class Image:
    """Pixels, a byte for each channel: rows from the top, pixels from the left, without padding.

    What a client made also has what it was made of: the same prompt, size, steps, cfg_scale and seed make it again.
    """

    width: int
    height: int
    channels: int  # 3 is RGB, 4 is RGBA
    pixels: bytes
    generation_time_ms: int  # without the time in the server's queue
    prompt: str = ""
    steps: int = 0
    cfg_scale: float = 0.0
    seed: int = 0  # the one that was used; 0: not known how the image was made

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
        """A PNG file that says how the image was made, as `weave generate` writes it, so that `weave verify` makes it again."""
        row = self.width * self.channels
        # Every row begins with its filter: none.
        rows = b"".join(b"\0" + self.pixels[at:at + row] for at in range(0, len(self.pixels), row))
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2 if self.channels == 3 else 6, 0, 0, 0)
        texts = b"".join(_text(keyword, text) for keyword, text in self._texts())
        return b"".join((b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head), texts, _chunk(b"IDAT", zlib.compress(rows)),
                         _chunk(b"IEND", b"")))

    def _texts(self) -> list[tuple[str, str]]:
        """What the file says: the form that programs for Stable Diffusion have agreed on, and all that it takes as JSON."""
        if self.seed == 0:
            return []
        scale = _shortest(self.cfg_scale)
        settings = {"Steps": self.steps, "Sampler": "unknown", "CFG scale": repr(scale).removesuffix(".0"),
                    "Seed": self.seed, "Size": f"{self.width}x{self.height}",
                    "Version": f"Weave {__version__}"}
        recipe = {"protocol": codec.VERSION, "model_id": codec.MODEL_ID, "prompt": self.prompt, "width": self.width,
                  "height": self.height, "steps": self.steps, "cfg_scale": scale, "seed": self.seed, "provider": "local"}
        parameters = self.prompt + "\n" + ", ".join(f"{key}: {value}" for key, value in settings.items())
        return [("parameters", parameters), ("Weave", json.dumps(recipe, ensure_ascii=False, separators=(",", ":")))]

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes a PNG file (see `png`), over one that is there: complete or not at all. Raises OSError."""
        data = self.png()
        target = os.path.realpath(os.fspath(path))  # a link's target is what gets replaced
        mode = None
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            pass
        if mode is not None and not stat.S_ISREG(mode):
            raise OSError(f"can't write {os.fspath(path)}: it is there and is no regular file")
        part = os.path.join(os.path.dirname(target), f".weave.{secrets.token_hex(8)}.part")
        try:
            file = open(part, "xb")
        except OSError as fault:  # which would name a file that nobody has heard of
            raise type(fault)(fault.errno, fault.strerror, os.fspath(path)) from None
        try:
            with file:
                file.write(data)
                if mode is not None:
                    os.chmod(part, stat.S_IMODE(mode))
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text(keyword: str, text: str) -> bytes:
    key = keyword.encode() + b"\0"
    try:
        return _chunk(b"tEXt", key + text.encode("latin-1"))  # is read everywhere, but holds Latin-1 only
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key + b"\0\0\0\0" + text.encode())


def _shortest(value: float) -> float:
    """The number with the fewest digits that is the same one as a binary32, as which it was sent."""
    def binary32(number: float) -> bytes:
        return struct.pack(">f", number)

    return next(short for digits in range(1, 10) if binary32(short := float(f"{value:.{digits}g}")) == binary32(value))
