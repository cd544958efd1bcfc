"""Small files appear whole or not at all."""

import os
import stat

import pytest

from src.utils.errors import DataError
from src.utils.files import follow_umask, write_files


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


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)]
)
def test_modes_follow_the_umask(tmp_path, umask, file, folder):
    (tmp_path / "private").touch(mode=0o400)
    (tmp_path / "folder").mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        follow_umask(tmp_path / "private")
        follow_umask(tmp_path / "folder", executable=True)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "folder")]
    assert modes == [file, folder]


def test_a_folder_that_is_none_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(File exists; check which of these"):
        write_files({tmp_path / "file" / "x": b""})
