"""Measures this project against PyTorch with MONAI's VNet, side by side on this machine's CPU.

    python -m venv .venv_pytorch
    .venv_pytorch/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu \
        -r benchmarks/requirements.txt
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python --size 64,64,32
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python --stock 1 --layers \
        --json measured.json

Both compute the same network (45.6 M parameters, variant `monai`) with the same weights on the same
volume, in float32 on all cores: inference up to the probability, and a training step of forward,
Dice loss, backward and Adam with MONAI's dropout. Before anything is timed, probabilities and the
loss of a training step without dropout have to agree. Each implementation is a process of its own
that is stopped while another computes; they take turns, and medians are compared. Peak memory is
the process's VmHWM after its weights are loaded.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.layers import Layer, relative_difference, vnet_layers
from benchmarks.machine import busy_core_seconds, describe_machine, usable_cores
from benchmarks.report import PHASES, TITLES, alternate, progress, ratio, report_text, summary
from benchmarks.volume import SIDE_MULTIPLE, volume_size, write_volume
from benchmarks.worker import CALLS, Worker
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_files

PAIRS = 5
SEED = 1
TOLERANCE = 1e-3  # of a probability, a loss, a layer's values in units of their standard deviation


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line.

    Raises:
        UsageError: values that cannot be measured.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", type=volume_size, default="128,128,64", metavar="X,Y,Z")
    parser.add_argument("--batch", type=int, default=1, help="volumes at once")
    parser.add_argument(
        "--pairs", type=int, default=PAIRS, help="timed calls of each, in alternation"
    )
    parser.add_argument(
        "--torch_python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter of the environment with benchmarks/requirements.txt",
    )
    parser.add_argument(
        "--stock",
        type=int,
        default=0,
        metavar="REPS",
        help="timed calls of stock MindSpore, which is slow; 0: none",
    )
    parser.add_argument("--layers", action="store_true", help="time each convolution by itself too")
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), help="cores that each implementation gets"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write all measurements",
    )
    args = parser.parse_args()
    if args.batch < 1 or args.pairs < 1 or not 0 <= args.stock <= args.pairs:
        raise UsageError("--batch and --pairs are at least 1, --stock is 0 to --pairs")
    if not 1 <= args.threads <= usable_cores():
        raise UsageError(f"--threads {args.threads}: this process may use 1 to {usable_cores()}")
    if args.batch * np.prod(args.size) == SIDE_MULTIPLE**3:
        raise UsageError(
            "--size 16,16,16: PyTorch's batch norm does not train on the single voxel that is left "
            "at the deepest level; take a larger one, or --batch 2"
        )
    return args


def start(name: str, args: argparse.Namespace) -> Worker:
    """Starts the process of an implementation."""
    if name == "pytorch":
        return Worker(
            TITLES[name],
            args.torch_python,
            "benchmarks.pytorch_implementation",
            args.threads,
            keep_onednn_limits=False,
        )
    return Worker(
        TITLES[name],
        sys.executable,
        "benchmarks.mindspore_implementation",
        args.threads,
        size=args.size,
        batch=args.batch,
        fast_conv3d="on" if name == "ours" else "off",
    )


def repetitions(args: argparse.Namespace) -> dict[str, int]:
    """Returns implementation -> number of timed calls."""
    counts = {"ours": args.pairs, "pytorch": args.pairs, "stock": args.stock}
    return {name: count for name, count in counts.items() if count}


def measure_phase(phase: str, args: argparse.Namespace, folder: Path) -> tuple[dict, dict, float]:
    """Measures inference or training, in new processes, so that each has its own peak of memory.

    Args:
        phase: "inference" or "train_step".
        args: the command line.
        folder: with volume, mask and weights.

    Returns:
        Implementation -> its `summary` with load_s, parameters, process, peak_bytes and, in
        training, the losses without dropout; name of a comparison -> its value; mean number of
        cores that other processes used.

    Raises:
        DataError: the implementations do not compute the same.
    """
    training = phase == "train_step"
    method, undropped, timed = CALLS[phase]
    counts = repetitions(args)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(start(name, args)) for name in counts}
        measured, losses = {}, {}
        for name, worker in workers.items():
            progress(f"{PHASES[phase]}: first call of {TITLES[name]}")
            loaded = worker.call("load", folder=str(folder), training=training)
            first = worker.call(method, **undropped)
            measured[name] = {
                "load_s": loaded["seconds"],
                "parameters": loaded["parameters"],
                "process": worker.call("describe"),
                "first_call_s": first["seconds"],
            }
            losses[name] = [first.get("loss")]
            if not training:
                worker.call("write_probability", path=str(folder / f"{name}.npy"))
        compared = compare_losses(losses) if training else compare_probabilities(counts, folder)
        for name, worker in workers.items():
            if name != "stock":  # a second call takes minutes and only repeats the first
                losses[name].append(worker.call(method, **undropped).get("loss"))
        if training:
            measured = {name: {**of, "losses": losses[name]} for name, of in measured.items()}

        progress(f"{PHASES[phase]}: {args.pairs} in alternation")
        before = load_until_now(workers)
        times = take_turns(workers, counts, method, timed)
        wall_s, busy_s, own_s = load_until_now(workers) - before
        for name, worker in workers.items():
            measured[name] |= summary(measured[name]["first_call_s"], times[name])
            measured[name]["peak_bytes"] = worker.call("peak_memory")
    return measured, compared, max(0.0, (busy_s - own_s) / wall_s)


def take_turns(
    workers: dict[str, Worker], counts: dict[str, int], method: str, arguments: dict
) -> dict[str, list[float]]:
    """Returns implementation -> times in s of a method, called in alternation."""

    def timed_call(worker):
        return lambda: worker.call(method, **arguments)["seconds"]

    return alternate({name: (timed_call(workers[name]), counts[name]) for name in workers})


def load_until_now(workers: dict[str, Worker]) -> np.ndarray:
    """Returns seconds on the clock, core seconds of all processes, and of these workers."""
    own_s = sum(worker.cpu_s for worker in workers.values())
    return np.array([time.perf_counter(), busy_core_seconds(), own_s])


def compare_probabilities(names, folder: Path) -> dict[str, float]:
    """Returns the largest differences to PyTorch's probabilities.

    Raises:
        DataError: one exceeds TOLERANCE.
    """
    theirs = np.load(folder / "pytorch.npy")
    compared = {
        "probability_lowest": float(theirs.min()),
        "probability_highest": float(theirs.max()),
    }
    for name in names:
        if name != "pytorch":
            difference = np.abs(np.load(folder / f"{name}.npy") - theirs).max()
            compared[f"probability_difference_{name}"] = checked(difference, name, "probabilities")
    return compared


def compare_losses(losses: dict[str, list[float]]) -> dict[str, float]:
    """Returns the differences to PyTorch's loss of the first training step.

    Raises:
        DataError: one exceeds TOLERANCE.
    """
    theirs = losses["pytorch"][0]
    return {
        f"loss_difference_{name}": checked(abs(of[0] - theirs), name, "losses")
        for name, of in losses.items()
        if name != "pytorch"
    }


def checked(difference: float, name: str, what: str) -> float:
    """Returns `difference`; raises a DataError if it is not below TOLERANCE, or NaN."""
    if difference < TOLERANCE:
        return float(difference)
    raise DataError(
        f"{TITLES[name]}: {what} differ from PyTorch's by {difference:.2g}, expected less than "
        f"{TOLERANCE:g}; nothing was timed, since it would not be the same work"
    )


def measure_layers(args: argparse.Namespace) -> list[dict]:
    """Measures each convolution of the network by itself.

    Raises:
        DataError: results differ.
    """
    counts = repetitions(args)
    measured = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(start(name, args)) for name in counts}
        for layer in vnet_layers(args.size):
            progress(f"layer {layer.name}")
            made_by = {
                name: worker.call("load_layer", batch=args.batch, **layer._asdict())
                for name, worker in workers.items()
            }
            parts = {part: measure_part(layer, part, workers, counts) for part in layer.parts}
            measured.append({**layer._asdict(), "made_by": made_by, "parts": parts})
    return measured


def measure_part(layer: Layer, part: str, workers: dict, counts: dict) -> dict[str, dict]:
    """Returns implementation -> `summary` of one part of one layer."""
    first = {name: worker.call("run_layer", part=part) for name, worker in workers.items()}
    for name in workers:
        difference = relative_difference(first[name]["sample"], first["pytorch"]["sample"])
        checked(difference, name, f"{layer.name}: values of its {part}")
    times = take_turns(workers, counts, "run_layer", {"part": part})
    return {name: summary(first[name]["seconds"], times[name]) for name in workers}


def result(args: argparse.Namespace, machine: dict, compared: dict, phases: dict, layers) -> dict:
    """Returns all measurements in the form that --json writes."""
    return {
        "ratio_inference": ratio(phases["inference"]),
        "ratio_train_step": ratio(phases["train_step"]),
        "size": list(args.size),
        "batch": args.batch,
        "pairs": args.pairs,
        "threads": args.threads,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "compared": compared,
        **phases,
        **({"layers": layers} if layers else {}),
    }


def main() -> None:
    """Measures, prints, and writes --json."""
    args = parse_arguments()
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # leave no folder behind
    machine = describe_machine()
    phases, compared, others = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as name:
        folder = Path(name)
        write_volume(folder, args.size, args.batch)
        with start("pytorch", args) as worker:
            progress("weights")
            worker.call("write_weights", folder=name, seed=SEED)
        for phase in PHASES:
            phases[phase], of_phase, others[phase] = measure_phase(phase, args, folder)
            compared |= of_phase
    layers = measure_layers(args) if args.layers else None
    machine |= {"others_cores": others, "load_average_at_end": list(os.getloadavg())}
    measured = result(args, machine, compared, phases, layers)
    print(report_text(measured))
    if "json" in args:
        write_files({args.json: f"{json.dumps(measured, indent=2)}\n".encode()})
        print(f"{args.json}: written")


if __name__ == "__main__":
    run(main)
