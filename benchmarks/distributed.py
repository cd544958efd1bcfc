"""Measures training on 1 and 2 ranks on this CPU, and predicts it on 8 to 512 devices.

    python benchmarks/distributed.py [--size 64,64,32] [--steps 5] [--rounds 2]
    python benchmarks/distributed.py --predict      only the model on paper

Each rank has one core and one thread, so that two ranks have twice the cores of one. One rank and
two take turns. The model is `predicted_step_s`; its assumptions are printed with its numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine, usable_cores
from benchmarks.report import progress, table
from benchmarks.volume import volume_size, write_volume
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.process import free_port

RANK = Path(__file__).with_name("distributed_rank.py")
PARAMETERS = 45.6e6  # of the full-width network
GRADIENT_BYTES = 4 * PARAMETERS  # float32
DEVICES = (8, 16, 64, 512)
# Of the model zoo's published steps (batch 4, 128x128x64): milliseconds on 1 and on 8 devices.
ZOO = {"Ascend 910": (1080, 1017), "Tesla V100": (1870, 2170)}
# Name -> (time of a step on one device in s, bytes/s between devices of one machine, bytes/s of the
# machine's network for each device, devices of a machine).
SYSTEMS = {
    "Ascend 910, 100 Gb/s for each device": (1.080, 15e9, 10e9, 8),
    "V100, PCIe, 100 Gb/s for each machine": (1.870, 1.06e9, 10e9 / 8, 8),
    "the same, 10 Gb/s for each machine": (1.870, 1.06e9, 1e9 / 8, 8),
}
LATENCY_S = 20e-6  # of one message


def ring_s(count: int, size_bytes: float, bytes_per_s: float) -> float:
    """Time of a ring all-reduce: every device sends 2 (count - 1) parts of size / count."""
    return 2 * (count - 1) * (size_bytes / count / bytes_per_s + LATENCY_S)


def predicted_step_s(
    devices: int, step_s: float, inside: float, outside: float, per_machine: int
) -> float:
    """Time of a step on many devices: the step of one, then the all-reduce of its gradient.

    The gradient is summed inside each machine, then between the machines, where each device uses
    its share of the machine's network. Neither overlaps with the backward pass.

    Args:
        devices: number of devices, `per_machine` in each machine.
        step_s: of one device alone.
        inside, outside: bytes/s of a device within its machine and to other machines.
        per_machine: devices of a machine.
    """
    local = min(devices, per_machine)
    machines = -(-devices // per_machine)
    within = ring_s(local, GRADIENT_BYTES, inside)
    between = ring_s(machines, GRADIENT_BYTES / local, outside)
    return step_s + within + between


def prediction_table() -> str:
    """Step time and efficiency of each system on 8 to 512 devices."""
    rows = []
    for name, (step_s, *links) in SYSTEMS.items():
        row = [name, f"{1000 * step_s:.0f} ms"]
        for devices in DEVICES:
            predicted = predicted_step_s(devices, step_s, *links)
            row.append(f"{1000 * predicted:.0f} ms ({step_s / predicted:.0%})")
        rows.append(row)
    return table(["system", "1 device", *(f"{count} devices" for count in DEVICES)], rows)


def measure(count: int, folder: Path, steps: int, size: tuple[int, int, int]) -> dict:
    """Runs distributed_rank.py on `count` ranks; returns the measurements of the first."""
    arguments = [str(RANK), str(folder), str(count), str(steps), ",".join(map(str, size))]
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{scripts}:{os.environ['PATH']}",  # msrun starts the PATH's python
    }
    command = [sys.executable, *arguments]
    if count > 1:
        options = [f"--worker_num={count}", f"--local_worker_num={count}", "--join=True"]
        options += [f"--master_port={free_port()}", f"--log_dir={folder}", "--tail_worker_log=0"]
        command = [str(scripts / "msrun"), *options, *arguments]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        raise DataError(f"{count} rank(s): {(ended.stdout + ended.stderr).strip()[-300:]}")
    return json.loads((folder / f"{count}.json").read_text())


def main() -> None:
    """Measures, predicts and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=volume_size, default="64,64,32", metavar="X,Y,Z")
    parser.add_argument("--steps", type=int, default=5, help="timed in each round (default: 5)")
    parser.add_argument("--rounds", type=int, default=2, help="of 1 and 2 ranks (default: 2)")
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.predict:
        if usable_cores() < 2:
            raise UsageError("two ranks need two cores; --predict measures nothing")
        found = {1: [], 2: []}
        with tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as folder:
            write_volume(folder, args.size, 1)
            for number in range(args.rounds):
                for count, measured in found.items():
                    progress(f"round {number + 1} of {args.rounds}: {count} rank(s)")
                    measured.append(measure(count, Path(folder), args.steps, args.size))
        step_s = {
            count: median(time for one in measured for time in one["step_s"])
            for count, measured in found.items()
        }
        all_reduce_s = median(time for one in found[2] for time in one["all_reduce_s"])
        parameters = found[2][0]["parameters"]
        size = "x".join(map(str, args.size))
        print(f"{describe_machine()['cpu']}, one core for each rank; V-Net of {parameters} weights")
        print(f"one volume of {size} for each rank, medians of {args.rounds} x {args.steps} steps")
        print(f"step on 1 rank {step_s[1]:.3f} s, on 2 ranks {step_s[2]:.3f} s: ", end="")
        print(f"{2 * step_s[1] / step_s[2]:.2f} times the volumes per second")
        print(f"all-reduce of the gradient ({4e-6 * parameters:.0f} MB) {all_reduce_s:.3f} s\n")
    print(
        "On paper: the step of one device, then the ring all-reduce of 182 MB of gradients, inside"
    )
    print(f"machines of 8 devices and between them, {LATENCY_S * 1e6:.0f} us a message, no overlap")
    print(prediction_table())


if __name__ == "__main__":
    run(main)
