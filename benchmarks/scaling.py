"""Measures time and memory of this project against volume size, batch and threads, on the CPU.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --sizes 64,64,32 128,128,64 --batches 1 2 4 --threads 1 2 \
        --base 64,64,32 --reps 3 --json scaling.json

Each size is measured with one volume on all cores, then the base size with each batch and with
each number of threads (OMP_NUM_THREADS, on as many cores). Every line has a process of its own for
inference and one for training, so that each shows its own peak of memory (VmHWM, after the weights
are loaded). A line that runs out of memory is marked as failed, and the others are measured.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine, new_file, usable_cores
from benchmarks.report import PHASES, memory_text, progress, summary, table
from benchmarks.volume import volume_size, write_volume
from benchmarks.worker import CALLS, Worker
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_json
from src.utils.process import term_as_exit

SIZES = ((32, 32, 32), (64, 64, 32), (96, 96, 48), (128, 128, 64))


class Point(NamedTuple):
    """The settings of one line of the table."""

    size: tuple[int, int, int]
    batch: int
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{'x'.join(map(str, self.size))}, batch {self.batch}, {threads}"


def points(sizes, batches, threads, base, cores: int) -> list[Point]:
    """Returns the lines of the table: one of size, batch and threads is varied at a time."""
    lines = [Point(size, 1, cores) for size in sizes]
    lines += [Point(base, batch, cores) for batch in batches]
    lines += [Point(base, 1, count) for count in threads]
    return list(dict.fromkeys(lines))


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line.

    Raises:
        UsageError: values that cannot be measured.
    """
    cores = usable_cores()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=volume_size, nargs="*", default=SIZES, metavar="X,Y,Z")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4], metavar="N")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="*",
        default=[2**power for power in range(cores.bit_length())],
        metavar="N",
        help="default: 1, 2, 4, ... up to the cores",
    )
    parser.add_argument(
        "--base",
        type=volume_size,
        default="64,64,32",
        metavar="X,Y,Z",
        help="size at which batch and threads vary (default: 64,64,32)",
    )
    parser.add_argument("--reps", type=int, default=3, help="calls that are timed (default: 3)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all measurements")
    args = parser.parse_args()
    if min([args.reps, *args.batches, *args.threads]) < 1:
        raise UsageError("--reps, --batches and --threads are at least 1")
    if max(args.threads, default=1) > cores:
        raise UsageError(f"--threads {max(args.threads)}: this process may use 1 to {cores}")
    return args


def measure(point: Point, phase: str, reps: int) -> dict:
    """Returns the `summary` of inference or training, with peak_bytes; on failure the `error`."""
    method, undropped, timed = CALLS[phase]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as folder,
            Worker(
                "this project",
                sys.executable,
                "benchmarks.mindspore_implementation",
                point.threads,
                size=point.size,
                batch=point.batch,
                fast_conv3d="on",
            ) as worker,
        ):
            write_volume(folder, point.size, point.batch)
            worker.call("load", folder=folder, training=phase == "train_step")
            first_call_s = worker.call(method, **undropped)["seconds"]
            worker.call(method, **undropped)
            times_s = [worker.call(method, **timed)["seconds"] for _ in range(reps)]
            peak = worker.call("peak_memory")
    except DataError as error:
        progress(str(error))
        return {"error": str(error)}
    return {**summary(first_call_s, times_s), "peak_bytes": peak}


def scaling_table(measured: list[dict]) -> str:
    """One line per point: time, time per million voxels, peak of memory, first call's extra."""
    header = ["size", "batch", "threads"]
    for title in PHASES.values():
        header += [title, "per Mvoxel", "peak", "first call"]
    rows = []
    for line in measured:
        size = line["size"]
        row = ["x".join(map(str, size)), str(line["batch"]), str(line["threads"])]
        megavoxels = line["batch"] * size[0] * size[1] * size[2] / 1e6
        for phase in PHASES:
            of = line[phase]
            if "error" in of:
                row += ["failed", "", "", ""]
                continue
            row += [
                f"{of['median_s']:.3f} s",
                f"{of['median_s'] / megavoxels:.2f} s",
                memory_text(of),
                f"{of['first_call_extra_s']:+.2f} s",
            ]
        rows.append(row)
    return table(header, rows)


def main() -> None:
    """Measures, prints, and writes --json."""
    args = parse_arguments()
    machine = describe_machine()
    measured = []
    with term_as_exit():
        for point in points(args.sizes, args.batches, args.threads, args.base, usable_cores()):
            line = point._asdict()
            for phase, title in PHASES.items():
                progress(f"{point}: {title}")
                line[phase] = measure(point, phase, args.reps)
            measured.append(line)
    machine["load_average_at_end"] = list(os.getloadavg())
    print(f"{machine['cpu']}, {machine['usable_cores']} cores; V-Net, full width, float32")
    print(f"median of {args.reps}; load average {machine['load_average'][0]:.2f} at the start\n")
    print(scaling_table(measured))
    if args.json:
        content = {"machine": machine, "reps": args.reps, "measured": measured}
        write_json(args.json, content)
        print(f"{args.json}: written")


if __name__ == "__main__":
    run(main)
