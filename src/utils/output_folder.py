"""A folder for results: our own earlier files may be replaced, other people's never.

.vnet_outputs.json   names of the files that this program wrote there
.vnet_outputs.lock   there while that list or a table is being changed
.vnet_running.json   there while results are written: the cases of all who write
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import DataError, reason_of
from .files import WRITING, Lock, check_name, remove_if_empty, write_files

log = logging.getLogger(__name__)

MANIFEST = ".vnet_outputs.json"
LOCK = ".vnet_outputs.lock"
RUNNING = ".vnet_running.json"


def outputs_in(folder: str | Path) -> set[str]:
    """Names of the files in a folder that this program wrote."""
    return {name for name in _remembered(folder) if Path(folder, name).exists()}


def _remembered(folder: str | Path) -> set[str]:
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


def _remember(folder: str | Path, names: Iterable[str]) -> None:
    write_files({Path(folder, MANIFEST): json.dumps(sorted(names), indent=2).encode()})


# --- several processes ---------------------------------------------------------------------------


@contextmanager
def running(folder: str | Path, cases: Collection[str] | None = None) -> Iterator[bool]:
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
    with ExitStack() as cleanup:
        cleanup.enter_context(remove_if_empty(folder))
        with locked(folder):
            lock = _open_lock(folder / RUNNING)
            cleanup.callback(_stop, folder, lock)
            alone = _start(folder, lock, cases)
        yield alone


def _start(folder: Path, lock: Lock, cases: Collection[str] | None) -> bool:
    """Acquires the lock, exclusive or shared, and notes the cases; returns whether it is alone."""
    running_file = folder / RUNNING
    alone = lock.acquire(wait=False)
    if not alone and (cases is None or not lock.acquire(shared=True, wait=False)):
        raise DataError(
            f"{folder}: another evaluation or prediction is writing there; wait for it or choose "
            "another folder"
        )
    others = [] if alone else json.loads(running_file.read_text() or "[]")
    if twice := sorted(set(others).intersection(cases or ())):
        raise DataError(
            f"{folder}: another prediction is writing its {twice[0]} there; wait for it, choose "
            "another folder, or rename the image"
        )
    # In place, since a new file would have no lock.
    running_file.write_text(json.dumps(sorted({*others, *(cases or ())})))
    if alone:
        _tidy(folder)
        if cases is not None:
            lock.acquire(shared=True, wait=False)
    return alone


def _stop(folder: Path, lock: Lock) -> None:
    """Releases the lock; the last process removes its file."""
    with locked(folder):
        if lock.acquire(wait=False):
            (folder / RUNNING).unlink(missing_ok=True)
        lock.close()


def _tidy(folder: Path) -> None:
    """Removes what killed processes left: names of files never written, and files half written."""
    if _remembered(folder) != outputs_in(folder):
        _remember(folder, outputs_in(folder))
    for scratch in folder.glob(f"{WRITING}*"):
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds a folder, created if absent, for the moment of a change; others wait.

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(folder, LOCK)
    while True:
        lock = _open_lock(path)
        lock.acquire()
        if lock.is_of(path):
            break
        lock.close()  # the process that held it has removed the file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _open_lock(path: Path) -> Lock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Lock(path)
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be written ({reason_of(error)}); choose another folder"
        ) from None
