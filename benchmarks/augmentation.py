"""Times the augmentation of one training sample on one core, ours against MONAI's and TorchIO's.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --torch_python .venv_pytorch/bin/python --json measured.json

All transforms are on (augmentation_implementation.py has the chains), for a phantom case of
128x128x64 voxels with its mask. Each implementation is a process of its own on one core; they take
turns. CPU seconds are measured, which equal wall-clock seconds on an idle machine.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine, new_file
from benchmarks.report import alternate, progress, ratio, summary, table, time_text
from benchmarks.worker import Worker
from src.config import vnet_cfg
from src.data_manager import intensity_on_network_grid, mask_to_network_grid
from src.promise12.phantom import phantom_case
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_json
from src.utils.process import term_as_exit

TITLES = {"ours": "this project", "monai": "MONAI", "torchio": "TorchIO"}
ROUNDS = 7
CASES = 2  # the second is the reference of histogram matching
SEED = 1


def write_cases(folder: str | Path) -> None:
    """Writes volumes.npy (cases, X, Y, Z) float32 in 0..1 and masks.npy bool: phantom cases."""
    cases = [phantom_case(SEED, index) for index in range(CASES)]
    volumes = [
        intensity_on_network_grid(sitk.Cast(image, sitk.sitkFloat32), vnet_cfg)
        for image, _ in cases
    ]
    masks = [mask_to_network_grid(mask, vnet_cfg) for _, mask in cases]
    np.save(Path(folder, "volumes.npy"), np.stack(volumes))
    np.save(Path(folder, "masks.npy"), np.stack(masks))


def measure(pythons: dict[str, str], folder: str, rounds: int) -> dict[str, dict]:
    """Returns implementation -> its `summary` and `version`.

    Args:
        pythons: implementation -> interpreter.
        folder: of `write_cases`.
        rounds: samples of each that are timed.

    Raises:
        DataError: an implementation does not start, or returns another shape.
    """
    with ExitStack() as stack:
        workers, measured = {}, {}
        for name, python in pythons.items():
            progress(f"first sample of {TITLES[name]}")
            worker = Worker(
                TITLES[name], python, "benchmarks.augmentation_implementation", 1, library=name
            )
            workers[name] = stack.enter_context(worker)
            version = worker.call("load", folder=folder)
            first = worker.call("sample", number=0)
            check_shapes(TITLES[name], first["shapes"])
            measured[name] = {"version": version, "first_call_s": first["seconds"]}
        progress(f"{rounds} samples of each in alternation")

        def timed(worker):
            numbers = iter(range(1, rounds + 1))
            return lambda: worker.call("sample", number=next(numbers))["seconds"]

        times = alternate({name: (timed(worker), rounds) for name, worker in workers.items()})
        return {
            name: {**of, **summary(of["first_call_s"], times[name])}
            for name, of in measured.items()
        }


def check_shapes(title: str, shapes: list[list[int]]) -> None:
    """Raises a DataError where image and mask do not come back on the network grid."""
    if shapes != [list(vnet_cfg.VolSize)] * 2:
        raise DataError(
            f"{title}: a sample of image and mask {shapes}, expected {vnet_cfg.VolSize}; "
            "nothing was timed, since it would not be the same work"
        )


def report_text(measured: dict[str, dict], machine: dict) -> str:
    """Returns the text that is printed at the end."""
    rows = [
        [
            f"{TITLES[name]} ({of['version']})",
            time_text(of),
            f"{ratio(measured, theirs=name):.1f}",
        ]
        for name, of in measured.items()
    ]
    size = "x".join(map(str, vnet_cfg.VolSize))
    rounds = len(measured["ours"]["times_s"])
    return "\n".join(
        [
            f"{machine['cpu']}, one core each; "
            f"load average {machine['load_average'][0]:.2f} at the start",
            f"image and mask of {size}, all transforms: median core seconds (fastest .. slowest) "
            f"of {rounds} samples in alternation",
            table(["", "one sample", "theirs / ours"], rows),
        ]
    )


def main() -> None:
    """Measures, prints, and writes --json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--torch_python",
        metavar="PYTHON",
        help="interpreter of the environment with benchmarks/requirements.txt; default: ours alone",
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"samples of each (default: {ROUNDS})"
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all measurements")
    args = parser.parse_args()
    if args.rounds < 1:
        raise UsageError(f"--rounds {args.rounds}: expected at least 1")
    peers = ("monai", "torchio") if args.torch_python else ()
    pythons = {"ours": sys.executable, **dict.fromkeys(peers, args.torch_python)}
    machine = describe_machine()
    with term_as_exit(), tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as folder:
        write_cases(folder)
        measured = measure(pythons, folder, args.rounds)
    print(report_text(measured, machine))
    if args.json:
        content = {"machine": machine, "rounds": args.rounds, "measured": measured}
        write_json(args.json, content)
        print(f"{args.json}: written")


if __name__ == "__main__":
    run(main)
