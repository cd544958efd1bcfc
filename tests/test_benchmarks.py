import json
import sys
from argparse import ArgumentTypeError, Namespace
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import augmentation, distributed, pipeline, roofline, scaling, vs_pytorch
from benchmarks.augmentation_implementation import Implementation
from benchmarks.layers import Layer, layer_arrays, relative_difference, sample, vnet_layers
from benchmarks.machine import busy_core_seconds, describe_machine, new_file
from benchmarks.mindspore_implementation import from_pytorch
from benchmarks.report import TITLES, alternate, ratio, report_text, summary, table
from benchmarks.volume import write_volume
from benchmarks.worker import Worker
from src import augment
from src.commands import command_parser
from src.config import PRESETS, override_config, vnet_cfg
from src.data_manager import find_cases, read_case
from src.fast_conv3d import build
from src.promise12.phantom import phantom_case
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.vnet import create_vnet
from tests.volumes import image_of

SIZE = (32, 32, 16)


def implementation(first, times, **more):
    process = {"threads": 2, "ONEDNN_MAX_CPU_ISA": "not set", "mindspore": "2.10.0"}
    process["how"] = {"channels_last": True, "compile": False}
    of = {"load_s": 1.0, "parameters": 45_597_898, "process": process, "peak_bytes": 2_500_000_000}
    return {**of, **summary(first, times), **more}


@pytest.fixture
def measured():
    """What a run would have measured: PyTorch takes 6 and 7 times as long, by the medians."""
    phases = {
        "inference": {
            "ours": implementation(4.5, [2.0, 9.0, 1.0, 2.5, 2.0]),
            "pytorch": implementation(
                13.0,
                [12.0, 12.5, 30.0, 11.0, 12.0],
                peak_bytes=10**9,
                ways_median_s={"plain": 12.5, "channels_last": 12.0, "compiled": "no compiler"},
            ),
            "openvino_bfloat16": implementation(1.0, [1.0]),
        },
        "train_step": {
            "ours": implementation(15.0, [6.5, 7.0, 7.5], losses=[0.75, 0.5]),
            "pytorch": implementation(50.0, [49.0, 50.0, 48.0], losses=[0.75, 0.5]),
        },
    }
    layer, first = vnet_layers(SIZE)[3], vnet_layers(SIZE)[0]
    times = {"ours": summary(1.0, [0.010]), "pytorch": summary(1.0, [0.070])}
    layers = [
        {
            **shape._asdict(),
            "made_by": {"ours": "src.fast_conv3d", "pytorch": "torch"},
            "parts": dict.fromkeys(shape.parts, times),
        }
        for shape in (first, layer)
    ]
    machine = describe_machine() | {"others_cores": {"inference": 0.01, "train_step": 0.25}}
    compared = {
        "probability_lowest": 0.125,
        "probability_highest": 0.875,
        "probability_difference_ours": 2e-6,
        "loss_difference_ours": 3e-8,
    }
    args = Namespace(size=SIZE, batch=1, pairs=5, threads=2, preset=None)
    return vs_pytorch.result(args, machine, compared, phases, layers)


def test_measurements_replace_no_file(tmp_path):
    assert new_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    (tmp_path / "b.json").touch()
    for name, found in (("b.json", "exists already"), ("c/d.json", "is in no folder")):
        with pytest.raises(ArgumentTypeError, match=f"{name}: {found}; name a new file"):
            new_file(str(tmp_path / name))


def test_json_has_the_ratios_of_the_medians_and_every_time(measured):
    read = json.loads(json.dumps(measured))
    assert read["ratio_inference"] == 6.0
    assert read["ratio_train_step"] == 7.0
    assert read["ratios"]["inference"] == {"pytorch": 6.0, "openvino_bfloat16": 0.5}
    assert (read["network"]["variant"], read["network"]["loss"]) == ("monai", "dice")
    assert read["inference"]["ours"]["times_s"] == [2.0, 9.0, 1.0, 2.5, 2.0]
    assert read["inference"]["ours"]["first_call_extra_s"] == 2.5
    assert read["machine"]["usable_cores"] >= 1
    assert len(read["machine"]["load_average"]) == 3
    assert read["size"] == list(SIZE)


def test_report_shows_ratios_memory_and_what_disturbed(measured):
    text = report_text(measured)
    lines = text.splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    of_pytorch = [line.split() for line in lines if line.startswith("PyTorch  ")]
    seconds = ["s", "(11.000", "..", "30.000)"]
    assert of_pytorch[0] == ["PyTorch", "12.000", *seconds, "6.00", "1.00", "GB", "1.00", "s"]
    assert of_pytorch[1][-5:] == ["7.00", "2.50", "GB", "1.00", "s"]
    assert rows["OpenVINO, bfloat16"][-5:-4] == ["0.50"]
    ways = "plain 12.500 s; channels_last 12.000 s; compiled no compiler; takes channels_last"
    assert f"PyTorch: {ways}" in lines
    assert "other processes took 0.01 and 0.25 cores" in text
    assert "ONEDNN_MAX_CPU_ISA not set" in text
    assert "45.6 M parameters, 1x1x32x32x16; variant monai, width 16" in text
    # Two layers of 10 and 70 ms; the first one's input gradient is nobody's.
    assert rows["sum over the network"][-12:] == [
        *("20.0", "/", "140.0", "(7.0x)"),
        *("10.0", "/", "70.0", "(7.0x)"),
        *("20.0", "/", "140.0", "(7.0x)"),
    ]


def test_ratio_is_theirs_over_ours():
    of = {"ours": summary(9.0, [1.0, 2.0, 100.0]), "pytorch": summary(9.0, [8.0, 7.0, 1.0])}
    assert ratio(of) == 3.5


def test_implementations_take_turns_and_a_slow_one_leaves_early():
    order = []

    def call(name):
        return lambda: order.append(name) or float(len(order))

    times = alternate({"a": (call("a"), 3), "b": (call("b"), 3), "slow": (call("slow"), 1)})
    assert order == ["a", "b", "slow", "a", "b", "a", "b"]
    assert times == {"a": [1.0, 4.0, 6.0], "b": [2.0, 5.0, 7.0], "slow": [3.0]}


def test_table_is_aligned():
    assert table(["", "time"], [["a long title", "1 s"], ["b", "10 s"]]).splitlines() == [
        "              time",
        "------------------",
        "a long title   1 s",
        "b             10 s",
    ]


@pytest.mark.parametrize("difference", [2e-3, float("nan")])
def test_implementations_that_differ_are_not_timed(difference):
    with pytest.raises(DataError, match="this project: losses differ from PyTorch's by"):
        vs_pytorch.compare_losses({"ours": [0.5 + difference], "pytorch": [0.5]})
    assert vs_pytorch.compare_losses({"ours": [0.5], "pytorch": [0.5]})


def test_bfloat16_may_differ_more():
    losses = {"pytorch": [0.5], "pytorch_bfloat16": [0.55]}
    assert vs_pytorch.compare_losses(losses) == pytest.approx(
        {"loss_difference_pytorch_bfloat16": 0.05}
    )
    with pytest.raises(DataError, match="PyTorch, bfloat16: losses differ .* less than 0.1;"):
        vs_pytorch.compare_losses({**losses, "pytorch_bfloat16": [0.7]})


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], (128, 128, 64)),
        (["--preset", "compact"], (64, 64, 32)),
        (["--preset", "accurate"], (80, 80, 48)),
        (["--preset", "accurate", "--size", "32,32,16"], (32, 32, 16)),
    ],
)
def test_a_preset_has_its_grid(words, size, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vs_pytorch.py", *words])
    assert vs_pytorch.parse_arguments().size == size


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_measured_with_its_network_and_step(preset):
    network = vs_pytorch.network_of(preset)
    # The twin in PyTorch is written for these.
    assert (network["variant"], network["loss"], network["dropout"]) == ("instance", "dice_ce", 0.2)
    assert network["width"] == PRESETS[preset]["width"]
    assert (network["lr"], network["weight_decay"]) == (0.002, 0.0001)
    settings = [f"{key}={value}" for key, value in (network | {"width": 1}).items()]
    config = override_config(vnet_cfg, settings)
    names = [parameter.name for parameter in create_vnet(config).get_parameters()]
    theirs = [name.replace("gamma", "weight").replace("beta", "bias") for name in names]
    assert list(from_pytorch(dict.fromkeys(theirs), "instance")) == names


@pytest.mark.parametrize(
    ("has_openvino", "has_bfloat16", "peers"),
    [
        (True, True, ["pytorch_bfloat16", "openvino", "openvino_bfloat16"]),
        (False, True, ["pytorch_bfloat16"]),
        (True, False, ["openvino"]),
        (False, False, []),
    ],
)
def test_peers_are_those_that_run_here(has_openvino, has_bfloat16, peers, monkeypatch):
    monkeypatch.setattr(vs_pytorch, "has_bfloat16", lambda: has_bfloat16)
    assert vs_pytorch.peers_here(has_openvino) == peers
    assert set(peers) < set(TITLES)


def test_openvino_does_not_train_and_peers_have_no_layers():
    args = Namespace(pairs=3, stock=1, peers=["pytorch_bfloat16", "openvino"])
    both = {"ours": 3, "pytorch": 3, "stock": 1}
    peer = {"pytorch_bfloat16": 3}
    assert vs_pytorch.repetitions(args, "inference") == {**both, **peer, "openvino": 3}
    assert vs_pytorch.repetitions(args, "train_step") == {**both, **peer}
    assert vs_pytorch.repetitions(args) == both


@pytest.mark.parametrize(("variant", "width"), [("monai", 3), ("instance", 4)])
def test_layers_are_those_of_the_network(variant, width):
    network = create_vnet(override_config(vnet_cfg, [f"variant={variant}", f"width={width}"]))
    convolutions = sorted(
        parameter.shape
        for parameter in network.trainable_params()
        if parameter.name.endswith(".weight") and parameter.shape[-1] > 1
    )
    listed = sorted(
        layer_arrays(layer, batch=1)[1].shape
        for layer in vnet_layers((16, 16, 16), width, variant == "monai")
        for _ in range(layer.count)
    )
    assert listed == convolutions


def test_samples_tell_results_apart():
    x, weight, dy = layer_arrays(vnet_layers(SIZE)[3], batch=2)
    assert (x.shape, dy.shape) == ((2, 32, 16, 16, 8),) * 2
    assert relative_difference(sample(x), sample(x)) == 0
    assert relative_difference(sample(x), sample(dy)) > 1
    assert all(array.dtype == np.float32 for array in (x, weight, dy))


def test_volume_is_normalised_and_has_foreground(tmp_path):
    write_volume(tmp_path, SIZE, 2)
    volume, mask = np.load(tmp_path / "volume.npy"), np.load(tmp_path / "mask.npy")
    assert (volume.shape, mask.shape) == ((2, 1, *SIZE), (2, *SIZE))
    assert (volume.dtype, mask.dtype) == (np.float32, np.float32)
    assert abs(volume.mean()) < 1e-5
    assert abs(volume.std() - 1) < 1e-5
    assert 0 < mask.mean() < 0.5


def test_scaling_varies_one_thing_at_a_time():
    small, large = (32, 32, 32), (64, 64, 32)
    assert scaling.points([small, large], [1, 4], [1, 2], small, 2) == [
        (small, 1, 2),
        (large, 1, 2),
        (small, 4, 2),
        (small, 1, 1),
    ]


def test_scaling_table_goes_on_after_a_failure():
    of = {**summary(3.0, [1.0]), "peak_bytes": 3 * 10**9}
    line = {"size": (100, 100, 50), "batch": 2, "threads": 1, "inference": of}
    text = scaling.scaling_table([{**line, "train_step": {"error": "out of memory"}}])
    cells = ["100x100x50", "2", "1", "1.000", "s", "1.00", "s", "3.00", "GB", "+2.00", "s"]
    assert text.splitlines()[2].split() == [*cells, "failed"]


@pytest.fixture
def start_worker(tmp_path, monkeypatch):
    """Function source of a module with `Implementation` -> its worker."""

    def start(source):
        (tmp_path / "made_implementation.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return Worker("the made one", sys.executable, "made_implementation", 1)

    return start


WORKING = """
import os, signal, threading
def spin():
    while True: pass
class Implementation:
    def __init__(self): print("what a library says")
    def add(self, a, b): return a + b
    def fail(self): raise ValueError("no such layer\\nat all")
    def die(self): os.kill(os.getpid(), signal.SIGKILL)
    def spin(self): threading.Thread(target=spin, daemon=True).start()
"""


def test_worker_answers_and_passes_on_errors(start_worker):
    with start_worker(WORKING) as worker:
        assert worker.call("add", a=1, b=2) == 3
        with pytest.raises(DataError, match="^the made one: ValueError: no such layer$"):
            worker.call("fail")
        assert worker.call("add", a=1.5, b=2) == 3.5
        with pytest.raises(DataError, match=r"the made one: its process ended in die \(SIGKILL\)"):
            worker.call("die")


def test_worker_between_two_calls_takes_no_core(start_worker):
    with start_worker(WORKING) as worker:
        worker.call("spin")
        before = worker.cpu_s
        busy = busy_core_seconds()
        while busy_core_seconds() - busy < 0.3:
            pass
        assert worker.call("add", a=0, b=0) == 0
        assert worker.cpu_s - before < 0.1


def test_worker_without_its_packages_says_which(start_worker):
    with pytest.raises(DataError, match="has no module torch_that_is_absent; see benchmarks/"):
        start_worker("import torch_that_is_absent")


def test_worker_needs_a_python(tmp_path):
    with pytest.raises(DataError, match="absent/python is no Python that can be run"):
        Worker("the made one", str(tmp_path / "absent/python"), "made_implementation", 1)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--size", "100,128,64"], "100,128,64: expected three multiples of 16 as X,Y,Z"),
        (["--size", "64"], "64: expected three multiples of 16 as X,Y,Z"),
        (["--size", "16,16,16"], "--size 16,16,16: PyTorch's norms do not train"),
        (["--pairs", "0"], "--batch and --pairs are at least 1"),
        (["--stock", "9"], "--stock is 0 to --pairs"),
        (["--threads", "100000"], "--threads 100000: this process may use 1 to"),
        (["--preset", "best"], "argument --preset: invalid choice: 'best'"),
        (["--peers", "tensorflow"], "argument --peers: invalid choice: 'tensorflow'"),
    ],
)
def test_bad_arguments_end_before_anything_is_measured(arguments, found, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vs_pytorch.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(vs_pytorch.main)
    assert stop.value.code == 2
    assert found in capsys.readouterr().err


# Kernels against the machine's rates --------------------------------------------------------------

RATES = roofline.Rates(flops=100e9, sgemm_flops=50e9, bytes_per_s=10e9)


@pytest.mark.parametrize(
    ("layer", "flops", "floats", "bound_ms"),
    [
        # 16 x 16 x 8 tiles of 512 products; bound by its products
        (Layer("conv5", 32, 32, (64, 64, 32), 1), 2 * 2048 * 512 * 32**2, 2 * 32 * 2**17, 21.475),
        # 2 x 2 x 1 tiles; bound by its weights
        (Layer("conv5", 256, 256, (5, 8, 4), 1), 2 * 4 * 512 * 256**2, 2 * 256 * 160, 3.3096),
        # few channels: 2 x 2 columns of 64 x 5 products at each of 8 voxels along z
        (Layer("conv5", 1, 16, (8, 8, 8), 1), 2 * 4 * 64 * 5 * 8 * 16, 17 * 512, 0.004282),
        (Layer("conv5", 32, 2, (8, 8, 16), 1), 2 * 4 * 64 * 5 * 16 * 64, 34 * 1024, 0.026214),
        # few channels, but no plain tensor without multiples of 16 along z; bound by its bytes
        (Layer("conv5", 32, 2, (8, 8, 8), 1), 2 * 8 * 512 * 64, 34 * 512, 0.010163),
        (Layer("down", 16, 32, (8, 8, 8), 1), 2 * 64 * 8 * 512, 16 * 512 + 32 * 64, 0.005734),
        (Layer("up", 64, 16, (4, 4, 4), 1), 2 * 64 * 8 * 1024, 64 * 64 + 16 * 512, 0.01049),
    ],
)
def test_the_bound_of_a_convolution(layer, flops, floats, bound_ms):
    weights = layer_arrays(layer, 1)[1].size
    assert roofline.flops_of(layer) == flops
    assert roofline.bytes_of(layer) == 4 * (floats + weights)
    assert 1e3 * roofline.bound_of(layer, RATES) == pytest.approx(bound_ms, rel=1e-3)


def call_records(factor):
    """What one step of a network with a single convolution of 8 to 16 channels records."""
    down = (8, 8, 8, 16, 8)
    rows = [
        ("forward_layer", True, down, 6.0),
        ("conv_down2", False, (0,) * 5, 3.0),
        ("batch_statistics", False, (0,) * 5, 2.0),
        ("backward_layer", True, down, 10.0),
        ("conv_up2", False, (0,) * 5, 4.0),
        ("weight_gradient", False, (0,) * 5, 5.0),
    ]
    return [roofline.Record(*row[:3], row[3] * factor) for row in rows]


def test_kernels_are_told_apart():
    records = roofline.medians_of([call_records(1), call_records(9), call_records(2)])
    layer = Layer("down", 8, 16, (8, 8, 8), 1)
    (row,) = roofline.layer_rows([layer], records, RATES)
    assert row["seconds"] == {"forward": 6.0, "input gradient": 8.0, "weight gradient": 10.0}
    assert roofline.shares_of(records, 50.0) == {
        "2x2x2, forward": 6.0,
        "2x2x2, input gradient": 8.0,
        "2x2x2, weight gradient": 10.0,
        "statistics": 4.0,
        "the rest of the layers": 4.0,
        "outside: MindSpore, loss, Adam": 18.0,
    }


def test_calls_with_other_layers_are_not_averaged():
    with pytest.raises(DataError, match="layers of two equal calls differ"):
        roofline.medians_of([call_records(1), call_records(1)[:-1]])


def test_roofline_tables():
    records = call_records(0.001)
    layer = Layer("down", 8, 16, (8, 8, 8), 1)
    phase = {"median_s": 0.02, "shares_s": roofline.shares_of(records, 0.02)}
    measured = {
        "name": "compact",
        "size": [8, 8, 8],
        "inference": {"median_s": 0.01, "shares_s": {}},
        "train_step": phase,
        "layers": roofline.layer_rows([layer], records, roofline.Rates(1e9, 1e9, 1e9)),
    }
    machine = {"cpu": "made", "others_cores": 0.25}
    lines = roofline.report_text(RATES, machine, 2, [measured]).splitlines()
    assert lines[0] == (
        "made, 2 cores: 100 GFLOPS in registers, 50 in NumPy's sgemm, 10.0 GB/s; other processes "
        "took 0.25 cores."
    )
    assert "| 2x2x2, weight gradient | - / 5.0 |" in lines
    assert "| all | 10 / 20 |" in lines
    cells = "0.000131 | 0.0246 | 0.13 | 3.00 (4%) | 4.00 (3%) | 5.00 (3%) |"
    assert lines[-1] == f"| 1 × down 8 → 16, 8x8x8 | {cells}"


@pytest.fixture
def only_checks_syntax(monkeypatch):
    flags = ("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror")
    monkeypatch.setattr(build, "FLAGS", flags)


def test_the_profile_follows_the_kernels(tmp_path, only_checks_syntax):
    roofline.compile_profile(tmp_path)
    copies = "".join(path.read_text() for path in tmp_path.iterdir())
    for name in roofline.KERNELS:
        assert f'{{\n  const ::profile::Timer timer("{name}");\n' in copies
    for name in roofline.LAYERS:
        assert f'{{\n  const ::profile::Timer timer("{name}", bound);\n' in copies


def test_a_kernel_that_does_not_exist_any_more_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "KERNELS", ("convolve", "convolve_slowly"))
    with pytest.raises(DataError, match="no function convolve_slowly to time"):
        roofline.compile_profile(tmp_path)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--networks", "best"], "best: expected three multiples of 16"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
    ],
)
def test_roofline_refuses_bad_arguments(words, found, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["roofline.py", *words])
    with pytest.raises(SystemExit) as stop:
        run(roofline.main)
    assert stop.value.code == 2
    assert found in capsys.readouterr().err


# Many devices, on paper ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "predicted_ms"),
    [
        # 1080 + 2 * 7/8 * 182.4 MB / 15 GB/s + 14 messages of 20 us
        ("Ascend 910, 100 Gb/s for each device", 1080 + 21.28 + 0.28),
        # 8 devices of the zoo's V100 machine took 2170 ms.
        ("V100, PCIe, 100 Gb/s for each machine", 2170 + 1.4),
    ],
)
def test_a_step_on_eight_devices_is_predicted(system, predicted_ms):
    step_s, *links = distributed.SYSTEMS[system]
    assert 1000 * distributed.predicted_step_s(8, step_s, *links) == pytest.approx(
        predicted_ms, abs=0.2
    )
    assert distributed.predicted_step_s(1, step_s, *links) == step_s


def test_between_machines_each_device_sends_its_part():
    step_s, *links = distributed.SYSTEMS["V100, PCIe, 100 Gb/s for each machine"]
    inside = distributed.predicted_step_s(8, step_s, *links)
    # Four machines: 2 * 3/4 of an eighth of the gradient, at an eighth of 10 GB/s.
    between_s = 2 * 3 / 4 * 182.4e6 / 8 / 1.25e9 + 6 * 20e-6
    assert distributed.predicted_step_s(32, step_s, *links) == pytest.approx(inside + between_s)


# Augmentation ----------------------------------------------------------------------------------


@pytest.fixture
def cases_folder(tmp_path):
    """Two small cases, as `augmentation.write_cases` leaves them."""
    volumes = np.random.default_rng(0).random((2, *SIZE), dtype=np.float32)
    np.save(tmp_path / "volumes.npy", volumes)
    np.save(tmp_path / "masks.npy", volumes > 0.9)
    return tmp_path


def noise_with_a_ball(seed, index):
    """Stands for a phantom case, which takes longer."""
    noise = np.random.default_rng((seed, index)).integers(0, 900, (16, 24, 24)).astype(np.int16)
    z, y, x = np.ogrid[-7.5:8, -11.5:12, -11.5:12]
    volumes = noise, x**2 + y**2 + z**2 < 25
    return [image_of(volume, (4, 4, 6)) for volume in volumes]


def test_augmentation_is_timed_on_phantom_cases(tmp_path, monkeypatch):
    assert augmentation.phantom_case is phantom_case
    monkeypatch.setattr(augmentation, "phantom_case", noise_with_a_ball)
    augmentation.write_cases(tmp_path)
    volumes, masks = np.load(tmp_path / "volumes.npy"), np.load(tmp_path / "masks.npy")
    assert volumes.shape == masks.shape == (2, 128, 128, 64)
    assert (volumes.dtype, masks.dtype) == (np.float32, bool)
    assert volumes.min() >= 0
    assert volumes.max() <= 1
    assert masks.any(axis=(1, 2, 3)).all()


def test_augmentation_that_is_timed_has_what_other_libraries_have(cases_folder, monkeypatch):
    drawn = []
    apply = augment.apply
    monkeypatch.setattr(augment, "apply", lambda *args: drawn.append(args[0]) or apply(*args))
    implementation = Implementation("ours")
    implementation.load(str(cases_folder))
    samples = [implementation.sample(number) for number in range(2)]
    shared = [name for name in augment.TRANSFORMS if name != "transplant"]
    assert [list(of) for of in drawn] == [shared] * 2
    assert drawn[0]["gamma"] != drawn[1]["gamma"]
    for sample_ in samples:
        assert sample_["seconds"] > 0
        assert sample_["shapes"] == [list(SIZE)] * 2


def test_augmentation_of_another_size_is_not_timed(cases_folder):
    with pytest.raises(DataError, match=r"this project: .*\[32, 32, 16\].*nothing was timed"):
        augmentation.measure({"ours": sys.executable}, str(cases_folder), 1)


def test_augmentation_report_has_ratios_and_versions():
    measured = {
        "ours": {"version": "src/augment.py", **summary(1.0, [0.2, 0.1, 0.3])},
        "monai": {"version": "MONAI 1.6.0", **summary(1.0, [1.5, 1.0, 9.0])},
    }
    text = augmentation.report_text(measured, describe_machine())
    assert "image and mask of 128x128x64, all transforms" in text
    ours, theirs = text.splitlines()[-2:]
    assert ours.split("  ")[0] == "this project (src/augment.py)"
    assert (ours.split()[-1], theirs.split()[-1]) == ("1.0", "7.5")
    assert "MONAI 1.6.0" in theirs


def test_augmentation_needs_a_sample(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["augmentation.py", "--rounds", "0"])
    with pytest.raises(SystemExit) as stop:
        run(augmentation.main)
    assert stop.value.code == 2
    assert "--rounds 0: expected at least 1" in capsys.readouterr().err


# The whole path of native cases -------------------------------------------------------------------


def test_a_further_case_takes_the_difference_of_the_medians():
    one = [{"wall_s": s, "cpu_s": 2 * s} for s in (4.0, 9.0, 5.0)]
    several = [{"wall_s": s, "cpu_s": 2 * s} for s in (8.0, 7.0, 30.0)]
    assert pipeline.summarize(one, several, 4) == {
        "first": {"wall_s": 5.0, "cpu_s": 10.0},
        "further": {"wall_s": 1.0, "cpu_s": 2.0},
    }


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_native_cases_and_the_commands_for_them(tmp_path, command):
    names = pipeline.write_cases(tmp_path, 2, (20, 24, 11))
    cases = find_cases(tmp_path, names)
    for case in cases:
        image, mask = read_case(case, vnet_cfg)
        assert image.GetSize() == (20, 24, 11) and image.GetSpacing() == (0.4, 0.4, 2)
        assert sitk.GetArrayViewFromImage(mask).any()  # about the centre, where the gland is
    words = pipeline.command_line(command, "best.ckpt", tmp_path, names[:1], tmp_path / "out")
    args = command_parser(command, f"{command}.py").parse_args(list(map(str, words[2:])))
    if command == "predict":
        assert args.input == [str(cases[0].image_path)] and args.output_path == f"{tmp_path}/out"
    else:
        split = (tmp_path / "out.csv").read_text()
        assert split == "Case00.mhd\n" and args.eval_split_file_path == f"{tmp_path}/out.csv"


def test_a_command_that_fails_is_told_with_its_reason(tmp_path):
    words = pipeline.command_line("predict", "none.ckpt", tmp_path, ["a"], tmp_path / "out")
    with pytest.raises(DataError, match=r"predict\.py: error: .*a\.mhd|predict\.py: .*none\.ckpt"):
        pipeline.seconds_of(words)
    seconds = pipeline.seconds_of([sys.executable, "-c", "sum(range(10**6))"])
    assert 0 < seconds["cpu_s"] < 60 and seconds["wall_s"] > 0


def test_implementations_take_turns_with_one_case_and_with_all(tmp_path):
    asked = []

    def command(name, cases, out):
        asked.append((name, len(cases), out.name))
        return [sys.executable, "-c", "pass"]

    command_of = {name: partial(command, name) for name in ("ours", "theirs too")}
    runs = pipeline.measure(command_of, ["a", "b", "c"], 1, tmp_path)
    turn = [("ours", 1, "ours_1"), ("theirs too", 1, "theirs_too_1")]
    turn += [("ours", 3, "ours_3"), ("theirs too", 3, "theirs_too_3")]
    assert asked == 2 * turn  # the first turn is not timed
    assert {name: {n: len(found) for n, found in of.items()} for name, of in runs.items()} == {
        name: {1: 1, 3: 1} for name in command_of
    }


def monai_stub(tmp_path, variant="instance", reply="{}", networks=1):
    """MONAI's pipeline whose interpreter only prints a reply."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{reply}'\n")
    python.chmod(0o755)
    config = override_config(vnet_cfg, [f"variant={variant}", "width=2", "VolSize=32,32,16"])
    network = create_vnet(config)
    model = Namespace(config=config, network=network, members=("one",) * networks)
    return pipeline.Monai(str(python), model, tmp_path), network


def test_monai_gets_the_same_cases_weights_and_grid(tmp_path):
    monai, network = monai_stub(tmp_path)
    _, script, settings = monai.command_line(["a", "b"], tmp_path / "out")
    assert script.is_file()
    settings = json.loads(settings.read_text())
    assert settings["images"] == [f"{tmp_path}/nifti/{name}.nii.gz" for name in "ab"]
    assert (settings["size"], settings["output"]) == ([32, 32, 16], f"{tmp_path}/out")
    with np.load(settings["weights"]) as weights:
        assert {*weights} == {parameter.name for parameter in network.get_parameters()}


def test_monai_is_timed_for_the_same_network_only(tmp_path):
    volume = np.zeros((32, 32, 16), np.float32)
    monai, _ = monai_stub(tmp_path, reply='{"difference": 1e-6, "seconds": [1.5, 2.5]}')
    assert monai.network_seconds(volume, volume) == [1.5, 2.5]
    for difference in ("0.5", "NaN"):
        reply = f'{{"difference": {difference}, "seconds": [1.5]}}'
        monai, _ = monai_stub(tmp_path, reply=reply)
        with pytest.raises(DataError, match=r"probabilities differ by (0\.5|nan)"):
            monai.network_seconds(volume, volume)
    with pytest.raises(UsageError, match="variant zoo"):
        monai_stub(tmp_path, variant="zoo")
    with pytest.raises(UsageError, match="several networks, expected a single checkpoint"):
        monai_stub(tmp_path, networks=2)
