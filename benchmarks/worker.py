"""Runs an implementation in its own process: MindSpore and PyTorch share no environment.

    python -m benchmarks.worker benchmarks.pytorch_implementation

A child imports the module, creates its `Implementation` and calls its methods. Parent and child
exchange JSON lines: [method, arguments] to the child, {"result": ...} or {"error": ...} back, with
the CPU time of the child so far. Between two calls the child is stopped (SIGSTOP): a thread pool
that spins for work would take the others' cores.

Every implementation has the methods of `CALLS`, which return {"seconds": ...} and a training step's
"loss", besides `load`, `describe`, `write_probability`, `peak_memory`, `load_layer`, `run_layer`.
"""

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from src.utils.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1  # prctl(2)
# Phase -> method of an implementation, arguments when results are compared, when they are timed.
CALLS = {
    "inference": ("infer", {}, {}),
    "train_step": ("train_step", {"drop": False}, {"drop": True}),
}
# The network that is measured without --preset. `weight_decay` is L2 of the convolutions' weights.
FULL_WIDTH = {
    "variant": "monai",
    "width": 16,
    "dropout": 0.5,
    "loss": "dice",
    "lr": 1e-3,
    "weight_decay": 0.0,
}
# Limits of oneDNN that MindSpore needs (src/devices/device.py) and PyTorch must not inherit.
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


class Worker:
    """A running implementation; a context manager that ends the process.

    Args:
        name: for messages.
        python: the interpreter of its environment.
        module: has the class `Implementation`.
        threads: cores it may use, as OMP_NUM_THREADS and as affinity.
        keep_onednn_limits: whether it sees ONEDNN_MAX_CPU_ISA of this environment.
        arguments: for `Implementation`, values that JSON can represent.

    Attributes:
        cpu_s: core seconds that the process took until the end of the last call.

    Raises:
        DataError: it does not start, for example because a package is missing.
    """

    def __init__(
        self,
        name: str,
        python: str,
        module: str,
        threads: int,
        keep_onednn_limits=True,
        **arguments,
    ) -> None:
        self.name = name
        self.cpu_s = 0.0
        interpreter = shutil.which(python)
        if interpreter is None:
            raise DataError(f"{name}: {python} is no Python that can be run; give another path")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if not keep_onednn_limits:
            for limit in ONEDNN_LIMITS:
                environment.pop(limit, None)
        self._process = subprocess.Popen(
            [Path(interpreter).absolute(), "-m", "benchmarks.worker", module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that signals reach what an interpreter's wrapper starts
        )
        # Before it starts threads, which inherit the affinity.
        os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])
        try:
            self.call("__init__", **arguments)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def call(self, method: str, **arguments):
        """Calls a method of the implementation and returns its result.

        Raises:
            DataError: the method failed, or the process died.
        """
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            remedy = "; out of memory? a smaller --size or --batch needs less" if code < 0 else ""
            raise DataError(f"{self.name}: its process ended in {method} ({cause}){remedy}")
        self._signal(signal.SIGSTOP)
        reply = json.loads(line)
        self.cpu_s = reply["cpu_s"]
        if "error" in reply:
            raise DataError(f"{self.name}: {reply['error']}")
        return reply["result"]

    def close(self) -> None:
        """Kills the process; it has no state to save."""
        self._signal(signal.SIGKILL)
        with self._process:  # closes the pipes and waits
            pass

    def _signal(self, number):
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def serve(module: str) -> None:
    """Runs the child: answers calls until its standard input ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped child would never end
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries must not print among the replies
    implementation = None
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            if method == "__init__":
                implementation = importlib.import_module(module).Implementation(**arguments)
                result = None
            else:
                result = getattr(implementation, method)(**arguments)
            reply = {"result": result}
        except ModuleNotFoundError as error:
            reply = {
                "error": f"{sys.executable} has no module {error.name}; see "
                "benchmarks/requirements.txt for PyTorch, requirements.txt for MindSpore"
            }
        except (DataError, UsageError) as error:
            reply = {"error": str(error)}
        except Exception as error:  # the parent prints one line with the implementation's name
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        print(json.dumps({**reply, "cpu_s": time.process_time()}), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
