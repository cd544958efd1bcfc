"""A folder for results: our own earlier files may be replaced, other people's never."""

import json
from pathlib import Path

from src.atomic import write_files
from src.errors import DataError

MANIFEST = ".vnet_outputs.json"  # names of the files that this program wrote here


def outputs_in(folder: str | Path) -> set[str]:
    """Names of the files that this program wrote into a folder."""
    manifest = Path(folder, MANIFEST)
    try:
        return set(map(str, json.loads(manifest.read_text()))) if manifest.is_file() else set()
    except (ValueError, TypeError):
        return set()  # not what this program wrote: no file here counts as ours


def claim(folder: str | Path, names: list[str]) -> None:
    """Makes `folder` ready for files of these names.

    Files of an earlier evaluation or prediction are replaced, with a line that says so.

    Args:
        folder: created if absent.
        names: file names that will be written.

    Raises:
        DataError: the folder cannot be written, or one of the files is there and is not ours.
    """
    folder = Path(folder)
    ours = outputs_in(folder)
    present = [name for name in names if (folder / name).exists()]
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise DataError(
            f"{folder / foreign[0]}: there already, and not written by this program; move it away "
            "or choose another folder"
        )
    if present:
        print(f"{folder}: replacing {len(present)} file(s) of an earlier run")
    write_files({folder / MANIFEST: json.dumps(sorted(ours.union(names)), indent=2).encode()})
