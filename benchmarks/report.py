"""Ratios and text tables of measured times."""

import sys
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.layers import PARTS, Layer

TITLES = {
    "ours": "this project",
    "pytorch": "PyTorch",
    "pytorch_bfloat16": "PyTorch, bfloat16",
    "openvino": "OpenVINO",
    "openvino_bfloat16": "OpenVINO, bfloat16",
    "stock": "stock MindSpore",
}
PHASES = {"inference": "inference", "train_step": "training step"}


def progress(text: str) -> None:
    """Prints the progress to standard error, apart from the tables."""
    print(f"... {text}", file=sys.stderr, flush=True)


def alternate(calls: dict[str, tuple[Callable[[], float], int]]) -> dict[str, list[float]]:
    """Measures in turns A B C, A B C, ...: a slow phase of the machine then affects all of them.

    Args:
        calls: name -> (function that returns the time it took, number of calls).

    Returns:
        name -> times in order.
    """
    times = {name: [] for name in calls}
    for round_ in range(max(count for _, count in calls.values())):
        for name, (call, count) in calls.items():
            if round_ < count:
                times[name].append(call())
    return times


def summary(first_call_s: float, times_s: list[float]) -> dict[str, float | list[float]]:
    """The statistics of one implementation's calls.

    Args:
        first_call_s: time of the first call, which compiles.
        times_s: times of the measured calls.
    """
    return {
        "first_call_s": first_call_s,
        "first_call_extra_s": first_call_s - median(times_s),
        "times_s": times_s,
        "median_s": median(times_s),
    }


def ratio(measured: dict[str, dict], theirs: str = "pytorch", ours: str = "ours") -> float:
    """Returns the speed-up: the other's median time over ours."""
    return measured[theirs]["median_s"] / measured[ours]["median_s"]


def time_text(summary_: dict) -> str:
    """Formats the median and the range of the times."""
    times = summary_["times_s"]
    return f"{median(times):.3f} s ({min(times):.3f} .. {max(times):.3f})"


def memory_text(summary_: dict) -> str:
    """Formats the peak of memory in GB (1e9 bytes)."""
    return f"{summary_['peak_bytes'] / 1e9:.2f} GB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right; a line under the header."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]

    def line(cells):
        aligned = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "-" * len(line(header)), *map(line, rows)])


def phase_table(phase: str, measured: dict[str, dict]) -> str:
    """Inference or training of each implementation: time, over ours, peak memory, first call."""
    header = [PHASES[phase], "median", "over ours", "peak memory", "first call's extra"]
    rows = [
        [
            TITLES[name],
            time_text(of),
            f"{ratio(measured, name):.2f}",
            memory_text(of),
            f"{of['first_call_extra_s']:.2f} s",
        ]
        for name, of in measured.items()
    ]
    return table(header, rows)


def ways_text(measured: dict[str, dict]) -> list[str]:
    """What PyTorch chose, one line for each implementation in it."""
    lines = []
    for name, of in measured.items():
        if "ways_median_s" in of:
            ways = [
                f"{way} {f'{found:.3f} s' if isinstance(found, float) else found}"
                for way, found in of["ways_median_s"].items()
            ]
            on = [option for option, taken in of["process"]["how"].items() if taken]
            lines.append(f"{TITLES[name]}: {'; '.join(ways)}; takes {', '.join(on)}")
    return lines


def layers_table(layers: list[dict]) -> str:
    """Medians of each layer, PyTorch's over ours in brackets; last the network's sums."""
    names = list(layers[0]["made_by"])

    def cell(milliseconds):
        quotient = milliseconds["pytorch"] / milliseconds["ours"]
        return f"{' / '.join(f'{milliseconds[name]:.1f}' for name in names)} ({quotient:.1f}x)"

    sums = {part: dict.fromkeys(names, 0.0) for part in PARTS}
    rows = []
    for layer in layers:
        cells = []
        for part in PARTS:
            if part not in layer["parts"]:
                cells.append("")
                continue
            of = {name: 1e3 * layer["parts"][part][name]["median_s"] for name in names}
            sums[part] = {name: sums[part][name] + layer["count"] * of[name] for name in names}
            cells.append(cell(of))
        shape = Layer(*(layer[field] for field in Layer._fields))
        rows.append([f"{layer['count']} x {shape.name}", layer["made_by"]["ours"], *cells])
    rows.append(["sum over the network", "", *(cell(sums[part]) for part in PARTS)])
    return table(["layer", "ours is", *PARTS], rows)


def report_text(measured: dict) -> str:
    """Returns the text that is printed at the end."""
    machine, compared = measured["machine"], measured["compared"]
    phases = [phase for phase in PHASES if phase in measured]
    processes = {name: of["process"] for phase in phases for name, of in measured[phase].items()}
    shape = "x".join(map(str, (measured["batch"], 1, *measured["size"])))
    others = " and ".join(f"{cores:.2f}" for cores in machine["others_cores"].values())
    parameters = measured[phases[0]]["ours"]["parameters"] / 1e6
    lines = [
        f"{machine['cpu']}, {machine['usable_cores']} cores, {measured['threads']} threads each; "
        f"load average {machine['load_average'][0]:.2f} at the start",
        f"other processes took {others} cores while it was timed",
    ]
    for name, process in processes.items():
        versions = [
            f"{library} {process[library]}"
            for library in ("mindspore", "torch", "monai", "openvino")
            if library in process
        ]
        lines.append(
            f"{TITLES[name]}: {', '.join(versions)}, {process['threads']} threads, "
            f"ONEDNN_MAX_CPU_ISA {process['ONEDNN_MAX_CPU_ISA']}"
        )
    differences = ", ".join(
        f"{key.replace('_', ' ')} {value:.1e}"
        for key, value in compared.items()
        if "difference" in key
    )
    lines.append(
        f"compared before timing: {differences} (tolerance {measured['tolerance']:g}, bfloat16 "
        f"{measured['bfloat16_tolerance']:g})"
    )
    if "probability_lowest" in compared:
        lines.append(
            f"probabilities span {compared['probability_lowest']:.3f} .. "
            f"{compared['probability_highest']:.3f}"
        )
    settings = ", ".join(f"{key} {value}" for key, value in measured["network"].items())
    lines += [
        "",
        f"V-Net, {parameters:.1f} M parameters, {shape}; {settings}",
        f"median (fastest .. slowest) of {measured['pairs']} in alternation",
    ]
    for phase in phases:
        lines += ["", phase_table(phase, measured[phase]), *ways_text(measured[phase])]
    if "layers" in measured:
        names = " / ".join(TITLES[name] for name in measured["layers"][0]["made_by"])
        lines += [
            "",
            f"Each convolution by itself: {names}, ms",
            "(5x5x5 of this project: Conv3d copies plain tensors to blocked ones and back, which\n"
            "the network does not, and computes both gradients at once: either column holds both)",
            layers_table(measured["layers"]),
        ]
    return "\n".join(lines)
