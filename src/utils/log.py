"""The package's log: lines for whoever waits on standard output, warnings on standard error."""

import logging
import sys
from functools import lru_cache

_ROOT = logging.getLogger(__name__.split(".")[0])


class _StandardStreams(logging.Handler):
    """Writes each message as it is, to the streams that the process has at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        if stream is not None:  # print would take standard output instead
            print(record.getMessage(), file=stream, flush=True)


def log_to_standard_streams() -> None:
    """Shows the package's messages, as its commands do; a notebook sets its own logging up."""
    if not any(isinstance(handler, _StandardStreams) for handler in _ROOT.handlers):
        _ROOT.addHandler(_StandardStreams())
        _ROOT.setLevel(logging.INFO)
        _ROOT.propagate = False


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Warns about a file once, however often it is read."""
    _ROOT.warning("%s", message)
