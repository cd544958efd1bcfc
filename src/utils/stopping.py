"""How Ctrl-C and SIGTERM stop a training: between two steps, or at once where a step takes long.

Python runs its signal handlers only between its own instructions, so not while MindSpore computes,
and MindSpore replaces them in every step. A command therefore takes signals in a thread of its own,
see `listen`.
"""

import _thread
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .status import write_status

log = logging.getLogger(__name__)

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
GRACE_S = 5.0  # for the current step, not counting what is `unhurried`
# One Ctrl-C may arrive several times, from the terminal and from the process that started this one.
REPEATED_S = 0.5

_asked = 0  # the signal that waits for `stop_if_asked`
_hint: Callable[[], str] | None = None  # of `between_steps`; None outside of it
_grace_from_s = 0.0  # the grace begins no earlier (`time.monotonic`); infinite in `unhurried`


def handle_signals() -> None:
    """Makes Python handle SIGINT and SIGTERM, with the exit codes 130 and 143.

    MindSpore's handlers end the process without cleaning up, and with exit code 0 at SIGTERM. Only
    a process's main thread can set handlers; in another one nothing is changed.
    """
    if threading.current_thread() is threading.main_thread():
        for number in NAMES:
            signal.signal(number, _on_signal)


def _on_signal(number: int, _: object) -> None:
    global _asked
    _asked = number
    if _hint is None:
        stop_if_asked()


@contextmanager
def between_steps(hint: Callable[[], str]) -> Iterator[None]:
    """Lets signals wait for `stop_if_asked` in the block; afterwards restores their handlers.

    An exception inside MindSpore's compiler could get lost, one in a checkpoint would be reported
    as if it could not be written.

    Args:
        hint: returns what follows "stopped by Ctrl-C; " in the log.
    """
    global _asked, _hint
    handlers = {number: signal.getsignal(number) for number in NAMES}
    _asked, _hint = 0, hint
    handle_signals()
    try:
        yield
    finally:
        _asked, _hint = 0, None  # a signal after the last step must not stop what comes later
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt or SystemExit after a signal; in `between_steps` logs it first."""
    global _asked
    if not _asked:
        return
    number, _asked = signal.Signals(_asked), 0
    if _hint is not None:
        _log_stop(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _log_stop(number: signal.Signals) -> None:
    global _hint
    hint, _hint = _hint, None
    log.info(f"stopped by {NAMES[number]}" + (f"; {hint()}" if hint else ""))


@contextmanager
def unhurried() -> Iterator[None]:
    """In `between_steps`: a first signal lets the block end; the grace begins after it.

    For what must be finished, such as a checkpoint on a slow disk.
    """
    global _grace_from_s
    _grace_from_s = math.inf
    try:
        yield
    finally:
        _grace_from_s = time.monotonic()


def _another_within_grace(taken: list[signal.Signals], closing: threading.Event) -> None:
    """Waits for another signal, at most until the grace has passed or the listener closes."""
    since_s = time.monotonic()
    while not closing.is_set():
        left_s = max(since_s, _grace_from_s) + GRACE_S - time.monotonic()
        if left_s <= 0 or signal.sigtimedwait(taken, min(left_s, GRACE_S)):
            return


@contextmanager
def listen() -> Iterator[None]:
    """Takes the signals of the process in a thread, for the block; call it in the main thread.

    Signals are blocked in this thread and in those that it starts, so that no handler of MindSpore
    ever runs. Threads from before, such as NumPy's, would run one. The thread that takes the
    signals has Python call the handler. If that does not stop the process within `GRACE_S`, see
    `unhurried`, or at a second signal after `REPEATED_S`, it ends the process. Signals that are
    ignored stay so.
    """
    handlers = {number: signal.getsignal(number) for number in NAMES}
    taken = [number for number in NAMES if handlers[number] != signal.SIG_IGN]
    if not taken:
        yield
        return
    for number in taken:
        signal.signal(number, _on_signal)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)
    closing = threading.Event()

    def take() -> None:
        number = signal.Signals(signal.sigwait(taken))
        if not closing.is_set():
            _thread.interrupt_main(number)
            closing.wait(REPEATED_S)
            while not closing.is_set() and signal.sigtimedwait(taken, 0):
                pass
        _another_within_grace(taken, closing)
        if not closing.is_set():
            _log_stop(number)
            write_status("failed", exit_code=128 + number, error=f"stopped by {NAMES[number]}")
            os._exit(128 + number)

    thread = threading.Thread(target=take, name="signals", daemon=True)
    thread.start()
    assert thread.ident is not None
    try:
        yield
    finally:
        closing.set()
        if thread.is_alive():
            signal.pthread_kill(thread.ident, taken[0])
        thread.join()
        while signal.sigtimedwait(taken, 0):  # those that came after the first
            pass
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def unblocked() -> Iterator[None]:
    """Unblocks the signals, for a process that is started in the block and inherits that."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
