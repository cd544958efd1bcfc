r"""Time of the whole path of native cases: predict.py or eval.py, from files to masks and report.

    python benchmarks/pipeline.py --ckpt_path RUN --json pipeline.json
    python benchmarks/pipeline.py --ckpt_path RUN --command eval --cases 6 --repeats 5

Writes synthetic cases of 410x410x47 voxels of 0.4 x 0.4 x 2 mm, then runs the command with one case
and with all of them in turn, each in a process of its own. A further case takes the difference of
the two, divided by the number of cases that one had more. Beside the seconds on the clock, which
other processes on the machine change, it measures the CPU seconds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from src.images.writing import write_volume
from src.promise12.phantom import phantom_case
from src.utils.command_line import new_parser, run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_files

ROOT = Path(__file__).resolve().parents[1]
SIZE, SPACING_MM = (410, 410, 47), (0.4, 0.4, 2.0)


def to_native_grid(
    image: sitk.Image, size: tuple[int, ...], spacing_mm: tuple[float, ...], is_mask: bool
) -> sitk.Image:
    """Resamples a volume to a grid about the same centre."""
    grid = sitk.Image(size, image.GetPixelID())
    grid.SetSpacing(spacing_mm)
    grid.SetDirection(image.GetDirection())
    centres = [
        volume.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in volume.GetSize()])
        for volume in (image, grid)
    ]
    grid.SetOrigin(np.subtract(*centres))
    interpolator = sitk.sitkNearestNeighbor if is_mask else sitk.sitkLinear
    return sitk.Resample(image, grid, sitk.Transform(), interpolator)


def write_cases(folder: Path, count: int, size: tuple[int, ...] = SIZE) -> list[str]:
    """Writes synthetic native cases into img/ and gt/ of a folder; returns their names."""
    names = [f"Case{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        image, mask = phantom_case(1, number)
        for volume, path in (
            (image, folder / "img" / f"{name}.mhd"),
            (mask, folder / "gt" / f"{name}_segmentation.mhd"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(to_native_grid(volume, size, SPACING_MM, volume is mask), path)
    return names


def command_line(command: str, ckpt_path: str, data: Path, names: list[str], out: Path) -> list:
    """The command that segments or evaluates some of the cases."""
    start = [sys.executable, ROOT / f"{command}.py", "--device_target", "CPU"]
    start += ["--ckpt_path", ckpt_path]
    if command == "predict":
        images = [data / "img" / f"{name}.mhd" for name in names]
        return [*start, "--output_path", out, "--input", *images]
    split = out.with_suffix(".csv")
    split.write_text("".join(f"{name}.mhd\n" for name in names))
    start += ["--data_path", data, "--eval_split_file_path", split]
    return [*start, "--set", f"dirPredictionImage={out}"]


def seconds_of(command: list) -> dict[str, float]:
    """Runs a command; returns its seconds on the clock and of CPU time.

    Raises:
        DataError: it failed.
    """
    before, start = os.times(), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - start, os.times()
    if ended.returncode:
        raise DataError(f"{Path(command[1]).name}: {ended.stderr.strip().splitlines()[-1]}")
    cpu_s = sum(
        getattr(after, kind) - getattr(before, kind)
        for kind in ("children_user", "children_system")
    )
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def summarize(one: list[dict], several: list[dict], cases: int) -> dict[str, dict[str, float]]:
    """Medians of the first case and of each further one."""
    result: dict[str, dict[str, float]] = {"first": {}, "further": {}}
    for key in ("wall_s", "cpu_s"):
        first, all_cases = (statistics.median(run[key] for run in runs) for runs in (one, several))
        result["first"][key] = first
        result["further"][key] = (all_cases - first) / (cases - 1)
    return result


def argument_parser() -> ArgumentParser:
    """The arguments of the benchmark."""
    parser = new_parser(__doc__)
    parser.add_argument("--ckpt_path", required=True, metavar="PATH", help="checkpoint or run")
    parser.add_argument(
        "--command", choices=("predict", "eval"), default="predict", help="(default: predict)"
    )
    parser.add_argument("--cases", type=int, default=4, metavar="N", help="(default: 4)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return parser


def main() -> None:
    """Measures, prints, and writes --json."""
    args = argument_parser().parse_args()
    if args.cases < 2 or args.repeats < 1:
        raise UsageError("--cases is at least 2, --repeats at least 1")
    runs: dict[int, list[dict]] = {1: [], args.cases: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_cases(folder, args.cases)
        for repeat in range(args.repeats + 1):  # the first one builds kernels and fills caches
            for count, found in runs.items():
                out = folder / f"out_{count}"
                line = command_line(args.command, args.ckpt_path, folder, names[:count], out)
                seconds = seconds_of(line)
                if repeat:
                    found.append(seconds)
    result = summarize(runs[1], runs[args.cases], args.cases)
    for case, seconds in result.items():
        print(f"{case:8} {seconds['wall_s']:6.2f} s, CPU {seconds['cpu_s']:6.2f} s")
    if args.json:
        content = {"command": args.command, "size": SIZE, "spacing_mm": SPACING_MM, **result}
        content |= {"runs_of_cases": runs, "machine": describe_machine()}
        write_files({args.json: f"{json.dumps(content, indent=2)}\n".encode()})


if __name__ == "__main__":
    run(main)
