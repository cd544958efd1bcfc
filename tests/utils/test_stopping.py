"""What a process does at Ctrl-C and SIGTERM while its main thread computes."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from src.utils.stopping import (
    NAMES,
    between_steps,
    handle_signals,
    listen,
    stop_if_asked,
    unblocked,
)
from tests.helpers import ROOT

BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(autouse=True)
def handlers():
    """Puts pytest's handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def code_of(stop):
    """The exit code of what `stop` raises."""
    with pytest.raises((KeyboardInterrupt, SystemExit)) as error:
        stop()
    return getattr(error.value, "code", 130)


@BOTH
def test_a_signal_is_answered_at_once(capsys, number, code):
    signal.signal(number, signal.SIG_IGN)
    handle_signals()
    assert code_of(lambda: signal.raise_signal(number)) == code
    assert capsys.readouterr().out == ""


@BOTH
def test_between_steps_it_waits_until_it_is_asked_for(handlers, capsys, number, code):
    with between_steps(lambda: "so much is saved"):
        stop_if_asked()
        signal.raise_signal(number)
        assert capsys.readouterr().out == ""
        assert code_of(stop_if_asked) == code
        stop_if_asked()
    assert capsys.readouterr().out == f"stopped by {NAMES[number]}; so much is saved\n"
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_another_thread_trains_without_handlers(handlers):
    """Only the main thread may set them."""

    def train():
        with between_steps(str):
            handle_signals()
            stop_if_asked()
        return "trained"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train).result() == "trained"
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_a_signal_that_nobody_asked_for_is_forgotten():
    with between_steps(str):
        signal.raise_signal(signal.SIGINT)
    with between_steps(str):
        stop_if_asked()


# `compute` is C code that Python's handlers cannot interrupt; like MindSpore, it sets a handler.
SCRIPT = """
import ctypes, signal, subprocess, sys, time
from src.utils import stopping
from src.utils.command_line import run

libc = ctypes.CDLL(None)
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
def compute(ms):
    for number in stopping.NAMES:
        libc.signal(number, ctypes.cast(libc._exit, ctypes.c_void_p))
    print("started", flush=True)
    end = time.monotonic() + ms / 1000
    while (left := end - time.monotonic()) > 0:
        libc.usleep(int(left * 1e6))

def main():
    with stopping.listen(), stopping.between_steps(lambda: "so much is saved"):
        {body}
        stopping.stop_if_asked()
        print("not stopped")
run(main)
"""


def outcome(body, *signals, start=""):
    """Exit code and output of a process that gets `signals` when it has started."""
    command = [*start.split(), sys.executable, "-c", SCRIPT.replace("{body}", body)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        said = child.stdout.readline()
        for number in signals:
            child.send_signal(number)
            time.sleep(0.1)  # a second signal of a kind would be merged with one that waits
        said += child.stdout.read()
    return child.returncode, [line for line in said.splitlines() if line != "started"]


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "signals", "code", "lines"),
    [
        pytest.param("compute(300)", [INT], 130, ["Ctrl-C", "error: interrupted"], id="Ctrl-C"),
        pytest.param("compute(300)", [TERM], 143, ["SIGTERM", "error: terminated"], id="TERM"),
        pytest.param(
            "stopping.GRACE_S = 0.1; compute(60000)", [INT], 130, ["Ctrl-C"], id="long step"
        ),
        pytest.param(
            "stopping.GRACE_S = 0.1; stopping.unhurried()(compute)(1000)",
            [TERM],
            143,
            ["SIGTERM", "error: terminated"],
            id="checkpoint on a slow disk",
        ),
        pytest.param(
            "stopping.GRACE_S = 0.1; stopping.unhurried()(compute)(300); compute(60000)",
            [TERM],
            143,
            ["SIGTERM"],
            id="long step after a checkpoint",
        ),
        pytest.param(
            "stopping.REPEATED_S = 0.05; compute(60000)",
            [TERM, TERM],
            143,
            ["SIGTERM"],
            id="second signal",
        ),
        pytest.param(
            "stopping.REPEATED_S = 0.05; stopping.unhurried()(compute)(60000)",
            [TERM, TERM],
            143,
            ["SIGTERM"],
            id="second signal in a checkpoint",
        ),
        pytest.param(
            "compute(300)",
            [TERM, INT, TERM],
            143,
            ["SIGTERM", "error: terminated"],
            id="the same signal several times",
        ),
    ],
)
def test_a_signal_while_it_computes(body, signals, code, lines):
    name, *rest = lines
    expected = [f"stopped by {name}; so much is saved", *rest]
    assert outcome(body, *signals) == (code, expected)


def test_an_ignored_signal_stays_ignored():
    """As that of a job that a shell has started in the background."""
    start = "env --ignore-signal=INT"
    assert outcome("compute(100)", INT, start=start) == (0, ["not stopped"])


def test_a_process_that_it_starts_inherits_that(handlers):
    signal.signal(INT, signal.SIG_IGN)
    with listen(), unblocked():
        assert signal.getsignal(INT) == signal.SIG_IGN
        signal.raise_signal(INT)


def test_training_listens_before_libraries_start_threads():
    """OpenBLAS starts some with NumPy, unless OPENBLAS_NUM_THREADS is 1."""
    script = """
import sys
from src.utils import stopping
stopping.listen = lambda: sys.exit(", ".join({"numpy", "mindspore"} & set(sys.modules)))
from src.commands import main
main()
"""
    command = [sys.executable, "-c", script, "train", "--continue"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "\n")


def test_a_process_that_it_starts_can_be_stopped():
    child = "'-c', 'import time; time.sleep(60)'"
    body = f"""compute(0)
        with stopping.unblocked():
            child = subprocess.Popen([sys.executable, {child}])
        child.terminate()
        print(child.wait(timeout=20))"""
    assert outcome(body) == (0, [str(-TERM), "not stopped"])
