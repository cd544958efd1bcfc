"""Decodes JPEG, JPEG-LS and JPEG 2000 pixel data of DICOM files with GDCM, in a child process.

GDCM aborts the process on some damaged files, and its libraries write to standard error. `decode`
starts the child, which runs this module.
"""

import io
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from ...utils.process import module_command

# Of JPEG Extended, 8 bits only.
SYNTAXES = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, JPEG2000Lossless, JPEG2000)
TIMEOUT_S = 600  # for a whole series, which takes seconds
# Warnings of codecs that continue despite damaged data.
DAMAGE = rb"(?i)corrupt jpeg data|premature end|stream too short|truncated"
J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ markers
SOF_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start of frame; F7: JPEG-LS


def decode(contents: list[bytes]) -> list[np.ndarray | str]:
    """Decodes the pixel data of DICOM files.

    Args:
        contents: the bytes of whole files, each with a transfer syntax of `SYNTAXES`.

    Returns:
        For each file the stored values, with pydicom's axes, or an error message. The list ends at
        a file on which the child process died.
    """
    request = b"".join(struct.pack("<Q", len(content)) + content for content in contents)
    try:
        run = subprocess.run(
            module_command(__name__),
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return [f"not decoded within {TIMEOUT_S} s"]
    except OSError as error:
        return [f"the decoder does not start: {error}"]
    results = list(_results(io.BytesIO(run.stdout)))
    if len(results) < len(contents):
        results.append("the decoder aborted on it")
    return results


def _results(file):
    while len(head := file.read(9)) == 9:
        kind, length = struct.unpack("<cQ", head)
        content = file.read(length)
        if len(content) < length:  # the child died while writing
            return
        if kind == b"E":
            yield content.decode()
        else:
            yield np.load(io.BytesIO(content), allow_pickle=False)


def _codestream_format(frame: bytes) -> tuple[int, int, int, int]:
    """Returns rows, columns, components, bits of a JPEG (SOF segment) or JPEG 2000 (SIZ) frame."""
    start = frame.find(J2K_START)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        components, bits = struct.unpack_from(">HB", frame, start + 40)
        return bottom - top, right - left, components, (bits & 0x7F) + 1
    position = 2
    while frame[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", frame, position + 1)
        if marker in SOF_MARKERS:
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return rows, columns, components, bits
        position += 2 + length
    raise ValueError("no start of frame in the JPEG stream")


def _decode_file(content: bytes, log: BinaryIO) -> np.ndarray:
    """Decodes one file; `log` receives what the C libraries print.

    Exceptions of many types are raised for damaged files.
    """
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    count = int(ds.get("NumberOfFrames") or 1)
    for frame in generate_frames(ds.PixelData, number_of_frames=count):
        rows, columns, components, bits = _codestream_format(frame)
        if (rows, columns, components) != (ds.Rows, ds.Columns, 1) or bits > ds.BitsAllocated:
            raise ValueError(
                f"compressed frame of {rows} rows, {columns} columns, {components} component(s), "
                f"{bits} bits, the header says {ds.Rows}, {ds.Columns}, 1, {ds.BitsAllocated}"
            )
    log.truncate(0)
    values = pixel_array(ds, decoding_plugin="gdcm")
    log.seek(0)
    if damage := re.search(DAMAGE, log.read()):
        raise ValueError(damage[0].decode())
    return values


def _requests(file: BinaryIO) -> Iterable[bytes]:
    while size := file.read(8):
        yield file.read(struct.unpack("<Q", size)[0])


def main() -> None:
    """The child process: length and bytes of each file in, kind, length and result out."""
    output = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as log:
        for descriptor in (1, 2):  # the C libraries print there
            os.dup2(log.fileno(), descriptor)
        for content in _requests(sys.stdin.buffer):
            result = io.BytesIO()
            try:
                np.save(result, _decode_file(content, log), allow_pickle=False)
                kind, output_bytes = b"A", result.getvalue()
            except Exception as error:  # pydicom and GDCM raise exceptions of many types
                kind, output_bytes = b"E", str(error).encode()
            output.write(kind + struct.pack("<Q", len(output_bytes)) + output_bytes)
            output.flush()


if __name__ == "__main__":
    main()
