"""The fast convolution against direct sums in float64, which NumPy does without MindSpore."""

import ctypes
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.fast_conv3d import operators
from src.fast_conv3d.conv3d import Conv3d
from tests.helpers import ROOT
from tests.networks import in_mode
from tests.rounding import LAYER_ERROR

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
TAPS = list(product(range(5), repeat=3))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The graph compiler leaves a folder behind where it fails."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=MODES)
def mode(request):
    """A test runs in both modes."""
    with in_mode(MODES[request.param]):
        yield request.param


@pytest.fixture
def pynative():
    """Without the time to compile graphs."""
    with in_mode(ms.PYNATIVE_MODE):
        yield


# ---------------------------------------------------------------------------------------- oracle


def exact(array):
    """As float64; `np.float64(array)` makes a scalar of a single value."""
    return np.asarray(array, np.float64)


def window(padded, tap, sides):
    """What a tap of the kernel sees of a volume with a margin of 2, flat: (.., voxels)."""
    slices = (slice(start, start + side) for start, side in zip(tap, sides, strict=True))
    return padded[(..., *slices)].reshape(*padded.shape[:-3], -1)


def with_margin(volumes):
    return np.pad(volumes, [(0, 0)] * (volumes.ndim - 3) + [(2, 2)] * 3)


def oracle(x, weight, bias):
    """(batch, C, X, Y, Z), (K, C, 5, 5, 5), (K,) -> (batch, K, X, Y, Z)."""
    sides, padded = x.shape[2:], with_margin(exact(x))
    y = sum(exact(weight[(..., *tap)]) @ window(padded, tap, sides) for tap in TAPS)
    return (y + bias[:, None]).reshape(len(x), -1, *sides)


def oracle_gradients(x, weight, d_y):
    """Gradients of x, weight and bias."""
    sides, padded = x.shape[2:], with_margin(exact(x))
    d_flat = exact(d_y).reshape(*d_y.shape[:2], -1)
    d_padded, d_weight = np.zeros_like(padded), np.zeros(weight.shape)
    for tap in TAPS:
        slices = tuple(slice(start, start + side) for start, side in zip(tap, sides, strict=True))
        d_window = exact(weight[(..., *tap)]).T @ d_flat
        d_padded[(..., *slices)] += d_window.reshape(x.shape)
        d_weight[(..., *tap)] = np.einsum("bkv,bcv->kc", d_flat, window(padded, tap, sides))
    return d_padded[..., 2:-2, 2:-2, 2:-2], d_weight, d_flat.sum((0, 2))


def drawn(case, seed=0):
    """x, weight, bias, d_y of (batch, channels, output channels, X, Y, Z), as float32."""
    batch, channels, out_channels, *sides = case
    draw = np.random.default_rng(seed).standard_normal
    weight = draw((out_channels, channels, 5, 5, 5)) / np.sqrt(125 * channels)
    arrays = draw((batch, channels, *sides)), weight, draw(out_channels), None
    arrays = *arrays[:3], draw((batch, out_channels, *sides))
    return [np.float32(array) for array in arrays]


def cell_of(weight, bias=None):
    cell = Conv3d(weight.shape[1], weight.shape[0], has_bias=bias is not None)
    cell.weight.set_data(ms.Tensor(weight))
    if bias is not None:
        cell.bias.set_data(ms.Tensor(bias))
    return cell


def differentiated(network):
    """Function x, d_y -> y and the gradients of x and of the network's parameters, in their order.

    In graph mode compiled once for a shape.
    """

    def loss(x, d_y):
        y = network(x)
        return (y * d_y).sum(), y

    function = ms.value_and_grad(loss, 0, network.trainable_params(), has_aux=True)

    def compute(x, d_y):
        (_, y), (d_x, d_parameters) = function(ms.Tensor(x), ms.Tensor(d_y))
        return [tensor.asnumpy().copy() for tensor in (y, d_x, *d_parameters)]

    return compute


def values_and_gradients(network, x, d_y):
    """What `differentiated` computes, for one call."""
    return differentiated(network)(x, d_y)


def assert_close(found, expected, names=("y", "d_x", "d_weight", "d_bias"), tolerance=1e-4):
    """The largest error against the largest value."""
    assert len(found) == len(expected) == len(names)
    for name, array, wanted in zip(names, found, expected, strict=True):
        assert array.dtype == np.float32
        assert array.shape == wanted.shape
        assert np.abs(array - wanted).max() <= tolerance * np.abs(wanted).max(), name


# ------------------------------------------------------------------------------ values, gradients

CASES = [  # batch, channels, output channels, X, Y, Z
    # transforms, at most 64 tiles of 4x4x4 voxels in the batch
    (1, 5, 5, 1, 1, 1),
    (2, 16, 17, 1, 2, 3),
    (3, 17, 5, 5, 3, 7),
    (1, 33, 40, 7, 5, 2),
    (1, 40, 33, 4, 8, 4),
    (1, 5, 17, 13, 16, 14),
    (2, 16, 5, 8, 16, 16),
    # more tiles
    (1, 5, 17, 17, 13, 16),
    (3, 17, 5, 8, 11, 16),
    (1, 33, 17, 67, 1, 13),
    (2, 16, 40, 1, 3, 131),
    (1, 5, 5, 1, 257, 1),
    (1, 40, 16, 257, 1, 1),
    # few input channels
    (1, 1, 1, 1, 1, 1),
    (2, 1, 16, 7, 11, 13),
    (1, 2, 33, 3, 5, 17),
    (3, 3, 5, 5, 1, 2),
    (1, 4, 40, 2, 3, 31),
    # few output channels
    (1, 32, 2, 13, 7, 11),
    (2, 17, 1, 3, 2, 5),
    (1, 40, 3, 1, 19, 37),
    (2, 5, 4, 1, 1, 1),
]
GRAPH_CASES = [CASES[0], CASES[2], CASES[7], CASES[14], CASES[18]]


@pytest.mark.parametrize(
    ("mode", "case"),
    [("pynative", case) for case in CASES] + [("graph", case) for case in GRAPH_CASES],
    indirect=["mode"],
)
def test_values_and_gradients(mode, case):
    x, weight, bias, d_y = drawn(case)
    found = values_and_gradients(cell_of(weight, bias), x, d_y)
    assert_close(found, [oracle(x, weight, bias), *oracle_gradients(x, weight, d_y)])


@pytest.mark.parametrize("case", [(2, 5, 17, 3, 5, 4), (1, 1, 5, 3, 4, 5), (1, 17, 2, 3, 4, 5)])
def test_without_bias(mode, case):
    x, weight, _, d_y = drawn(case)
    found = values_and_gradients(cell_of(weight), x, d_y)
    expected = [oracle(x, weight, np.zeros(1)), *oracle_gradients(x, weight, d_y)[:2]]
    assert_close(found, expected, ("y", "d_x", "d_weight"))


def test_gradients_by_finite_differences(pynative):
    """The oracle's gradients against differences of its values, the cell's against both."""
    x, weight, bias, d_y = drawn((2, 5, 6, 3, 4, 2))
    inputs = [exact(array) for array in (x, weight, bias)]
    gradients = oracle_gradients(x, weight, d_y)
    _, *found = values_and_gradients(cell_of(weight, bias), x, d_y)
    generator = np.random.default_rng(1)
    for number, array in enumerate(inputs):
        for index in generator.choice(array.size, min(array.size, 40), replace=False):
            losses = []
            for step in (-0.5, 0.5):  # the loss is linear in each: any step will do
                moved = [np.copy(each) for each in inputs]
                moved[number].flat[index] += step
                losses.append((oracle(*moved) * d_y).sum())
            difference = losses[1] - losses[0]
            scale = np.abs(gradients[number]).max()
            assert abs(gradients[number].flat[index] - difference) <= 1e-12 * scale
            assert abs(found[number].flat[index] - difference) <= 1e-4 * scale


def test_convolutions_of_all_kinds_in_one_network(mode):
    """MindSpore keeps one parsed `bprop` for all of them."""
    channels, generator = (1, 5, 17, 2, 6), np.random.default_rng(2)
    x = generator.standard_normal((2, 1, 5, 4, 7), dtype=np.float32)
    arrays = [drawn((1, *pair, 1, 1, 1))[1:3] for pair in zip(channels, channels[1:], strict=False)]
    arrays[1][1] = None
    network = nn.SequentialCell([cell_of(*pair) for pair in arrays])
    values = [x]
    for weight, bias in arrays:
        values.append(oracle(values[-1], weight, np.zeros(1) if bias is None else bias))
    d_y = np.float32(generator.standard_normal(values[-1].shape))
    gradient, expected = d_y, []
    for value, (weight, bias) in zip(values[-2::-1], arrays[::-1], strict=True):
        gradient, d_weight, d_bias = oracle_gradients(value, weight, gradient)
        expected[:0] = [d_weight] if bias is None else [d_weight, d_bias]
    names = [parameter.name for parameter in network.trainable_params()]
    assert len(names) == 7
    found = values_and_gradients(network, x, d_y)
    assert_close(found, [values[-1], gradient, *expected], ["y", "d_x", *names])


# ----------------------------------------------------------------------------------- as nn.Conv3d


def stock_cell(channels, out_channels, has_bias):
    return nn.Conv3d(channels, out_channels, 5, pad_mode="pad", padding=2, has_bias=has_bias)


@pytest.mark.parametrize("has_bias", [True, False])
def test_parameters_are_those_of_the_stock_cell(has_bias):
    cells = []
    for create in (Conv3d, stock_cell):
        ms.set_seed(3)
        cells.append(create(5, 6, has_bias=has_bias))
    fast, stock = ([(p.name, p.asnumpy()) for p in cell.get_parameters()] for cell in cells)
    assert [name for name, _ in fast] == [name for name, _ in stock]
    assert [name for name, _ in fast] == ["weight", "bias"][: 1 + has_bias]
    for (_, ours), (_, theirs) in zip(fast, stock, strict=True):
        assert ours.std() > 0
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert all(parameter.requires_grad for parameter in cells[0].get_parameters())


@pytest.mark.parametrize(("writer", "reader"), [(Conv3d, stock_cell), (stock_cell, Conv3d)])
def test_checkpoints_serve_both(tmp_path, pynative, writer, reader):
    path, written, read = str(tmp_path / "c.ckpt"), writer(5, 6, True), reader(5, 6, True)
    ms.save_checkpoint(written, path)
    assert ms.load_param_into_net(read, ms.load_checkpoint(path), strict_load=True) == ([], [])
    x = ms.Tensor(drawn((2, 5, 6, 3, 4, 5))[0])
    np.testing.assert_allclose(read(x).asnumpy(), written(x).asnumpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 5, 2, 3, 4)), TypeError, "takes float32 tensors, got Float64"),
        (np.zeros((1, 5, 2, 3, 4), np.float16), TypeError, "takes float32 tensors, got Float16"),
        (
            np.zeros((1, 6, 2, 3, 4), np.float32),
            ValueError,
            r"takes \(batch, 5, X, Y, Z\) tensors, got \(1, 6, 2, 3, 4\)",
        ),
        (
            np.zeros((5, 2, 3, 4), np.float32),
            ValueError,
            r"takes \(batch, 5, X, Y, Z\) tensors, got \(5, 2, 3, 4\)",
        ),
        (np.zeros((1, 5, 2, 3, 4, 16), np.float32), ValueError, r"got \(1, 5, 2, 3, 4, 16\)"),
        (np.zeros((1, 5, 4, 4, 0), np.float32), ValueError, r"got \(1, 5, 4, 4, 0\)"),
    ],
)
def test_refusals(mode, x, error, message):
    with pytest.raises(error, match=message):
        Conv3d(5, 6)(ms.Tensor(x))


# ---------------------------------------------------------------------------------------- threads


def test_the_same_bits_again(mode):
    """In graph mode, where compiling takes longest, of one case."""
    cases = [CASES[3], CASES[7], CASES[14], CASES[18]]
    for case in cases if mode == "pynative" else cases[:1]:
        x, weight, bias, d_y = drawn(case)
        compute = differentiated(cell_of(weight, bias))
        first, second = (compute(x, d_y) for _ in range(2))
        for before, after in zip(first, second, strict=True):
            np.testing.assert_array_equal(before, after)


def bits_of_all_kinds():
    """Hash of the values and gradients of some cases of each kind."""
    bits = hashlib.sha256()
    for case in (*CASES[::4], CASES[14]):
        x, weight, bias, d_y = drawn(case)
        for array in values_and_gradients(cell_of(weight, bias), x, d_y):
            bits.update(array.tobytes())
    return bits.hexdigest()


OTHER_PROCESS = """
import ctypes, os
from tests import conftest
from tests.fast_conv3d.test_conv3d import bits_of_all_kinds, ms, operators

ms.set_context(mode=ms.PYNATIVE_MODE)
bits = bits_of_all_kinds()
library, before = ctypes.CDLL(operators.library()), len(os.listdir("/proc/self/task"))
library.set_threads(1)  # ends the others
print(bits, before - len(os.listdir("/proc/self/task")) + 1)
"""


def test_processes_agree_and_follow_omp_num_threads(pynative):
    """Each with this one, as it computes with as many threads."""
    counts = (1, 2)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(count), "PYTHONPATH": f"{ROOT}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in counts
    ]
    library = ctypes.CDLL(operators.library())
    expected = []
    try:
        for count in counts:
            library.set_threads(count)
            expected.append(bits_of_all_kinds())
    finally:
        library.set_threads(operators.thread_count())
    lines = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    bits, threads = zip(*(line.split() for line in lines), strict=True)
    assert [int(count) for count in threads] == list(counts)
    assert list(bits) == expected


@pytest.mark.parametrize(
    ("named", "count"),
    [("3", 3), ("4,2", 4), ("1", 1), ("100000", 1024), ("0", 2), ("", 2), ("many", 2), (None, 2)],
)
def test_thread_count(monkeypatch, named, count):
    monkeypatch.setattr(operators.os, "sched_getaffinity", lambda process: {0, 5})
    monkeypatch.setattr(operators.ms, "get_context", lambda key: 30)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if named is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert operators.thread_count() == count


def test_not_more_threads_than_mindspore_has(monkeypatch):
    monkeypatch.setattr(operators.os, "sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr(operators.ms, "get_context", lambda key: {"runtime_num_threads": 30}[key])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert operators.thread_count() == 30


def native_forward(case):
    """y of a convolution by the C interface, without MindSpore."""
    x, weight, bias, y = drawn(case)
    spec = np.float32([case[1], case[2], 1])
    arrays = [x, weight, bias, spec, np.full_like(y, np.nan)]
    data = (ctypes.c_void_p * 5)(*(array.ctypes.data for array in arrays))
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    sides = (ctypes.c_void_p * 5)(*(ctypes.addressof(shape) for shape in shapes))
    function = ctypes.CDLL(operators.library()).conv_forward
    ranks = (ctypes.c_int * 5)(*(array.ndim for array in arrays))
    assert function(5, data, ranks, sides, None, None, None) == 0
    return arrays[-1]


NATIVE_CASES = [
    (1, 5, 17, 17, 13, 16),
    (2, 17, 5, 5, 3, 7),
    (1, 1, 16, 9, 9, 9),
    (1, 32, 2, 7, 9, 9),
]


def test_python_threads_that_call_at_once(pynative):
    """MindSpore itself may let one after the other in."""
    cases = NATIVE_CASES
    expected = [native_forward(case) for case in cases]
    for case, y in zip(cases, expected, strict=True):
        assert_close([y], [oracle(*drawn(case)[:3])], ["y"])
    with ThreadPoolExecutor(4) as callers:
        for case, y in zip(cases * 8, callers.map(native_forward, cases * 8), strict=True):
            np.testing.assert_array_equal(y, expected[cases.index(case)])


def test_forked_processes_have_threads_of_their_own():
    """While other threads of the parent compute, as the workers of a data loader are forked."""
    expected = [native_forward(case) for case in NATIVE_CASES]
    busy = threading.Event()

    def compute():
        while not busy.is_set():
            native_forward(NATIVE_CASES[0])

    with ThreadPoolExecutor(1) as parent:
        parent.submit(compute)
        try:
            for _ in range(3):
                with multiprocessing.get_context("fork").Pool(2) as children:
                    found = children.map_async(native_forward, NATIVE_CASES).get(timeout=60)
                for y, same in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(y, same)
        finally:
            busy.set()


def test_cells_in_python_threads(pynative):
    cases = [CASES[2], CASES[7], CASES[14], CASES[18]] * 3

    def forward(case):
        x, weight, bias, _ = drawn(case)
        return cell_of(weight, bias)(ms.Tensor(x)).asnumpy()

    with ThreadPoolExecutor(4) as callers:
        for case, y in zip(cases, callers.map(forward, cases), strict=True):
            assert_close([y], [oracle(*drawn(case)[:3])], ["y"])


# --------------------------------------------------------------- accuracy of V-Net's real layers

LARGEST_ERROR = 1e-3  # as LAYER_ERROR of the values' standard deviation
LARGEST = (128, 128, 64)
LAYERS = [  # channels, output channels, sides: at 128x128x64
    (1, 16, LARGEST),
    (32, 32, LARGEST),
    (32, 2, LARGEST),
    (32, 32, (64, 64, 32)),
    (64, 64, (64, 64, 32)),
    (64, 64, (32, 32, 16)),
    (128, 128, (32, 32, 16)),
    (128, 128, (16, 16, 8)),
    (256, 256, (16, 16, 8)),
    (256, 256, (8, 8, 4)),
]
INPUTS = {
    "zero-mean": lambda values: values,
    "elu": lambda values: np.where(values > 0, values, np.expm1(values)),
}


def assert_accurate(name, found, expected):
    error = (found - expected) / expected.std()
    assert np.sqrt(np.mean(error**2)) < LAYER_ERROR, name
    assert np.abs(error).max() < LARGEST_ERROR, name


def assert_sums_accurate(name, found, x, weight, generator):
    """A volume (K, X, Y, Z) that a convolution of x makes, at some voxels and in two corners."""
    sides = np.array(x.shape[1:])
    voxels = generator.integers(0, sides, (max(32, 4096 // len(weight)), 3))
    voxels[:2] = [[0, 0, 0], sides - 1]
    padded = with_margin(x)
    windows = np.stack([padded[:, i : i + 5, j : j + 5, k : k + 5] for i, j, k in voxels], -1)
    expected = exact(weight).reshape(len(weight), -1) @ windows.reshape(-1, len(voxels))
    assert_accurate(name, found[(slice(None), *voxels.T)], expected)


def with_inputs(layers):
    """Each layer with each kind of input; every other combination with -m full.

    So is the largest volume; otherwise a smaller one stands for it.
    """
    combinations = [(*layer, kind) for layer in layers for kind in INPUTS]
    usual, full = [], []
    for index, (*channels, sides, kind) in enumerate(combinations):
        # 0, 3, 4, 7, ..: the kinds alternate from layer to layer.
        is_usual, is_largest = index % 4 in (0, 3), sides == LARGEST
        if is_usual:
            usual.append((*channels, (64, 64, 64) if is_largest else sides, kind))
        if not is_usual or is_largest:
            full.append(pytest.param(*channels, sides, kind, marks=pytest.mark.full))
    return usual + full


@pytest.mark.parametrize(("channels", "out_channels", "sides", "kind"), with_inputs(LAYERS))
def test_accuracy_of_a_layer(pynative, channels, out_channels, sides, kind):
    generator = np.random.default_rng(channels + out_channels + sides[0])
    x = INPUTS[kind](generator.standard_normal((channels, *sides), dtype=np.float32))
    d_y = generator.standard_normal((out_channels, *sides), dtype=np.float32)
    weight = drawn((1, channels, out_channels, 1, 1, 1))[1]
    y, d_x, d_weight = values_and_gradients(cell_of(weight), x[None], d_y[None])
    assert_sums_accurate("y", y[0], x, weight, generator)
    mirrored = weight[..., ::-1, ::-1, ::-1].swapaxes(0, 1)
    assert_sums_accurate("d_x", d_x[0], d_y, mirrored, generator)

    flat, padded = exact(d_y).reshape(out_channels, -1), with_margin(x)
    taps = [(0, 0, 0), (4, 4, 4), *generator.integers(0, 5, (2, 3)).tolist()]
    expected = np.stack([flat @ exact(window(padded, tap, sides)).T for tap in taps])
    assert_accurate("d_weight", np.stack([d_weight[(..., *tap)] for tap in taps]), expected)
