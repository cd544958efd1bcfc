"""Folders for results: files as this program wrote them may be replaced, all others never.

.vnet_outputs.json   names and SHA-256 hashes of the files that this program wrote there
.vnet_outputs.lock   exists while that list or a table is being changed
.vnet_running.json   exists while processes write results: the cases of all of them
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from .errors import DataError
from .files import WRITING, Lock, check_name, hash_file, open_lock, remove_if_empty, write_json

log = logging.getLogger(__name__)

MANIFEST = ".vnet_outputs.json"
LOCK = ".vnet_outputs.lock"
RUNNING = ".vnet_running.json"


def list_outputs(folder: str | Path) -> set[str]:
    """Returns the names of the files in a folder that this program wrote, edited since or not."""
    return {name for name in _read_manifest(folder) if Path(folder, name).exists()}


def _read_manifest(folder: str | Path) -> dict[str, str | None]:
    """{file: hash of its content, None while it is being written}."""
    manifest = Path(folder, MANIFEST)
    try:
        content = json.loads(manifest.read_text()) if manifest.is_file() else {}
    except ValueError:
        content = None
    if isinstance(content, list):  # of an earlier version, which kept no hashes
        content = dict.fromkeys(map(str, content))
    # Where it is damaged or of another program, no file here counts as ours.
    return content if isinstance(content, dict) else {}


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError:  # nobody can tell what it holds
        return ""


def check_unedited(folder: str | Path, names: Iterable[str], is_locked: bool = False) -> None:
    """Raises a DataError if one of this program's files was edited since.

    Args:
        folder: of the results.
        names: of the files.
        is_locked: whether the caller holds `lock(folder)`.
    """
    with nullcontext() if is_locked else _lock_of(folder):
        _check_unedited(Path(folder), names)


def _check_unedited(folder: Path, names: Iterable[str]) -> None:
    known = _read_manifest(folder)
    for path, expected in ((folder / name, known.get(name)) for name in names):
        if expected and path.exists() and _hash(path) != expected:
            raise DataError(
                f"{path}: edited or damaged since this program wrote it; move it away, or choose "
                "another folder"
            )


def _lock_of(folder: str | Path) -> AbstractContextManager[None]:
    """Locks a folder in which other processes may be writing; makes none."""
    return lock(folder) if Path(folder, MANIFEST).exists() else nullcontext()


def check(
    folder: str | Path, names: Iterable[str], may_be_edited: Collection[str] = ()
) -> list[str]:
    """Returns those of the names that exist already, which must be as this program wrote them.

    Args:
        folder: of the results.
        names: of files that are to be written.
        may_be_edited: names of files that are looked at later.

    Raises:
        DataError: this program did not write one of them, or it was edited since.
    """
    with _lock_of(folder):
        return _check(Path(folder), list(names), may_be_edited)


def _check(folder: Path, names: list[str], may_be_edited: Collection[str] = ()) -> list[str]:
    for name in names:
        check_name(folder / name)
    ours = _read_manifest(folder)
    present = [name for name in names if os.path.lexists(folder / name)]  # also a dangling link
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise DataError(
            f"{folder / foreign[0]}: there already, and not written by this program; move it away "
            "or choose another folder"
        )
    _check_unedited(folder, (name for name in present if name not in may_be_edited))
    return present


def announce(folder: str | Path, names: Iterable[str]) -> None:
    """Logs how many files of an earlier run will be replaced; raises what `check` raises."""
    present = check(folder, names)
    if present:
        log.info(f"{folder}: replacing {len(present)} file(s) of an earlier run")


@contextmanager
def register(folder: str | Path, names: Iterable[str], shared: bool = False) -> Iterator[None]:
    """Records the files that the block writes as this program's; forgets those that it does not.

    Args:
        folder: created if absent.
        names: of the files.
        shared: whether other processes write the same files meanwhile, each by `rewriting`.

    Raises:
        DataError: the folder cannot be written, or see `check`.
    """
    folder, names = Path(folder), list(names)
    with lock(folder):
        _check(folder, names)
        known = _read_manifest(folder)
        new = dict.fromkeys(names)
        _write_manifest(folder, {**new, **known} if shared else {**known, **new})

    def end() -> None:
        with lock(folder):
            absent = [name for name in names if not (folder / name).exists()]
            _record(folder, absent if shared else names)

    with _and_then(end):
        yield


@contextmanager
def rewriting(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Records what the block writes to registered files, which other processes may write, too.

    The caller holds `lock(folder)`. A process that is killed leaves old or new files, which both
    count as unedited.

    Raises:
        DataError: one of the files was edited since this program wrote it.
    """
    _check_unedited(folder, names)
    _write_manifest(folder, {**_read_manifest(folder), **dict.fromkeys(names)})
    with _and_then(lambda: _record(folder, names)):
        yield


@contextmanager
def _and_then(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` after the block; if the block fails, its exception is what is raised."""
    try:
        yield
    except BaseException:
        with suppress(DataError):
            end()
        raise
    end()


def _record(folder: Path, names: Iterable[str]) -> None:
    """Records the content of files; forgets those that do not exist."""
    before = _read_manifest(folder)
    known = dict(before)
    for name in names:
        known.pop(name, None)
        if (folder / name).exists():
            known[name] = _hash(folder / name)
    if known != before:
        _write_manifest(folder, known)


def remove(folder: str | Path, names: set[str]) -> None:
    """Removes this program's files of these names, and logs how many.

    Raises:
        DataError: one of them was edited since this program wrote it.
    """
    with lock(folder):
        _check_unedited(Path(folder), names)
        if names:
            log.info(f"{folder}: removing {len(names)} file(s) of an earlier run")
        for name in names:
            Path(folder, name).unlink()
        known = _read_manifest(folder)
        _write_manifest(folder, {name: known[name] for name in known if name not in names})


def _write_manifest(folder: str | Path, files: dict[str, str | None]) -> None:
    if files:
        write_json(Path(folder, MANIFEST), files, sort_keys=True)
    else:
        Path(folder, MANIFEST).unlink(missing_ok=True)


# --- several processes ---------------------------------------------------------------------------


@contextmanager
def acquire(folder: str | Path, cases: Collection[str] | None = None) -> Iterator[bool]:
    """Acquires a folder for writing results: alone, or together with processes of other cases.

    Args:
        folder: created if absent, removed again if nothing was written.
        cases: the cases that this process writes; None: it must be the only process.

    Yields:
        Whether no other process writes there; if so, leftovers of killed processes are removed.

    Raises:
        DataError: another process writes there, and one of the two must be the only one or both
            write the same case; or the folder cannot be written.
    """
    folder = Path(folder)
    with ExitStack() as cleanup:
        cleanup.enter_context(remove_if_empty(folder))
        with lock(folder):
            running = open_lock(folder / RUNNING)
            cleanup.callback(_stop, folder, running)
            alone = _start(folder, running, cases)
        yield alone


def _start(folder: Path, running: Lock, cases: Collection[str] | None) -> bool:
    """Acquires the lock, exclusive or shared, and records the cases; returns if it is alone."""
    alone = running.acquire(wait=False)
    if not alone and (cases is None or not running.acquire(shared=True, wait=False)):
        raise DataError(
            f"{folder}: another evaluation or prediction is writing there; wait for it or choose "
            "another folder"
        )
    others = [] if alone else _running_cases(folder)
    if twice := sorted(set(others).intersection(cases or ())):
        raise DataError(
            f"{folder}: another prediction is writing its {twice[0]} there; wait for it, choose "
            "another folder, or rename the image"
        )
    # In place, since a new file would have no lock.
    (folder / RUNNING).write_text(json.dumps(sorted({*others, *(cases or ())})))
    if alone:
        _tidy(folder)
        if cases is not None:
            running.acquire(shared=True, wait=False)
    return alone


def _stop(folder: Path, running: Lock) -> None:
    """Releases the lock; the last process removes its file, unless that is of later ones."""
    with lock(folder):
        if running.still_locks(folder / RUNNING) and running.acquire(wait=False):
            (folder / RUNNING).unlink(missing_ok=True)
        running.close()


def _tidy(folder: Path) -> None:
    """Removes what killed processes left: names of missing files, and temporary folders."""
    known, present = _read_manifest(folder), list_outputs(folder)
    if known.keys() != present:
        _write_manifest(folder, {name: known[name] for name in present})
    for scratch in folder.glob(f"{WRITING}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def withdraw(folder: str | Path, cases: Collection[str]) -> bool:
    """Gives up writing, if only the process of `cases` has written since it acquired the folder.

    A process that comes later is the first then. The caller holds `lock(folder)`.

    Returns:
        Whether it has; if not, other processes write, or wrote meanwhile.
    """
    if set(_running_cases(Path(folder))).difference(cases):
        return False
    Path(folder, RUNNING).unlink()
    return True


def _running_cases(folder: Path) -> list[str]:
    return json.loads((folder / RUNNING).read_text() or "[]")


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Locks a folder, created if absent, while its list or table changes; other processes wait.

    Raises:
        DataError: the folder cannot be written.
    """
    path = Path(folder, LOCK)
    while True:
        opened = open_lock(path)
        opened.acquire()
        if opened.still_locks(path):
            break
        opened.close()  # the process that had the lock has removed the file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        opened.close()
