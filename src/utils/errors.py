"""Exceptions that end a command, and the parts of their messages.

`command_line.run` prints the message in one line and sets the exit code.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "free some space",
    (errno.EACCES, errno.EPERM): "check the permissions there",
    (errno.EROFS,): "choose a folder where you may write",
    (errno.ENOTDIR, errno.EEXIST, errno.EISDIR): "check which of these names are folders",
    (errno.ENAMETOOLONG,): "choose a shorter name",
}


class UsageError(Exception):
    """The command line or the configuration is wrong (exit code 2)."""


class DataError(Exception):
    """A file, a device or a run does not allow the work (exit code 1)."""


class SeveralVolumesError(DataError):
    """A file holds several volumes, and the command does not say which is meant."""


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts the file that the block works on before the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def reason_of(error: Exception, line: int = 0) -> str:
    """Returns the reason of an error in one line.

    Args:
        error: an OSError gives the system's description and, from `REMEDIES`, what to do.
        line: index of the line of another error's message to return.
    """
    if isinstance(error, OSError) and error.errno:
        remedy = next((text for numbers, text in REMEDIES.items() if error.errno in numbers), "")
        return (error.strerror or "") + (remedy and f"; {remedy}")
    lines = str(error).strip().splitlines()
    return lines[line].strip() if lines else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown word: the most similar known one, or all."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.3)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known)}"


def list_few(names: Iterable[str], count: int = 3) -> str:
    """Lists the first names, and how many more there are."""
    names = list(names)
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def last_error(output: str) -> str:
    """Returns the line of a command's output that says why it failed, without one the last line."""
    lines = [line for line in output.splitlines() if line.strip()] or [""]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
