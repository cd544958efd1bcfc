r"""Time of the whole path of native cases: predict.py or eval.py, from files to masks and report.

    python benchmarks/pipeline.py --ckpt_path RUN --json pipeline.json
    python benchmarks/pipeline.py --ckpt_path RUN --command eval --cases 6 --repeats 5
    python benchmarks/pipeline.py --ckpt_path RUN --torch_python .venv_pytorch/bin/python

Writes synthetic cases of 410x410x47 voxels of 0.4 x 0.4 x 2 mm, then runs the command with one case
and with all of them in turn, each in a process of its own. A further case takes the difference of
the two, divided by the number of cases that one had more. Beside the seconds on the clock, which
other processes on the machine change, it measures the CPU seconds.

With --torch_python (see benchmarks/requirements.txt), MONAI segments the same cases in turn with
it, from NIfTI to NIfTI, by a V-Net with the same weights (`monai_pipeline.py`); and predict.py does
so once more without its pictures, which MONAI does not draw either. The network alone is timed by
both, as a bound, after its probabilities agreed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine, new_file, usable_cores
from src import api
from src.images.writing import write_volume
from src.predictor import foreground_probability
from src.promise12.phantom import phantom_case
from src.utils.command_line import new_parser, run
from src.utils.errors import DataError, UsageError, last_error
from src.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SIZE, SPACING_MM = (410, 410, 47), (0.4, 0.4, 2.0)
REPEATS = 10  # of the network alone
TOLERANCE = 1e-3  # of a probability


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
    """Writes synthetic native cases into img/, nifti/ and gt/ of a folder; returns their names."""
    names = [f"Case{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        image, mask = phantom_case(1, number)
        for volume, path in (
            (image, folder / "img" / f"{name}.mhd"),
            (image, folder / "nifti" / f"{name}.nii.gz"),
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


def _reason(ended: subprocess.CompletedProcess) -> str:
    return last_error(ended.stderr) or f"exit code {ended.returncode}"


class Monai:
    """MONAI's pipeline in an environment of its own.

    Args:
        python: its interpreter.
        model: what it segments with; of variant `instance`.
        folder: for weights and settings, with the cases.

    Raises:
        UsageError: another variant, which `monai_pipeline.py` does not have.
    """

    def __init__(self, python: str, model: api.Model, folder: Path) -> None:
        if model.config.variant != "instance":
            raise UsageError(
                f"--torch_python: a network of variant {model.config.variant}, MONAI's pipeline "
                "has variant instance only, as the presets do"
            )
        self.python, self.folder = python, folder
        if len(model.members) > 1:
            raise UsageError("--torch_python: several networks, expected a single checkpoint")
        weights = folder / "weights.npz"
        parameters = {p.name: p.asnumpy() for p in model.network.get_parameters()}
        np.savez(weights, **parameters)
        self.settings = {
            "weights": str(weights),
            "size": list(model.config.VolSize),
            "spacing_mm": list(model.config.dstRes),
            "flip_average": model.config.flip_average,
            "threads": usable_cores(),
        }

    def command_line(self, names: list[str], out: Path) -> list:
        """The command that segments some of the cases."""
        images = [str(self.folder / "nifti" / f"{name}.nii.gz") for name in names]
        return self._command({"images": images, "output": str(out)}, out.with_suffix(".json"))

    def network_seconds(self, volume: np.ndarray, probability: np.ndarray) -> list[float]:
        """Times the network alone.

        Raises:
            DataError: it fails, or computes another probability for the volume.
        """
        np.save(self.folder / "volume.npy", volume)
        np.save(self.folder / "probability.npy", probability)
        command = self._command({"folder": str(self.folder)}, self.folder / "network.json")
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise DataError(f"monai_pipeline.py: {_reason(ended)}")
        result = json.loads(ended.stdout.splitlines()[-1])
        if not result["difference"] < TOLERANCE:
            raise DataError(
                f"monai_pipeline.py: probabilities differ by {result['difference']:.2g}, expected "
                f"less than {TOLERANCE:g}; it is another network"
            )
        return result["seconds"]

    def _command(self, task: dict, settings_path: Path) -> list:
        settings_path.write_text(json.dumps({**self.settings, **task}))
        return [self.python, ROOT / "benchmarks" / "monai_pipeline.py", settings_path]


def network_alone(model: api.Model, monai: Monai | None) -> dict[str, float]:
    """Returns the median seconds that the network alone takes for a case, by whose it is."""
    volume = np.random.default_rng(1).normal(size=model.config.VolSize).astype(np.float32)
    probability = foreground_probability(model.network, volume)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(1 + model.config.flip_average):
            foreground_probability(model.network, volume)
        seconds.append(time.perf_counter() - start)
    found = {"ours": statistics.median(seconds)}
    if monai is not None:
        found["monai"] = statistics.median(monai.network_seconds(volume, probability))
    return found


def seconds_of(command: list) -> dict[str, float]:
    """Runs a command; returns its seconds on the clock and of CPU time.

    Raises:
        DataError: it failed.
    """
    before, start = os.times(), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - start, os.times()
    if ended.returncode:
        raise DataError(f"{Path(command[1]).name}: {_reason(ended)}")
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
    parser.add_argument(
        "--torch_python",
        metavar="PYTHON",
        help="interpreter with MONAI, to measure it, too; only with --command predict",
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there, too")
    return parser


def measure(
    command_of: dict[str, Callable[[list[str], Path], list]],
    names: list[str],
    repeats: int,
    folder: Path,
) -> dict[str, dict[int, list[dict]]]:
    """Runs every implementation with one case and with all, in turn.

    Args:
        command_of: name of an implementation -> its command for some cases and an output folder.
        names: of the cases.
        repeats: timed runs of each; one before them builds kernels and fills caches.
        folder: for the outputs.

    Returns:
        Name -> number of cases -> the `seconds_of` each run.
    """
    counts = (1, len(names))
    runs: dict = {name: {count: [] for count in counts} for name in command_of}
    for repeat in range(repeats + 1):
        for count in counts:
            for name, command in command_of.items():
                out = folder / f"{name.replace(' ', '_')}_{count}"
                seconds = seconds_of(command(names[:count], out))
                if repeat:
                    runs[name][count].append(seconds)
    return runs


def main() -> None:
    """Measures, prints, and writes --json."""
    args = argument_parser().parse_args()
    if args.cases < 2 or args.repeats < 1:
        raise UsageError("--cases is at least 2, --repeats at least 1")
    if args.torch_python and args.command != "predict":
        raise UsageError("--torch_python: MONAI's pipeline has no metrics; use --command predict")
    model = api.load(args.ckpt_path, "CPU")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_cases(folder, args.cases)
        ours = partial(command_line, args.command, args.ckpt_path, folder)
        command_of: dict = {"ours": ours}
        monai = None
        if args.torch_python:
            monai = Monai(args.torch_python, model, folder)
            command_of["ours without pictures"] = lambda *of: [*ours(*of), "--no_report"]
            command_of["monai"] = monai.command_line
        alone = network_alone(model, monai)
        runs = measure(command_of, names, args.repeats, folder)
    result = {name: summarize(of[1], of[args.cases], args.cases) for name, of in runs.items()}
    for name, of in result.items():
        for case, seconds in of.items():
            print(f"{name:22} {case:8} {seconds['wall_s']:6.2f} s, CPU {seconds['cpu_s']:6.2f} s")
    for name, seconds_alone in alone.items():
        print(f"{name:22} the network alone {seconds_alone:6.3f} s a case")
    if args.json:
        content = {"command": args.command, "size": SIZE, "spacing_mm": SPACING_MM, **result}
        content |= {"network_alone_s": alone, "runs_of_cases": runs, "machine": describe_machine()}
        write_json(args.json, content)


if __name__ == "__main__":
    run(main)
