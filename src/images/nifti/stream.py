"""The bytes of a NIfTI file, decompressed where they are gzip."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ...utils.errors import DataError

GZIP_START = b"\x1f\x8b"
CHUNK_BYTES = 2**20


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Opens a file; decompresses it if its first two bytes are gzip's, whatever its name.

    Raises:
        DataError: missing, not readable, or damaged gzip data.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP_START
            file.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: its gzip data is damaged ({reason}); get the file again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from None


def _chunks(stream, count):
    """Yields the next `count` bytes in chunks; fewer if the stream ends before."""
    while count > 0:
        try:
            chunk = stream.read1(min(count, CHUNK_BYTES))
        except EOFError:
            return
        if not chunk:
            return
        count -= len(chunk)
        yield chunk


def read_up_to(stream: BinaryIO, count: int) -> bytearray:
    """Reads up to `count` bytes; allocates for what is there, not for what a header claims."""
    content = bytearray()
    for chunk in _chunks(stream, count):
        content += chunk
    return content


def skip(stream: BinaryIO, count: int) -> int:
    """Skips up to `count` bytes; returns how many there were."""
    return sum(map(len, _chunks(stream, count)))
