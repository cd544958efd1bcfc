"""Small files appear whole or not at all."""

import pytest

from src.atomic import write_files
from src.errors import DataError


def test_files_are_written_and_replaced(tmp_path):
    for content in (b"one", b"two"):
        write_files({tmp_path / "a" / "x": content, tmp_path / "y": content[::-1]})
    assert (tmp_path / "a" / "x").read_bytes() == b"two"
    assert (tmp_path / "y").read_bytes() == b"owt"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_full_disk_leaves_all_as_it_was(tmp_path, full_disk):
    write_files({tmp_path / "small": b"old", tmp_path / "large": b"old"})
    with full_disk(100), pytest.raises(DataError, match="large: cannot be written"):
        write_files({tmp_path / "small": b"new", tmp_path / "large": bytes(1000)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "small": b"old",
        "large": b"old",
    }
