"""Small files, written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path, PurePath

from .errors import DataError, reason_of


def write_files(files: dict[Path, bytes]) -> None:
    """Writes all files under temporary names beside them, then renames each to its own.

    Args:
        files: path -> content; folders are made where absent.

    Raises:
        DataError: the folder cannot be written or the disk is full; what was there stays.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
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


def follow_umask(path: Path, executable: bool = False) -> None:
    """Gives a file or folder the permissions of any new one; some libraries make theirs private."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if executable else 0o666) & ~umask)


def check_name(path: str | PurePath) -> None:
    """Raises a DataError for a path that is not UTF-8 on the disk: ITK would end the process."""
    try:
        if os.fsencode(path) == str(path).encode():
            return
    except UnicodeEncodeError:
        pass
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    raise DataError(
        f"{shown}: the name of this file or of a folder above it is not UTF-8; rename it, or where "
        "the terminal is set to another encoding, start with LC_ALL=C.UTF-8 before the command"
    )
