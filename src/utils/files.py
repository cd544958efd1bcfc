"""Files and folders: names, atomic writes, locks, hashes, the user's cache folder."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from .errors import DataError, reason_of

CACHE = "vnet_mindspore"  # in the user's cache folder
WRITING = ".writing-"  # prefix of temporary folders
LOCK_FILE = ".lock"  # of a folder that one process at a time may write
STALE_S = 86_400.0  # after which a temporary folder is one that a killed process left


def printable(text: str | PurePath) -> str:
    """Returns a name or message with bytes that are not UTF-8 written as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def check_name(path: str | PurePath) -> None:
    """Raises a DataError for a path that is not UTF-8 on the disk: ITK would end the process."""
    try:
        if os.fsencode(path) == str(path).encode():
            return
    except UnicodeEncodeError:
        pass
    raise DataError(
        f"{printable(path)}: the name of this file or of a folder above it is not UTF-8; rename "
        "it, or where the terminal is set to another encoding, start with LC_ALL=C.UTF-8 before "
        "the command"
    )


def hash_file(path: str | Path, digest: "hashlib._Hash | None" = None) -> str:
    """Returns the hash of a file in hexadecimal digits.

    Args:
        path: of the file.
        digest: the hash to continue with the file's content; None: a new SHA-256.
    """
    digest = hashlib.sha256() if digest is None else digest
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache_folder() -> Path | None:
    """Returns this project's folder in the user's cache, None for a user without a home."""
    import platformdirs  # within `run`, which says that a package is missing

    try:
        folder = platformdirs.user_cache_path(CACHE)
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return None
    return folder if folder.is_absolute() else None


# --- atomic writes -------------------------------------------------------------------------------


def _temporary_path(path: Path) -> Path:
    """A name beside `path`, different in each process, with the suffix that libraries expect."""
    return path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")


def write_files(files: dict[Path, bytes]) -> None:
    """Writes all files under temporary names beside them, then renames each to its own name.

    Args:
        files: path -> content; missing folders are created.

    Raises:
        DataError: the folder cannot be written or the disk is full, and earlier files are
            unchanged; or a file cannot be renamed, and those before it are replaced.
    """
    temporary = {path: _temporary_path(path) for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in files:
            temporary[path].replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason_of(error)})") from error
    finally:
        for leftover in temporary.values():
            with suppress(OSError):
                leftover.unlink()


def write_json(path: Path, content: object, **options: Any) -> None:
    """Writes JSON as `write_files` does, indented by two; `options` of `json.dumps`."""
    text = json.dumps(content, **{"indent": 2, **options})
    write_files({path: f"{text}\n".encode()})


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Goes through a folder tree as `os.walk` does, and through links to other places, too.

    Hidden folders are left out, and links to folders that are walked anyway or hold the tree.

    Yields:
        A folder, the names of its folders and those of its files, both sorted. Names that are
        removed from the first list are not entered.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
        )

    root = folder.resolve()
    linked: list[Path] = []  # folders that were entered by a link

    def is_new(path: Path) -> bool:
        if not path.is_symlink():
            return not linked or path.resolve() not in linked
        target = path.resolve()
        if root.is_relative_to(target) or any(target.is_relative_to(t) for t in (root, *linked)):
            return False
        linked.append(target)
        return True

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        path = Path(place)
        seen = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        folders[:] = [name for name in seen if is_new(path / name)]
        yield path, folders, sorted(names)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there then replaces `path`.

    For libraries that write files themselves. When the block raises, `path` is unchanged and the
    temporary file is removed.
    """
    temporary = _temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def remove_if_empty(folder: Path) -> Iterator[None]:
    """Removes `folder` and its parents at the end, if they are empty and were not there before."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for path in new:
                path.rmdir()


@contextmanager
def temporary_folder(folder: Path, prefix: str = WRITING) -> Iterator[Path]:
    """Yields a hidden folder inside `folder`, which is made if absent, and removes it at the end.

    Those that killed processes left a day ago or earlier are removed, too.

    Files are written there and renamed to their places once all are complete; a rename within one
    file system is atomic.

    Args:
        folder: where the files go.
        prefix: of the hidden folder's name.
    """
    with remove_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(f"{prefix}*"):
            with suppress(OSError):
                if earlier.stat().st_mtime < time.time() - STALE_S:
                    shutil.rmtree(earlier, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name:
            yield Path(name)


def follow_umask(path: Path, executable: bool = False) -> None:
    """Sets the permissions that the umask gives new files; some libraries write private ones.

    Args:
        path: of the file or folder.
        executable: whether it is a program or a folder.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if executable else 0o666) & ~umask)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names of a folder's files, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- locks ---------------------------------------------------------------------------------------


class Lock:
    """An advisory lock on a file (flock); released even if the process is killed.

    On a file system without locks, `acquire` succeeds as if no other process were there.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file, which is created if absent; does not lock it yet."""
        # Writable: NFS locks nothing else. For that reason it is no folder, either.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def acquire(self, shared: bool = False, wait: bool = True) -> bool:
        """Acquires the lock, or changes it between exclusive and shared.

        Args:
            shared: whether other processes may have a shared lock at the same time.
            wait: whether to wait until other processes release theirs.

        Returns:
            Whether it is locked now; False only without `wait`.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def still_locks(self, path: Path) -> bool:
        """Whether `path` is still the opened file, which another process may have removed."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_lock(path: Path) -> Lock:
    """Returns the lock of a folder, which is made if absent.

    Args:
        path: of the lock's file in the folder.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Lock(path)
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be written ({reason_of(error)}); choose another folder"
        ) from None
