"""Against pydicom's own test files: one picture, compressed by others and stored plainly."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from src.images.dicom import codec


def content_of(name):
    return Path(get_testdata_file(name, download=False)).read_bytes()


def test_values_in_order():
    names = ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm")
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False)).pixel_array
    decoded = codec.decode([content_of(name) for name in names])
    assert len(decoded) == 2
    for values in decoded:
        np.testing.assert_array_equal(values, plain)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_a_bad_file_does_not_end_the_others(capfd, name):
    good = content_of(name)
    other_size = good.replace(
        b"\x28\x00\x10\x00US\x02\x00\x40\x00", b"\x28\x00\x10\x00US\x02\x00\x80\x00"
    )
    assert other_size != good
    noise, size, whole = codec.decode([b"noise" * 100, other_size, good])
    assert isinstance(noise, str) and "64 rows" in size and "128" in size
    assert whole.shape == (64, 64)
    assert capfd.readouterr() == ("", "")


def test_a_dead_child_is_an_answer(monkeypatch):
    """As GDCM's own end on some damaged files: no result for that file nor those after it."""
    monkeypatch.setattr(codec.sys, "executable", "/bin/false")
    (message,) = codec.decode([b"", b""])
    assert "decoder" in message
    monkeypatch.setattr(codec.sys, "executable", "/no/such/python")
    (message,) = codec.decode([b""])
    assert message.startswith("the decoder does not start")
