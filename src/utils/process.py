"""The environment of a process: standard streams, cores, Matplotlib's folder, the current folder.

A command works without them, too: with closed streams, output to a full disk, or no home folder.
"""

import atexit
import errno
import gc
import io
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of the package
CGROUP = Path("/sys/fs/cgroup")  # of this container: version 2, or the controllers of version 1
PACKAGE = __package__.split(".")[0]  # its name, src in a checkout


class _Output(io.TextIOWrapper):
    """A standard stream that discards its output once it cannot be written, and raises nothing.

    Attributes:
        failure: the error after which output was discarded; None where the reader closed a pipe.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        """Sends what is still buffered, and all later output, to /dev/null."""
        if error.errno != errno.EPIPE:
            self.failure = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def prepare_streams() -> None:
    """Makes every `print` succeed: closed streams are opened on /dev/null, characters that the
    encoding does not have become escapes.

    Streams that replace the process's own, as in a test, stay as they are.
    """
    # A file opened later would get the descriptor of a closed stream, and its output.
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


def output_error() -> OSError | None:
    """Returns the error after which standard output was discarded.

    None where all was written, or the reader closed the pipe.
    """
    sys.stdout.flush()
    return sys.stdout.failure if isinstance(sys.stdout, _Output) else None


def prepare_numpy() -> None:
    """Keeps NumPy's matrix products on one thread; must be called before NumPy is imported.

    They are small here, and further threads would wait for them in busy loops, on cores that the
    network computes on.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def prepare_matplotlib() -> None:
    """Sets a temporary MPLCONFIGDIR where the user's own folders cannot be written.

    Must be called before Matplotlib is imported, which would print warnings about these folders.
    """
    import platformdirs

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


def module_command(module: str, *words: str, ends_with_parent: bool = False) -> list[str]:
    """Returns the command that runs a module of this package in another process.

    Not by -m, which would prefer modules in the current folder; so would the empty entry of -c.

    Args:
        module: its name.
        words: its arguments.
        ends_with_parent: whether Linux sends it SIGTERM when the thread that started it ends, as by
            kill -9.
    """
    code = ""
    if ends_with_parent and sys.platform == "linux":
        code = "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "  # PDEATHSIG
    code += (
        "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]; "
        f"from runpy import run_module; run_module({module!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", code, str(ROOT), *words]


@contextmanager
def term_as_exit() -> Iterator[None]:
    """Turns TERM into a SystemExit in the block, so that it ends its processes and cleans up."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """Returns a TCP port of this machine's own address, 127.0.0.1, that nobody listens on now."""
    import socket  # which takes milliseconds of every start

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def core_count() -> int:
    """Returns the number of processor cores that this process may use.

    At most a container's quota of processor time, such as that of `docker run --cpus=2`. Quotas of
    a part of the host, as systemd sets them, are not looked for.
    """
    if not hasattr(os, "sched_getaffinity"):  # Linux only
        return os.cpu_count() or 1
    return min(len(os.sched_getaffinity(0)), _container_cores() or sys.maxsize)


def _container_cores() -> int | None:
    """The cores that a container's quota amounts to, rounded up; None without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((CGROUP / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return max(1, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage in the block, and later among what it has made.

    Imports make so many objects that the searches among them take 0.5 s of a start, and find
    nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def change_folder(folder: Path) -> Iterator[None]:
    """Changes the current folder for the block, for libraries that do not take every path."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is created if absent."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
