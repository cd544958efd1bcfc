"""Measures this project against PyTorch and OpenVINO, side by side on this machine's CPU.

    python -m venv .venv_pytorch
    .venv_pytorch/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu \
        -r benchmarks/requirements.txt
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python --preset accurate
    python benchmarks/vs_pytorch.py --torch_python .venv_pytorch/bin/python --size 64,64,32 \
        --stock 1 --layers --json measured.json

All compute the same network with the same weights on the same volume on all cores: inference up to
the probability, and a training step of forward, loss, backward and Adam with dropout. Without
--preset it is MONAI's full-width VNet (45.6 M parameters, variant `monai`) with Dice loss; with it,
the preset's network on its grid with its loss, dropout, learning rate and weight decay. The weight
average of a preset (`ema_decay`) is no part of a step, nor is the second, flipped volume of a
prediction. Before anything is timed, probabilities and the loss of a training step without dropout
have to agree.

PyTorch takes the fastest of its ways: memory format, torch.compile, fused Adam (--pytorch default:
none of them). Peers, where installed and where the processor has bfloat16: PyTorch with autocast to
bfloat16, and OpenVINO in float32 and bfloat16 (inference). Each implementation is a process of its
own that is stopped while another computes; they take turns, and medians are compared. Peak memory
is the process's VmHWM after its weights are loaded.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.layers import Layer, relative_difference, vnet_layers
from benchmarks.machine import (
    busy_core_seconds,
    describe_machine,
    has_bfloat16,
    new_file,
    usable_cores,
)
from benchmarks.report import PHASES, TITLES, alternate, progress, ratio, report_text, summary
from benchmarks.volume import SIDE_MULTIPLE, volume_size, write_volume
from benchmarks.worker import CALLS, FULL_WIDTH, Worker
from src.config import PRESETS, vnet_cfg
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_json
from src.utils.process import term_as_exit

PAIRS = 5
SEED = 1
TOLERANCE = 1e-3  # of a probability, a loss, a layer's values in units of their standard deviation
BFLOAT16_TOLERANCE = 0.1  # of a probability or a loss; bfloat16 has 8 bits
FULL_SIZE = (128, 128, 64)
INFERENCE_ONLY = ("openvino", "openvino_bfloat16")
PEERS = ("pytorch_bfloat16", *INFERENCE_ONLY)


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line.

    Raises:
        UsageError: values that cannot be measured.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="its network, grid and step")
    parser.add_argument(
        "--size",
        type=volume_size,
        metavar="X,Y,Z",
        help="of a volume; without it 128,128,64 or the preset's",
    )
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
        "--pytorch",
        choices=("best", "eager", "default"),
        default="best",
        help="best: fastest memory format, torch.compile (takes minutes), fused Adam; eager: "
        "without torch.compile; default: as PyTorch comes",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        help="further implementations; without it those that run here, --peers alone: none",
    )
    parser.add_argument(
        "--phases", nargs="+", choices=tuple(PHASES), default=tuple(PHASES), help="what to time"
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
        type=new_file,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write all measurements",
    )
    args = parser.parse_args()
    args.size = args.size or tuple(PRESETS[args.preset]["VolSize"] if args.preset else FULL_SIZE)
    if args.batch < 1 or args.pairs < 1 or not 0 <= args.stock <= args.pairs:
        raise UsageError("--batch and --pairs are at least 1, --stock is 0 to --pairs")
    if not 1 <= args.threads <= usable_cores():
        raise UsageError(f"--threads {args.threads}: this process may use 1 to {usable_cores()}")
    if args.batch * np.prod(args.size) == SIDE_MULTIPLE**3:
        raise UsageError(
            "--size 16,16,16: PyTorch's norms do not train on the single voxel that is left "
            "at the deepest level; take a larger one, or --batch 2"
        )
    return args


def network_of(preset: str | None) -> dict[str, str | int | float]:
    """The network and the training step, in the form of `benchmarks.worker.FULL_WIDTH`."""
    config = {**vnet_cfg, **PRESETS[preset]} if preset else FULL_WIDTH
    return {key: config[key] for key in FULL_WIDTH}


def start(name: str, args: argparse.Namespace) -> Worker:
    """Starts the process of an implementation."""
    network = network_of(args.preset)
    if name in ("ours", "stock"):
        return Worker(
            TITLES[name],
            sys.executable,
            "benchmarks.mindspore_implementation",
            args.threads,
            size=args.size,
            batch=args.batch,
            fast_conv3d="on" if name == "ours" else "off",
            network=network,
        )
    return Worker(
        TITLES[name],
        args.torch_python,
        f"benchmarks.{name.partition('_')[0]}_implementation",
        args.threads,
        keep_onednn_limits=False,
        network=network,
        bfloat16=name.endswith("_bfloat16"),
    )


def peers_here(has_openvino: bool) -> list[str]:
    """The peers that this machine can run; bfloat16 only where the processor has it."""
    return [
        name
        for name in PEERS
        if (has_openvino or name not in INFERENCE_ONLY)
        and (has_bfloat16() or not name.endswith("_bfloat16"))
    ]


def repetitions(args: argparse.Namespace, phase: str | None = None) -> dict[str, int]:
    """Returns implementation -> number of timed calls in a phase; None: of one convolution."""
    counts = {"ours": args.pairs, "pytorch": args.pairs}
    if phase:
        counts |= dict.fromkeys(args.peers, args.pairs)
    if phase != "inference":
        counts = {name: count for name, count in counts.items() if name not in INFERENCE_ONLY}
    counts["stock"] = args.stock
    return {name: count for name, count in counts.items() if count}


def choose_ways(
    phase: str, names: Iterable[str], args: argparse.Namespace, folder: Path
) -> dict[str, dict]:
    """Returns implementation in PyTorch -> `choose` of `pytorch_implementation`.

    It has a process of its own, because memory that its attempts take would count in the peak.
    """
    chosen = {}
    for name in names:
        if name.startswith("pytorch") and args.pytorch != "default":
            progress(f"{PHASES[phase]}: fastest way of {TITLES[name]}")
            with start(name, args) as worker:
                chosen[name] = worker.call(
                    "choose",
                    folder=str(folder),
                    training=phase == "train_step",
                    may_compile=args.pytorch == "best",
                )
    return chosen


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
    counts = repetitions(args, phase)
    chosen = choose_ways(phase, counts, args, folder)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(start(name, args)) for name in counts}
        measured, losses = {}, {}
        for name, worker in workers.items():
            progress(f"{PHASES[phase]}: first call of {TITLES[name]}")
            how = {"how": chosen[name]["how"]} if name in chosen else {}
            loaded = worker.call("load", folder=str(folder), training=training, **how)
            first = worker.call(method, **undropped)
            measured[name] = {
                "load_s": loaded["seconds"],
                "parameters": loaded["parameters"],
                "process": worker.call("describe"),
                "first_call_s": first["seconds"],
                **({"ways_median_s": chosen[name]["median_s"]} if name in chosen else {}),
            }
            losses[name] = [first.get("loss")]
            if not training:
                worker.call("write_probability", path=str(folder / f"{name}.npy"))
        compared = compare_losses(losses) if training else compare_probabilities(counts, folder)
        for name, worker in workers.items():
            if name != "stock":  # a second call takes minutes and only repeats the first
                losses[name].append(worker.call(method, **undropped).get("loss"))
                if training:  # with dropout torch.compile compiles again
                    worker.call(method, **timed)
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
        DataError: one exceeds its tolerance.
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
        DataError: one exceeds its tolerance.
    """
    theirs = losses["pytorch"][0]
    return {
        f"loss_difference_{name}": checked(abs(of[0] - theirs), name, "losses")
        for name, of in losses.items()
        if name != "pytorch"
    }


def checked(difference: float, name: str, what: str) -> float:
    """Returns `difference`; raises a DataError if it is not below the tolerance, or NaN."""
    tolerance = BFLOAT16_TOLERANCE if name.endswith("_bfloat16") else TOLERANCE
    if difference < tolerance:
        return float(difference)
    raise DataError(
        f"{TITLES[name]}: {what} differ from PyTorch's by {difference:.2g}, expected less than "
        f"{tolerance:g}; nothing was timed, since it would not be the same work"
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
        network = network_of(args.preset)
        has_unit = network["variant"] == "monai"
        for layer in vnet_layers(args.size, network["width"], has_unit):
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
        **{f"ratio_{phase}": ratio(of) for phase, of in phases.items()},
        "ratios": {
            phase: {name: ratio(of, name) for name in of if name != "ours"}
            for phase, of in phases.items()
        },
        "preset": args.preset,
        "network": network_of(args.preset),
        "tolerance": TOLERANCE,
        "bfloat16_tolerance": BFLOAT16_TOLERANCE,
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
    machine = describe_machine()
    phases, compared, others = {}, {}, {}
    with term_as_exit(), tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as name:
        folder = Path(name)
        write_volume(folder, args.size, args.batch)
        with start("pytorch", args) as worker:
            progress("weights")
            worker.call("write_weights", folder=name, seed=SEED)
            if args.peers is None:
                args.peers = peers_here(worker.call("has_openvino"))
        for phase in args.phases:
            phases[phase], of_phase, others[phase] = measure_phase(phase, args, folder)
            compared |= of_phase
    layers = measure_layers(args) if args.layers else None
    machine |= {"others_cores": others, "load_average_at_end": list(os.getloadavg())}
    measured = result(args, machine, compared, phases, layers)
    print(report_text(measured))
    if "json" in args:
        write_json(args.json, measured)
        print(f"{args.json}: written")


if __name__ == "__main__":
    run(main)
