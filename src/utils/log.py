"""The package's log: messages on standard output, warnings on standard error."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

_PACKAGE = logging.getLogger(__name__.split(".")[0])
# A module that is started with `python -m` logs under the name __main__.
_LOGGERS = (_PACKAGE, logging.getLogger("__main__"))


class _StandardStreams(logging.Handler):
    """Writes each message as it is, to the streams that the process has at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        if stream is None:  # print would take standard output instead
            return
        # A progress bar on the terminal makes room for the line, and is drawn anew below it.
        bars = sys.modules.get("tqdm") if stream.isatty() else None
        with nullcontext() if bars is None else bars.tqdm.external_write_mode(stream):
            print(record.getMessage(), file=stream, flush=True)


def log_to_standard_streams() -> None:
    """Shows the package's messages, as its commands do; a notebook sets up its own logging."""
    for logger in _LOGGERS:
        if not any(isinstance(handler, _StandardStreams) for handler in logger.handlers):
            logger.addHandler(_StandardStreams())
            logger.setLevel(logging.INFO)
            logger.propagate = False


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Warns about a file once, however often it is read."""
    _PACKAGE.warning("%s", message)


@contextmanager
def without_log(level: int = logging.CRITICAL) -> Iterator[None]:
    """Drops the messages of all loggers up to a level while the block runs."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def without_mindspore_warning(part: str) -> Iterator[None]:
    """Drops MindSpore's warnings that contain `part` while the block runs."""
    logger = logging.getLogger(f"ME.mindspore.log.{os.getpid()}")  # as mindspore.log names it

    def is_other(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
