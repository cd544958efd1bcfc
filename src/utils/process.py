"""What a process finds around it: standard streams, a home, a cache. Work does not end for want of
them."""

import atexit
import errno
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


class _Output(io.TextIOWrapper):
    """A standard stream whose reader may go away, or whose disk may fill: the work goes on.

    Attributes:
        failure: the error that lost some output, unless it is that the reader left.
    """

    failure: OSError | None = None

    def write(self, text):
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self):
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error):
        """Leads what is still buffered, and all to come, to nowhere."""
        if error.errno != errno.EPIPE:
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def prepare_streams() -> None:
    """Lets every `print` succeed: closed streams lead nowhere, unknown letters become escapes.

    Streams that somebody has put in the place of the process's own stay as they are.
    """
    # The next file to be opened would take the number of a closed stream, and the output in it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is not None:
            stream.flush()
        unbuffered = os.isatty(number) or name == "stderr" or bool(stream and stream.write_through)
        text = _Output(
            io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=unbuffered,
        )
        setattr(sys, name, text)


def lost_output() -> OSError | None:
    """Why some of the standard output is lost, None where all was written or nobody wanted it."""
    sys.stdout.flush()
    return sys.stdout.failure if isinstance(sys.stdout, _Output) else None


def prepare_matplotlib() -> None:
    """Gives Matplotlib, before its import, a folder where the user has none that may be written.

    It would make one itself, and say so on standard error in three lines.
    """
    if os.environ.get("MPLCONFIGDIR"):
        return
    try:
        folders = platformdirs.user_config_path(), platformdirs.user_cache_path()
        writable = all(f.is_absolute() and _is_writable(f / "matplotlib") for f in folders)
    except RuntimeError:  # HOME is not set, and the system does not know the user
        writable = False
    if not writable:
        folder = tempfile.mkdtemp(prefix="matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = folder


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Another current folder for a while, for libraries that do not take every path."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _is_writable(folder: Path) -> bool:
    """Whether a folder, which may not exist yet, can be made and files in it."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
