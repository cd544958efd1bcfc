"""A folder for results: our own earlier files may be replaced, other people's never.

.vnet_outputs.json   names of the files that this program wrote there
.vnet_outputs.lock   there while that list or a table is being changed
.vnet_running.json   there while results are written: the cases of all who write
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DataError, reason_of
from .files import check_name, write_files

log = logging.getLogger(__name__)

MANIFEST = ".vnet_outputs.json"
LOCK = ".vnet_outputs.lock"
RUNNING = ".vnet_running.json"


def outputs_in(folder: str | Path) -> set[str]:
    """Names of the files in a folder that this program wrote."""
    return {name for name in _remembered(folder) if Path(folder, name).exists()}


def _remembered(folder):
    manifest = Path(folder, MANIFEST)
    try:
        return set(map(str, json.loads(manifest.read_text()))) if manifest.is_file() else set()
    except (ValueError, TypeError):
        return set()  # not what this program wrote: no file here counts as ours


def check(folder: str | Path, names: Iterable[str]) -> list[str]:
    """Which of the names are there already, all of them our own earlier files.

    Raises:
        DataError: one of them is not ours.
    """
    folder, names = Path(folder), list(names)
    for name in names:
        check_name(folder / name)
    ours = _remembered(folder)
    present = [name for name in names if (folder / name).exists()]
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise DataError(
            f"{folder / foreign[0]}: there already, and not written by this program; move it away "
            "or choose another folder"
        )
    return present


def announce(folder: str | Path, names: Iterable[str]) -> None:
    """`check`, with a line that says how many files of an earlier run will be replaced."""
    present = check(folder, names)
    if present:
        log.info(f"{folder}: replacing {len(present)} file(s) of an earlier run")


def claim(folder: str | Path, names: list[str]) -> None:
    """Makes `folder` ready for files of these names, to be called right before they are written.

    Files of an earlier evaluation or prediction are replaced, with a line that says so.

    Args:
        folder: created if absent.
        names: file names that will be written.

    Raises:
        DataError: the folder cannot be written, or one of the files is there and is not ours.
    """
    with locked(folder):
        announce(folder, names)
        _remember(folder, _remembered(folder).union(names))


@contextmanager
def writing(folder: str | Path, names: Iterable[str]) -> Iterator[None]:
    """Names are ours from here on, but for those that are not there in the end.

    Raises:
        DataError: the folder cannot be written, or one of the files is there and is not ours.
    """
    names = set(names)
    with locked(folder):
        check(folder, names)
        _remember(folder, _remembered(folder) | names)
    try:
        yield
    finally:
        if absent := {name for name in names if not Path(folder, name).exists()}:
            with locked(folder):
                _remember(folder, _remembered(folder) - absent)


def remove(folder: str | Path, names: set[str]) -> None:
    """Removes our own earlier files of these names, with a line that says so."""
    if names:
        log.info(f"{folder}: removing {len(names)} file(s) of an earlier run")
    with locked(folder):
        for name in names:
            Path(folder, name).unlink()
        _remember(folder, _remembered(folder) - names)


def _remember(folder, names):
    write_files({Path(folder, MANIFEST): json.dumps(sorted(names), indent=2).encode()})


# --- several processes ---------------------------------------------------------------------------


@contextmanager
def running(folder: str | Path, cases: Iterable[str] | None = None) -> Iterator[bool]:
    """Who writes results into a folder: one alone, or several with different cases.

    Args:
        folder: created if absent, and gone again if nothing was written.
        cases: that are written; None: this process must be the only one.

    Yields:
        Whether no other process is writing there. What a killed one left is tidied up then.

    Raises:
        DataError: another process writes there, and wants to be alone or has one of these cases;
            the folder cannot be written.
    """
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    file = None
    try:
        with locked(folder):
            file = _opened(folder / RUNNING)
            alone = _start(folder, file, cases)
        yield alone
    finally:
        if file is not None:
            with locked(folder):
                if _try_lock(file, fcntl.LOCK_EX):
                    (folder / RUNNING).unlink(missing_ok=True)
                os.close(file)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _start(folder, file, cases):
    """Takes the lock, exclusive or shared, and notes the cases."""
    alone = _try_lock(file, fcntl.LOCK_EX)
    if not alone and (cases is None or not _try_lock(file, fcntl.LOCK_SH)):
        raise DataError(
            f"{folder}: another evaluation or prediction is writing there; wait for it or choose "
            "another folder"
        )
    others = [] if alone else json.loads(os.pread(file, os.fstat(file).st_size, 0) or b"[]")
    if twice := sorted(set(others).intersection(cases or ())):
        raise DataError(
            f"{folder}: another prediction is writing its {twice[0]} there; wait for it, choose "
            "another folder, or rename the image"
        )
    os.truncate(file, 0)
    os.pwrite(file, json.dumps(sorted({*others, *(cases or ())})).encode(), 0)
    if alone:
        _tidy(folder)
        if cases is not None:
            _try_lock(file, fcntl.LOCK_SH)
    return alone


def _tidy(folder):
    """Removes what killed processes left: names of files never written, and files half written."""
    if _remembered(folder) != outputs_in(folder):
        _remember(folder, outputs_in(folder))
    for scratch in folder.glob(".writing-*"):  # of src.images.writing
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds a folder, created if absent, for the moment of a change; others wait.

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(folder, LOCK)
    while True:
        file = _opened(path)
        with suppress(OSError):  # a file system without locks: as without other processes
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(OSError):  # gone: who held the lock before removed it
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _opened(path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be written ({reason_of(error)}); choose another folder"
        ) from None


def _try_lock(file, kind):
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
