"""Files appear whole or not at all; locks, hashes, the user's cache folder."""

import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.utils.errors import DataError
from src.utils.files import (
    STALE_S,
    Lock,
    follow_umask,
    hash_file,
    remove_if_empty,
    replace_file,
    temporary_folder,
    user_cache_folder,
    walk,
    write_files,
)
from tests.helpers import ROOT, tree


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


def test_a_file_that_a_library_writes_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with replace_file(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".csv")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {path.name: b"new"}


def test_a_library_that_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="half"), replace_file(path) as temporary:
        temporary.write_text("ne")
        raise ValueError("half written")
    assert tree(tmp_path) == {path.name: b"old"}


def test_a_temporary_folder_goes_with_what_was_made_for_it(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="half"), temporary_folder(folder, ".work-") as work:
        assert work.parent == folder and work.name.startswith(".work-")
        (work / "x").touch()
        raise ValueError("half written")
    assert list(tmp_path.iterdir()) == []
    with temporary_folder(folder) as work:
        (work / "x").touch()
        (work / "x").rename(folder / "x")
    assert tree(tmp_path) == {(folder / "x").relative_to(tmp_path).as_posix(): b""}


def test_what_killed_processes_left_a_day_ago_is_removed(tmp_path):
    for name, age_s in ((".work-old", STALE_S + 60), (".work-new", 0.0), ("mine", STALE_S + 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        then_s = time.time() - age_s
        os.utime(tmp_path / name, (then_s, then_s))
    with temporary_folder(tmp_path, ".work-"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work-new", "mine"]


def test_only_new_empty_folders_are_removed(tmp_path):
    (tmp_path / "earlier").mkdir()
    with remove_if_empty(tmp_path / "earlier"):
        pass
    with remove_if_empty(tmp_path / "new" / "empty"):
        (tmp_path / "new" / "empty").mkdir(parents=True)
        (tmp_path / "new" / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["earlier", "file", "new"]


# Folders ----------------------------------------------------------------------------------------


def test_a_walk_enters_each_folder_once_also_by_links(tmp_path):
    for name in (
        "a/one",
        "a/x/two",
        "a/.hidden/no",
        "a/__MACOSX/no",
        "store/y/three",
        "store/z/four",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/link").symlink_to(tmp_path / "store")
    (tmp_path / "a/before").symlink_to(tmp_path / "store" / "y")  # a part of the former
    (tmp_path / "a/then").symlink_to(tmp_path / "store" / "z")
    (tmp_path / "a/sibling").symlink_to("x")
    (tmp_path / "a/x/up").symlink_to("..")
    (tmp_path / "a/x/above").symlink_to(tmp_path)
    (tmp_path / "a/.link").symlink_to(tmp_path / "store")
    (tmp_path / "store/y/across").symlink_to(tmp_path / "a")
    found = [
        str((place / name).relative_to(tmp_path / "a"))
        for place, _, names in walk(tmp_path / "a")
        for name in names
    ]
    assert found == ["one", "before/three", "link/z/four", "x/two"]


# Locks ------------------------------------------------------------------------------------------


def test_a_lock_is_exclusive_or_shared(tmp_path):
    """Its file is open for writing, without which a file system in the network locks nothing."""
    with Lock(tmp_path / "file") as first, Lock(tmp_path / "file") as second:
        assert fcntl.fcntl(first._descriptor, fcntl.F_GETFL) & os.O_RDWR
        assert first.acquire()
        assert not second.acquire(wait=False)
        assert not second.acquire(shared=True, wait=False)
        assert first.acquire(shared=True)
        assert second.acquire(shared=True, wait=False)
        assert not first.acquire(wait=False)
    with Lock(tmp_path / "file") as third:
        assert third.acquire(wait=False)


def test_a_lock_ends_with_its_process(tmp_path):
    lines = (
        "import sys; from pathlib import Path; from src.utils.files import Lock",
        "lock = Lock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()",
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path / "lock")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder, Lock(tmp_path / "lock") as lock:
        assert holder.stdout.readline() == "True\n"
        assert not lock.acquire(wait=False)
        holder.kill()
        holder.wait()
        assert lock.acquire(wait=False)


def test_a_lock_knows_whether_its_file_is_still_there(tmp_path):
    path = tmp_path / "lock"
    with Lock(path) as lock:
        assert lock.still_locks(path)
        path.unlink()
        assert not lock.still_locks(path)
        path.touch()
        assert not lock.still_locks(path)


# Hashes, the cache ------------------------------------------------------------------------------


def test_hash_of_a_file_of_many_blocks(tmp_path):
    content = np.random.default_rng(0).bytes(3 * 2**20 + 5)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_hash_is_continued_with_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    digest = hashlib.md5(b"before ")
    assert hash_file(tmp_path / "file", digest) == hashlib.md5(b"before content").hexdigest()


def test_a_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "vnet_mindspore"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anna")
    assert user_cache_folder() == Path("/home/anna/.cache/vnet_mindspore")
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_has_no_cache_folder(homeless):
    assert user_cache_folder() is None
