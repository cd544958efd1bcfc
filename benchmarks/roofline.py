r"""What each kernel of the fast CPU V-Net reaches of this machine's rates, as Markdown tables.

    python benchmarks/roofline.py                                 # four networks, about 3 minutes
    python benchmarks/roofline.py --networks accurate 64,64,32 --repeats 9 --json roofline.json

First and last it measures the rates of the cores that the networks get: multiply-adds on registers
and a[i] = b[i] + s c[i] over memory, compiled with the flags of the kernels, and NumPy's matrix
product. In between it runs inference and training steps of whole networks, in which each layer
and each kernel is timed (profile_kernels.cpp); the median of the repeats counts.

A kernel's bound is the larger of two times: its multiplications at the register rate, and its
compulsory bytes (input, weights and output once, in float32) at the memory rate. A 5x5x5
convolution counts the 512 multiplications for 4x4x4 outputs of the Winograd transform, the others
their direct sum. Transforms and packing count nothing.
"""

import argparse
import ctypes
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.layers import PARTS, Layer, vnet_layers
from benchmarks.machine import busy_core_seconds, describe_machine, new_file
from benchmarks.report import progress
from benchmarks.volume import volume_size, write_volume
from benchmarks.vs_pytorch import network_of
from src.config import PRESETS
from src.fast_conv3d import build
from src.fast_conv3d.protocol import LANES, PLAIN_CHANNELS
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_json

NETWORKS = ("128,128,64", "64,64,32", "accurate", "compact")
SOURCE = Path(__file__).with_name("profile_kernels.cpp")
TILE, POINTS = 4, 8  # Winograd F(4, 5): 8 products for 4 outputs, along each axis
PROBES = 3  # of each rate; the highest counts
MATRIX_SIDE = 2048

# The functions of the native code that compute a layer.
LAYERS = ("infer_layer", "infer_last", "forward_layer", "backward_layer", "backward_last")
# Kernel, a function of the native code in any of its namespaces -> part of a convolution, in the
# forward functions of a layer and in backward.
FORWARD_PARTS = dict.fromkeys(("convolve", "conv_down2", "conv_up2"), PARTS[0])
BACKWARD_PARTS = {**dict.fromkeys(FORWARD_PARTS, PARTS[1]), "weight_gradient": PARTS[2]}
STATISTICS, PASS, PASS_BACK = "statistics", "norm, ELU, sum, concatenation", "the same, backward"
PASSES = {
    "batch_statistics": STATISTICS,
    "post_ops_forward": PASS,
    "concat_forward": PASS,
    "post_ops_backward": PASS_BACK,
}
KERNELS = (*BACKWARD_PARTS, *PASSES)
CONV5, CONV2, FIRST, HEAD = "5x5x5", "2x2x2", "1 to width", "to 2 channels"
REST, OUTSIDE = "the rest of the layers", "outside: MindSpore, loss, Adam"
# The rows of "where the time goes".
GROUPS = (
    *(f"{kind}, {part}" for kind in (CONV5, CONV2, FIRST, HEAD) for part in PARTS),
    *(STATISTICS, PASS, PASS_BACK, REST, OUTSIDE),
)
PHASES = ("inference", "train_step")


class RecordStruct(ctypes.Structure):
    """`profile::Record`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("is_layer", ctypes.c_int),
        ("shape", ctypes.c_int64 * 5),
        ("seconds", ctypes.c_double),
    )


class Record(NamedTuple):
    """A part of a layer's computation, or of a kernel inside the layer before it.

    Attributes:
        name: of the function.
        is_layer: whether it computes a layer.
        shape: X, Y, Z of a layer's input and its channels, out and in; zeros of a kernel.
        seconds: that it took.
    """

    name: str
    is_layer: bool
    shape: tuple[int, ...]
    seconds: float


class Rates(NamedTuple):
    """What the cores reach together.

    Attributes:
        flops: floating-point operations per second of multiply-adds on registers.
        sgemm_flops: of NumPy's float32 matrix product.
        bytes_per_s: of a[i] = b[i] + s c[i], counting three floats.
    """

    flops: float
    sgemm_flops: float
    bytes_per_s: float


def compile_profile(folder: Path) -> Path:
    """Compiles the kernels with timers into a folder; returns the library's path.

    Raises:
        DataError: it does not compile, or what is to be timed has another name now.
    """
    timed = "|".join((*KERNELS, *LAYERS))
    definition = re.compile(rf"^((?:inline )?void ({timed})\([^{{}};]*\) {{\n)", re.MULTILINE)
    found = set()

    def with_timer(match):
        layer = ", bound" if match[2] in LAYERS else ""
        return f'{match[1]}  const ::profile::Timer timer("{match[2]}"{layer});\n'

    for path in (*build.SOURCES.glob("*.h"), *build.SOURCES.glob("*.cpp")):
        text = path.read_text()
        found |= {name for _, name in definition.findall(text)}
        (folder / path.name).write_text(definition.sub(with_timer, text))
    if absent := {*KERNELS, *LAYERS} - found:
        raise DataError(
            f"{build.SOURCES}: no function {', '.join(sorted(absent))} to time; correct the lists "
            f"of functions in {Path(__file__).name}"
        )
    library = folder / "libprofile.so"
    compiler, _ = build.find_compiler()
    command = [*compiler, *build.FLAGS, build.native_flag()]
    command += [f"-I{folder}", "-o", str(library), str(SOURCE)]
    compiled = build.run_compiler(command)
    if compiled.returncode:
        raise DataError(f"{SOURCE.name} does not compile: {build.reason_of_failure(compiled)}")
    return library


def load_profile(path: Path) -> ctypes.CDLL:
    """Loads the library of `compile_profile`."""
    library = ctypes.CDLL(str(path))
    library.profile_records.restype = ctypes.POINTER(RecordStruct)
    library.peak_flops.restype = library.copy_rate.restype = ctypes.c_double
    return library


def measure_rates(library: ctypes.CDLL, threads: int) -> Rates:
    """Measures the machine's rates; the highest of some probes, taken in turns."""
    a, b = (np.random.default_rng(0).random((MATRIX_SIDE,) * 2, np.float32) for _ in range(2))
    flops, sgemm_flops, bytes_per_s = [], [], []
    a @ b  # starts NumPy's threads
    for _ in range(PROBES):
        flops.append(library.peak_flops(threads))
        started = time.perf_counter()
        a @ b
        sgemm_flops.append(2 * MATRIX_SIDE**3 / (time.perf_counter() - started))
        bytes_per_s.append(library.copy_rate(threads))
    return Rates(max(flops), max(sgemm_flops), max(bytes_per_s))


def highest(*rates: Rates) -> Rates:
    """Returns the highest of each rate: other users of the machine only lower them."""
    return Rates(*map(max, zip(*rates, strict=True)))


def calls_of(library: ctypes.CDLL, call: Callable[[], Any], repeats: int) -> list[list[Record]]:
    """Returns the records of each of some calls."""
    calls = []
    for _ in range(repeats):
        library.profile_clear()
        call()
        found = library.profile_records()[: library.profile_count()]
        calls.append(
            [Record(r.name.decode(), bool(r.is_layer), tuple(r.shape), r.seconds) for r in found]
        )
    return calls


def medians_of(calls: list[list[Record]]) -> list[Record]:
    """Returns the records with the median time of each; every call has to have the same ones.

    Raises:
        DataError: the layers were computed in another order or number.
    """
    keys = {tuple(record[:3] for record in records) for records in calls}
    if len(keys) != 1:
        raise DataError("the layers of two equal calls differ: they cannot be averaged")
    return [
        records[0]._replace(seconds=median(record.seconds for record in records))
        for records in zip(*calls, strict=True)
    ]


def timed_layers(records: list[Record]) -> list[tuple[Record, list[Record]]]:
    """Returns each part of a layer's computation with its kernels."""
    grouped: list[tuple[Record, list[Record]]] = []
    for record in records:
        if record.is_layer:
            grouped.append((record, []))
        else:
            grouped[-1][1].append(record)
    return grouped


def part_seconds(records: list[Record]) -> dict[tuple, dict[str, list[float]]]:
    """Returns shape of a layer -> part of its convolution -> times."""
    found: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer, kernels in timed_layers(records):
        parts = BACKWARD_PARTS if layer.name.startswith("backward") else FORWARD_PARTS
        for kernel in kernels:
            if kernel.name in parts:
                found[layer.shape][parts[kernel.name]].append(kernel.seconds)
    return found


def shape_of(layer: Layer) -> tuple[int, ...]:
    """`Record.shape` of a convolution."""
    return (*layer.sides, layer.out_channels, layer.in_channels)


def is_plain(layer: Layer) -> bool:
    """Whether a 5x5x5 convolution reads or writes a plain tensor, as `Shape::between_units`."""
    few = min(layer.in_channels, layer.out_channels) <= PLAIN_CHANNELS
    return layer.in_channels == 1 or (few and layer.sides[2] % LANES == 0)


def flops_of(layer: Layer) -> float:
    """Floating-point operations of any part of a convolution of one volume, see the module."""
    filters = layer.in_channels * layer.out_channels
    if layer.kind == "conv5":
        tiles_x, tiles_y, tiles_z = (-(-side // TILE) for side in layer.sides)
        if not is_plain(layer):
            return float(2 * filters * tiles_x * tiles_y * tiles_z * POINTS**3)
        taps_and_z = layer.kernel * layer.sides[2]  # direct sums along z
        return float(2 * filters * tiles_x * tiles_y * POINTS**2 * taps_and_z)
    sides = [side // 2 for side in layer.sides] if layer.kind == "down" else layer.sides
    return float(2 * filters * np.prod(sides) * layer.kernel**3)


def bytes_of(layer: Layer) -> float:
    """Bytes of input, weights and output of any part of a convolution of one volume."""
    voxels = np.prod(layer.sides)
    scale = {"conv5": 1.0, "down": 1 / 8, "up": 8.0}[layer.kind]
    weights = layer.in_channels * layer.out_channels * layer.kernel**3
    return float(4 * (voxels * (layer.in_channels + scale * layer.out_channels) + weights))


def bound_of(layer: Layer, rates: Rates) -> float:
    """The least time of any part of a convolution, in s."""
    return max(flops_of(layer) / rates.flops, bytes_of(layer) / rates.bytes_per_s)


def layer_rows(layers: list[Layer], records: list[Record], rates: Rates) -> list[dict]:
    """Returns a row for each convolution: bound_s and the mean seconds of each part."""
    found = part_seconds(records)
    return [
        {
            "name": layer.name,
            "count": layer.count,
            "gflop": flops_of(layer) / 1e9,
            "mb": bytes_of(layer) / 1e6,
            "bound_s": bound_of(layer, rates),
            "seconds": {
                part: float(np.mean(times)) for part, times in found[shape_of(layer)].items()
            },
        }
        for layer in layers
    ]


def kind_of(layer: Record) -> str:
    """The group of a layer in "where the time goes"."""
    out_channels, in_channels = layer.shape[3:]
    if in_channels == 1:
        return FIRST
    if out_channels == 2:
        return HEAD
    return CONV5 if out_channels == in_channels else CONV2


def shares_of(records: list[Record], total_s: float) -> dict[str, float]:
    """Returns where the time goes: group -> seconds, with what is outside the layers."""
    groups: dict[str, float] = defaultdict(float)
    for layer, kernels in timed_layers(records):
        parts = BACKWARD_PARTS if layer.name.startswith("backward") else FORWARD_PARTS
        for kernel in kernels:
            if kernel.name in PASSES:
                groups[PASSES[kernel.name]] += kernel.seconds
            else:
                groups[f"{kind_of(layer)}, {parts[kernel.name]}"] += kernel.seconds
        groups[REST] += layer.seconds - sum(kernel.seconds for kernel in kernels)
    layers_s = sum(record.seconds for record in records if record.is_layer)
    groups[OUTSIDE] = total_s - layers_s
    return dict(groups)


def measure(name: str, library: ctypes.CDLL, repeats: int) -> dict:
    """Measures one network of `--networks`."""
    from benchmarks.mindspore_implementation import Implementation

    network = network_of(name if name in PRESETS else None)
    size = PRESETS[name]["VolSize"] if name in PRESETS else volume_size(name)
    result: dict[str, Any] = {"name": name, "size": list(size), "network": network}
    with tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as folder:
        write_volume(folder, size, 1)
        for phase in PHASES:
            progress(f"{name}: {phase}")
            implementation = Implementation(list(size), 1, "on", network)
            implementation.load(folder, phase == "train_step")
            timed = []

            def call(phase=phase, implementation=implementation, timed=timed):
                step = implementation.infer if phase == "inference" else training_step
                timed.append(step()["seconds"])

            def training_step(implementation=implementation):
                return implementation.train_step(drop=True)

            call()
            call()
            timed.clear()
            records = medians_of(calls_of(library, call, repeats))
            result[phase] = {
                "median_s": median(timed),
                "shares_s": shares_of(records, median(timed)),
                "records": records,
            }
    return result


def layers_of(of: dict) -> list[Layer]:
    """The convolutions of a network that `measure` measured."""
    network = of["network"]
    return vnet_layers(tuple(of["size"]), network["width"], network["variant"] == "monai")


def load_until_now() -> np.ndarray:
    """Returns seconds on the clock, and core seconds of all other processes."""
    return np.array([time.perf_counter(), busy_core_seconds() - time.process_time()])


def rates_text(rates: Rates, machine: dict, threads: int) -> str:
    """The rates as a sentence."""
    return (
        f"{machine['cpu']}, {threads} cores: {rates.flops / 1e9:.0f} GFLOPS in registers, "
        f"{rates.sgemm_flops / 1e9:.0f} in NumPy's sgemm, {rates.bytes_per_s / 1e9:.1f} GB/s; "
        f"other processes took {machine['others_cores']:.2f} cores."
    )


def layers_markdown(of: dict) -> str:
    """The table of a network's convolutions: bound, and of each part time and share of it."""
    lines = [
        f"| {title_of(of)} | GFLOP | MB | bound, ms | {', ms | '.join(PARTS)}, ms |",
        "|---" * (4 + len(PARTS)) + "|",
    ]
    for row in of["layers"]:
        cells = []
        for part in PARTS:
            seconds = row["seconds"].get(part)
            share = f"{1e3 * seconds:.2f} ({row['bound_s'] / seconds:.0%})" if seconds else ""
            cells.append(share)
        name = row["name"].replace("->", " → ").replace(" @ ", ", ")
        numbers = f"{row['gflop']:.3g} | {row['mb']:.3g} | {1e3 * row['bound_s']:.2g}"
        lines.append(f"| {row['count']} × {name} | {numbers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shares_markdown(measured: list[dict]) -> str:
    """The table of where inference and a training step go, in ms."""
    lines = [
        "| inference / step, ms | " + " | ".join(map(title_of, measured)) + " |",
        "|---" * (1 + len(measured)) + "|",
    ]

    def row(title, cells):
        return f"| {title} | {' | '.join(' / '.join(cell) for cell in cells)} |"

    for group in GROUPS:
        found = [[of[phase]["shares_s"].get(group, 0.0) for phase in PHASES] for of in measured]
        if np.any(found):
            cells = [[f"{1e3 * s:.1f}" if s else "-" for s in pair] for pair in found]
            lines.append(row(group, cells))
    sums = [[f"{1e3 * of[phase]['median_s']:.0f}" for phase in PHASES] for of in measured]
    return "\n".join([*lines, row("all", sums)])


def title_of(of: dict) -> str:
    """The name of a network in a table."""
    sides = "x".join(map(str, of["size"]))
    return sides if of["name"] not in PRESETS else f"`{of['name']}`, {sides}"


def report_text(rates: Rates, machine: dict, threads: int, measured: list[dict]) -> str:
    """The Markdown that is printed."""
    parts = [rates_text(rates, machine, threads), shares_markdown(measured)]
    return "\n\n".join([*parts, *map(layers_markdown, measured)])


def network_name(text: str) -> str:
    """Checks a value of --networks."""
    if text not in PRESETS:
        volume_size(text)
    return text


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        type=network_name,
        default=NETWORKS,
        metavar="NAME",
        help="presets, or X,Y,Z of the full width",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed calls of each")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all measurements")
    args = parser.parse_args()
    if args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: expected at least 1")
    return args


def main() -> None:
    """Measures, prints Markdown, and writes --json."""
    args = parse_arguments()
    from src.fast_conv3d import operators

    threads = operators.thread_count()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="vnet_benchmark_") as folder:
        progress("compiling")
        path = compile_profile(Path(folder))
        library = load_profile(path)
        library.set_threads(threads)
        start = load_until_now()
        operators.library = lambda: str(path)
        before = measure_rates(library, threads)
        measured = [measure(name, library, args.repeats) for name in args.networks]
        rates = highest(before, measure_rates(library, threads))
    wall_s, others_s = load_until_now() - start
    machine["others_cores"] = max(0.0, others_s / wall_s)
    for of in measured:
        of["layers"] = layer_rows(layers_of(of), of["train_step"]["records"], rates)
    print(report_text(rates, machine, threads, measured))
    if args.json:
        content = {"machine": machine, "rates": rates._asdict(), "measured": measured}
        write_json(args.json, content)


if __name__ == "__main__":
    run(main)
