"""Draws pictures in other processes, while this one works on the next case.

Importing Matplotlib takes as long as drawing a case; the processes do that too, from their start.
"""

import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from ..utils.errors import DataError

PROCESSES = 2  # of a command; one draws faster than a case is segmented, two end sooner
WAITING = 4  # jobs that a process may have before it; their slices take some 15 MB each
NICENESS = 5  # the start of these processes must not delay the one that computes
DRAWING_MODULE = f"{__package__}.pictures"
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module; "
    "import_module(sys.argv[2]).serve()"
)


class Painter:
    """Calls functions of `src.report.pictures`; a context manager that ends its processes.

    Args:
        processes: to start at once; 0, or where none can be started: this process draws, within
            `submit`.
    """

    def __init__(self, processes: int = 0) -> None:
        self._children: list[_Child] = []
        with suppress(OSError):  # Python may not be executed, or no process be added
            for _ in range(processes):
                self._children.append(_Child())
        if processes := len(self._children):
            self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
            for child in self._children:
                self._idle.put(child)
            self._threads = ThreadPoolExecutor(processes, "painter")
            self._room = threading.BoundedSemaphore(processes * (1 + WAITING))

    def submit(self, function: str, *arguments: Any) -> "Future[Any]":
        """Calls a function, or waits until there is room for the call.

        Args:
            function: its name in `src.report.pictures`.
            arguments: of the function.

        Returns:
            A future of its result. It raises what the function raises, and a DataError if the
            process ended.
        """
        if not self._children:
            future: Future[Any] = Future()
            future.set_result(getattr(import_module(DRAWING_MODULE), function)(*arguments))
            return future
        self._room.acquire()
        future = self._threads.submit(self._call, function, arguments)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _call(self, function: str, arguments: tuple) -> Any:
        child = self._idle.get()
        try:
            return child.call(function, arguments)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """Ends the processes; drawings that were not waited for are lost."""
        for child in self._children:
            child.kill()
        if self._children:
            self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.wait()

    def __enter__(self) -> "Painter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """A process that draws: pickled calls to its standard input, results from its output."""

    def __init__(self) -> None:
        search_path = json.dumps([str(Path(path).absolute()) for path in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, search_path, __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is answered by the process that waits for this one
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def call(self, function: str, arguments: tuple) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            succeeded, result = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise DataError(
                f"the process that draws the pictures ended ({how}); is there memory for it? Start "
                "again, or without pictures (predict.py --no_report)"
            ) from None
        if not succeeded:
            raise result
        return result

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        with suppress(BrokenPipeError), self._process:  # closes the pipes
            pass


def serve() -> None:
    """Runs a process that draws: answers calls until its standard input ends."""
    os.nice(NICENESS)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may get among the replies
    drawing = import_module(DRAWING_MODULE)
    while (call := _next_call(sys.stdin.buffer)) is not None:
        function, arguments = call
        try:
            reply = pickle.dumps((True, getattr(drawing, function)(*arguments)))
        except Exception as error:
            reply = pickle.dumps((False, _sendable(error)))
        try:
            replies.write(reply)
            replies.flush()
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(0)


def _next_call(calls: BinaryIO) -> tuple[str, tuple] | None:
    try:
        return pickle.load(calls)
    except EOFError:
        return None


def _sendable(error: Exception) -> Exception:
    """The error, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
