"""What can go wrong in a user's hands. `src.cli.run` turns these into one line and an exit code."""

import errno
import sys
from functools import lru_cache


class UsageError(Exception):
    """The command line or the configuration is wrong (exit code 2)."""


class DataError(Exception):
    """A file, a device or a run is at fault (exit code 1)."""


def reason_of(error: Exception, line: int = 0) -> str:
    """Why something failed, in the system's words or in one line of a library's message."""
    if isinstance(error, OSError) and error.errno:
        hint = {
            errno.ENOSPC: "; free some space",
            errno.EACCES: "; check its permissions",
            errno.EPERM: "; check its permissions",
        }
        return f"{error.strerror}{hint.get(error.errno, '')}"
    lines = str(error).strip().splitlines()
    return lines[line].strip() if lines else type(error).__name__


@lru_cache(maxsize=1024)
def note_once(line: str) -> None:
    """Says something about a file on standard error, once however often the file is read."""
    if sys.stderr is not None:  # print would take standard output instead
        print(line, file=sys.stderr)
