"""A folder for results: our own earlier files may be replaced, other people's never."""

import json
from pathlib import Path

from src.atomic import write_files
from src.errors import DataError
from src.images.formats import check_name

MANIFEST = ".vnet_outputs.json"  # names of the files that this program wrote here


def outputs_in(folder: str | Path) -> set[str]:
    """Names of the files that this program wrote into a folder."""
    manifest = Path(folder, MANIFEST)
    try:
        return set(map(str, json.loads(manifest.read_text()))) if manifest.is_file() else set()
    except (ValueError, TypeError):
        return set()  # not what this program wrote: no file here counts as ours


def check(folder: str | Path, names: list[str]) -> list[str]:
    """Which of the names are there already, all of them our own earlier files.

    Raises:
        DataError: one of them is not ours.
    """
    folder = Path(folder)
    for name in names:
        check_name(folder / name)
    ours = outputs_in(folder)
    present = [name for name in names if (folder / name).exists()]
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise DataError(
            f"{folder / foreign[0]}: there already, and not written by this program; move it away "
            "or choose another folder"
        )
    return present


def claim(folder: str | Path, names: list[str]) -> None:
    """Makes `folder` ready for files of these names.

    Files of an earlier evaluation or prediction are replaced, with a line that says so.

    Args:
        folder: created if absent.
        names: file names that will be written.

    Raises:
        DataError: the folder cannot be written, or one of the files is there and is not ours.
    """
    present = check(folder, names)
    if present:
        print(f"{folder}: replacing {len(present)} file(s) of an earlier run")
    _remember(folder, outputs_in(folder).union(names))


def remove(folder: str | Path, names: set[str]) -> None:
    """Removes our own earlier files of these names, with a line that says so."""
    if names:
        print(f"{folder}: removing {len(names)} file(s) of an earlier run")
    for name in names:
        Path(folder, name).unlink()
    _remember(folder, outputs_in(folder) - names)


def _remember(folder, names):
    write_files({Path(folder, MANIFEST): json.dumps(sorted(names), indent=2).encode()})
