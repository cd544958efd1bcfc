"""`FastVNet` against the plain `VNet` over the same parameters, and who gets which.

MindSpore's `asnumpy()` may share memory with what the next call writes: results are copied at once.
"""

import os
import shutil
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import SimpleITK as sitk
from mindspore import nn

from src.acceptance.golden import seeded
from src.config import override_config, vnet_cfg
from src.data_manager import TrainingVolume, intensity_on_network_grid, mask_to_network_grid
from src.dataset import TrainingSamples
from src.fast_conv3d import build, operators
from src.fast_conv3d.build import BuildError
from src.fast_conv3d.network import FastVNet, to_fast_vnet
from src.loss import DiceLoss
from src.promise12.phantom import phantom_case
from src.training.optimizer import create_optimizer
from src.training.step import create_training_cell
from src.utils.errors import UsageError
from src.vnet import DOWN_NAMES, UP_NAMES, VARIANTS, VNet, create_vnet
from tests.networks import in_mode
from tests.rounding import GRADIENT_ERROR, LAYER_ERROR, perturb

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
# Not cubes, so that swapped axes show. Every level keeps at least six voxels a channel: over two,
# batch norm is a sign, and rounding decides it.
CASES = [
    (variant, width, batch, sides)
    for variant in VARIANTS
    for width, batch, sides in [(1, 2, (16, 32, 48)), (3, 1, (48, 16, 32)), (16, 1, (32, 16, 48))]
]
TRAINING_CASES = [
    (*case, dropping)
    for case in CASES
    for dropping in (False, True)
    if not dropping or VARIANTS[case[0]].dropout_on
]


# Every variant and every width once; the other combinations with -m full.
USUAL_WIDTH = {"zoo": 3, "monai": 16, "paper": 3, "instance": 1}


def most_in_full(cases):
    """The cases, all but those of a variant's usual width marked `full`.

    So are steps of `monai`, whose usual width takes longest, without dropout.
    """
    return [
        case
        if case[1] == USUAL_WIDTH[case[0]] and (case[0], *case[4:]) != ("monai", False)
        else pytest.param(*case, marks=pytest.mark.full)
        for case in cases
    ]


# Networks beside the variants, of width 2.
OTHERS = [
    (
        "zoo",
        {
            "activation": "prelu",
            "encoder_depths": (1, 2, 1, 1, 3),
            "decoder_depths": (1, 3, 2, 2),
        },
    ),
    (
        "zoo",
        {
            **{"head_unit": False, "head_kernel_size": 3, "head_bias": True},
            "dropout_on": {"down_tr32": ("down",), "down_tr64": ("down",), "up_tr32": ("up",)},
        },
    ),
    # At up_tr64 two places concatenate within a block of 16 channels.
    ("zoo", {"dropout_on": {"up_tr256": ("skip",), "up_tr64": ("up", "skip")}}),
    ("monai", {"norm": None, "encoder_bias": True}),
    ("monai", {"encoder_bias": True, "decoder_bias": True, "foreground_channel": 0}),
    ("paper", {"activation": "elu", "norm": "batch", "dropout_on": {"up_tr32": ("skip",)}}),
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The graph compiler leaves a folder behind where it fails."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Where there is one, a build that fails is a failure."""
    if not os.environ.get("CXX") and not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def graph_mode():
    with in_mode(ms.GRAPH_MODE):
        yield


@pytest.fixture
def pynative_mode(graph_mode):
    """Quicker than compiling for one call."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


def seeded_vnet(variant, width, **options):
    """A plain network, every parameter and moving statistic drawn by its name.

    PReLU's slopes are near 1: each voxel that rounding takes across the kink changes a gradient by
    1 - slope, which would hide how exact everything else is.
    """
    network = VNet(VARIANTS[variant]._replace(**options), width)
    for parameter in network.get_parameters():
        value = seeded.parameter(parameter.name, parameter.shape)
        if parameter.name.endswith(".w"):
            value = 1 + (value - 1) / 10
        parameter.set_data(ms.Tensor(value))
    return network


def batch_of(batch, sides, seed=1):
    """Volumes of noise and masks, float32."""
    random = np.random.default_rng(seed)
    volume = random.standard_normal((batch, 1, *sides), dtype=np.float32)
    mask = (random.random((batch, *sides)) < 0.3).astype(np.float32)
    return ms.Tensor(volume), ms.Tensor(mask)


def dropout_mask_of(network, batch, seed=2):
    """Factors that drop some channels, scale others and leave the rest."""
    shape = (batch, max(1, network.dropout_channels))
    return ms.Tensor(np.random.default_rng(seed).choice([0, 1, 2], shape).astype(np.float32))


def evaluated(network, volume, dropout_mask=None):
    return network.set_train(False)(volume, dropout_mask).asnumpy().copy()


def evaluation_of(volume, dropout_mask):
    """Function network -> its output, for `assert_same`."""
    return lambda network: SimpleNamespace(probability=evaluated(network, volume, dropout_mask))


INPUTS = ("volume", "dropout_mask")  # beside the mask, of a training step


class Gradients:
    """One training step's forward and backward pass; compiled once in graph mode.

    Args:
        network: plain or fast.
        of_inputs: whether the gradients of volume and dropout_mask are wanted.
    """

    def __init__(self, network, of_inputs=False):
        self.network = network
        self.parameters = network.trainable_params()
        loss_cell = DiceLoss()

        def forward(volume, mask, dropout_mask):
            probability = network(volume, dropout_mask)
            return loss_cell(probability, mask), probability

        inputs = (0, 2) if of_inputs else None
        self.of_inputs = of_inputs
        self.function = ms.value_and_grad(forward, inputs, self.parameters, has_aux=True)

    def __call__(self, volume, mask, dropout_mask=None):
        self.network.set_train(True)
        (loss, probability), gradients = self.function(volume, mask, dropout_mask)
        of_inputs, gradients = gradients if self.of_inputs else ((), gradients)
        return SimpleNamespace(
            loss=float(loss.asnumpy()),
            probability=probability.asnumpy().copy(),
            gradients={
                parameter.name: gradient.asnumpy().copy()
                for parameter, gradient in zip(self.parameters, gradients, strict=True)
            }
            | {
                name: gradient.asnumpy().copy()
                for name, gradient in zip(INPUTS, of_inputs, strict=False)
            },
        )


def statistics(network):
    """Name -> moving statistics."""
    return {
        parameter.name: parameter.asnumpy().copy()
        for parameter in network.get_parameters()
        if not parameter.requires_grad
    }


# What perturbed weights change in most of the networks here, with batch norm; see `assert_within`.
USUAL = {"loss": 2e-6, "probability": 2e-4, "gradient": GRADIENT_ERROR, "statistics": 5e-5}


def distances(found, expected):
    """By how much two steps, or two evaluations, differ: the largest of each kind."""
    apart = {"probability": np.abs(found.probability - expected.probability).max()}
    if not hasattr(expected, "gradients"):
        return apart
    assert list(found.gradients) == list(expected.gradients)
    whole = np.sqrt(sum(np.sum(gradient**2) for gradient in expected.gradients.values()))
    assert whole > 0
    # The floor is for gradients that cancel: a bias in front of a batch norm has none, and in the
    # fast network it is 0 exactly, in stock it is rounding. Those of inputs do not.
    relative = [
        np.linalg.norm(found.gradients[name] - gradient)
        / max(np.linalg.norm(gradient), 1e-3 * whole * (name not in INPUTS))
        for name, gradient in expected.gradients.items()
    ]
    return apart | {"loss": abs(found.loss - expected.loss), "gradient": max(relative)}


def assert_within(found, expected, perturbed):
    """Differ at most as usual, or else as `perturbed()`, with weights that were perturbed as much
    as a layer may err, differs from `expected`. That takes its time.
    """
    assert np.ptp(expected.probability) > 0.5
    apart = distances(found, expected)
    if any(distance > USUAL[kind] for kind, distance in apart.items()):
        spread = distances(perturbed(), expected)
        for kind, distance in apart.items():
            assert distance <= max(USUAL[kind], spread[kind]), kind


def assert_same_statistics(fast, plain):
    expected, usual = statistics(plain), USUAL["statistics"]
    for name, value in statistics(fast).items():
        np.testing.assert_allclose(value, expected[name], rtol=usual, atol=usual, err_msg=name)


def assert_same(fast, plain, compute):
    """`compute(network)` and the moving statistics of two networks with the same weights.

    May perturb those of the plain one.
    """
    found, expected = compute(fast), compute(plain)
    assert found.probability.shape == expected.probability.shape
    assert found.probability.dtype == np.float32
    assert_same_statistics(fast, plain)
    assert_within(found, expected, lambda: compute(perturb(plain)))


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(("variant", "width", "batch", "sides"), most_in_full(CASES))
def test_evaluation_equals_the_plain_network(pynative_mode, variant, width, batch, sides):
    fast = FastVNet(seeded_vnet(variant, width))
    before = statistics(fast)
    volume, _ = batch_of(batch, sides)
    for dropout_mask in (None, dropout_mask_of(fast, batch)):
        assert_same(fast, seeded_vnet(variant, width), evaluation_of(volume, dropout_mask))
    assert evaluated(fast, volume).shape == (batch, *sides)
    for name, value in statistics(fast).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("variant", "width", "batch", "sides", "dropping"), most_in_full(TRAINING_CASES)
)
def test_a_training_step_equals_the_plain_networks(
    pynative_mode, variant, width, batch, sides, dropping
):
    """Loss, probability, every gradient and the moving statistics."""
    plain, fast = seeded_vnet(variant, width), FastVNet(seeded_vnet(variant, width))
    volume, mask = batch_of(batch, sides)
    dropout_mask = dropout_mask_of(plain, batch) if dropping else None
    assert_same(fast, plain, lambda network: Gradients(network)(volume, mask, dropout_mask))


@pytest.mark.parametrize(("variant", "options"), OTHERS)
def test_other_networks_equal_the_plain_ones(pynative_mode, variant, options):
    plain, fast = seeded_vnet(variant, 2, **options), FastVNet(seeded_vnet(variant, 2, **options))
    volume, mask = batch_of(2, (32, 16, 48))
    dropout_mask = dropout_mask_of(plain, 2)
    assert_same(fast, plain, lambda network: Gradients(network, True)(volume, mask, dropout_mask))
    plain = seeded_vnet(variant, 2, **options)
    fast = FastVNet(seeded_vnet(variant, 2, **options))
    assert_same(fast, plain, evaluation_of(volume, dropout_mask))


def test_every_place_of_dropout_acts(pynative_mode):
    """And on its own volume and channels alone."""
    dropout_on = dict.fromkeys(DOWN_NAMES, ("down",))
    dropout_on |= dict.fromkeys(UP_NAMES, ("up", "skip"))
    network = seeded_vnet("zoo", 1, dropout_on=dropout_on)
    fast = FastVNet(network)
    volume, _ = batch_of(2, (16, 16, 16))
    whole = evaluated(fast, volume)
    ones = np.ones((2, network.dropout_channels), np.float32)
    np.testing.assert_array_equal(evaluated(fast, volume, ms.Tensor(ones)), whole)
    places = [place for stage in network.down_slices + network.up_slices for place in stage]
    for start, stop in places:
        dropout_mask = ones.copy()
        dropout_mask[1, start:stop] = 0
        dropped = evaluated(fast, volume, ms.Tensor(dropout_mask))
        np.testing.assert_array_equal(dropped[0], whole[0])
        assert np.abs(dropped[1] - whole[1]).max() > 1e-4, (start, stop)


@pytest.mark.parametrize(
    ("mode", "variant", "width"), [("graph", "monai", 2), ("pynative", "instance", 3)]
)
def test_gradients_of_volume_and_dropout_mask(mode, variant, width):
    """They are computed where somebody asks for them, see `NetworkOperator.bprop`."""
    options = {"width": width, "dropout_on": {"down_tr32": ("down",), "up_tr32": ("skip",)}}
    plain, fast = seeded_vnet(variant, **options), FastVNet(seeded_vnet(variant, **options))
    volume, mask = batch_of(2, (32, 16, 48))
    inputs = (volume, mask, dropout_mask_of(plain, 2))
    ms.set_context(mode=MODES[mode])
    found = Gradients(fast, True)(*inputs).gradients
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expected = Gradients(plain, True)(*inputs).gradients
    for name in INPUTS:
        assert np.linalg.norm(expected[name]) > 0
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error < GRADIENT_ERROR, name


@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_evaluation_mode_are_refused(mode):
    ms.set_context(mode=MODES[mode])
    fast = FastVNet(seeded_vnet("zoo", 1)).set_train(False)
    volume, _ = batch_of(1, (16, 16, 16))
    gradient = ms.value_and_grad(fast, 0)
    with pytest.raises(
        ValueError, match=r"^the fast CPU V-Net has gradients in training mode only"
    ):
        gradient(volume)


@pytest.mark.parametrize("variant", ["zoo", "paper", "instance"])  # monai has those of zoo
def test_many_steps_in_graph_mode_are_one_to_the_last_bit(variant):
    """A regression: an operator that wrote past the end of a buffer changed, once in a few runs,
    something else.
    """
    plain, fast = seeded_vnet(variant, 2), FastVNet(seeded_vnet(variant, 2))
    volume, mask = batch_of(2, (32, 16, 48))
    dropout_mask = dropout_mask_of(plain, 2)
    step = Gradients(fast)
    first = step(volume, mask, dropout_mask)
    for _ in range(9):
        again = step(volume, mask, dropout_mask)
        assert again.loss == first.loss
        np.testing.assert_array_equal(again.probability, first.probability)
        for name, gradient in first.gradients.items():
            np.testing.assert_array_equal(again.gradients[name], gradient, err_msg=name)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expected = Gradients(plain)(volume, mask, dropout_mask)
    assert_within(first, expected, lambda: Gradients(perturb(plain))(volume, mask, dropout_mask))


@pytest.mark.parametrize("mode", MODES)
def test_training_and_evaluation_alternate(mode):
    """Evaluation takes the statistics that training moved, and leaves them."""
    plain, fast = seeded_vnet("zoo", 2), FastVNet(seeded_vnet("zoo", 2))
    volume, _ = batch_of(2, (32, 16, 32))
    outputs = {False: [], True: []}  # by training
    for training in (False, True, False, True, True, False):
        for network in (plain, fast):
            network.set_train(training)
            assert all(cell.training == training for _, cell in network.cells_and_names())
        ms.set_context(mode=MODES[mode])
        found = fast(volume).asnumpy().copy()
        ms.set_context(mode=ms.PYNATIVE_MODE)
        expected = plain(volume).asnumpy().copy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=USUAL["probability"])
        assert_same_statistics(fast, plain)
        outputs[training].append(found)
    assert np.abs(outputs[False][0] - outputs[False][1]).max() > 1e-3
    assert np.abs(outputs[False][0] - outputs[True][0]).max() > 1e-3
    for again in outputs[True][1:]:
        np.testing.assert_array_equal(again, outputs[True][0])
    ms.set_context(mode=MODES[mode])
    np.testing.assert_array_equal(evaluated(fast, volume), outputs[False][-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_plain_network(variant):
    network = seeded_vnet(variant, 2)
    names = [parameter.name for parameter in network.get_parameters()]
    fast = FastVNet(network)
    assert fast.dropout_channels == network.dropout_channels
    assert [parameter.name for parameter in fast.get_parameters()] == names
    for of in (VNet.get_parameters, VNet.trainable_params):
        pairs = zip(of(fast), of(network), strict=True)
        assert all(ours is theirs for ours, theirs in pairs)
    assert list(fast.parameters_dict()) == names


def test_a_call_does_not_name_the_graph_in_each_cell_of_the_plain_network():
    """MindSpore would, at every call, which takes longer than some of the kernels."""
    fast = FastVNet(seeded_vnet("zoo", 2)).set_train(False)
    fast(batch_of(1, (16, 16, 16))[0])
    assert fast.compile_phase
    assert not any(cell.compile_phase for _, cell in fast.network.cells_and_names())


@pytest.mark.parametrize(("mode", "training"), [("graph", False), ("pynative", True)])
@pytest.mark.parametrize(
    ("shape", "dtype", "error", "found"),
    [
        ((1, 1, 16, 16, 16), np.float16, TypeError, "takes float32 tensors, got Float16"),
        ((1, 1, 16, 16, 16), np.float64, TypeError, "takes float32 tensors, got Float64"),
        ((1, 1, 20, 16, 16), np.float32, ValueError, r"multiples of 16, got \(20, 16, 16\)"),
        ((1, 1, 16, 16, 8), np.float32, ValueError, r"multiples of 16, got \(16, 16, 8\)"),
        ((1, 1, 16, 16, 0), np.float32, ValueError, r"multiples of 16, got \(16, 16, 0\)"),
        ((1, 2, 16, 16, 16), np.float32, ValueError, r"got \(1, 2, 16, 16, 16\)"),
        ((1, 16, 16, 16), np.float32, ValueError, r"got \(1, 16, 16, 16\)"),
    ],
)
def test_unfit_volumes_are_refused(mode, training, shape, dtype, error, found):
    ms.set_context(mode=MODES[mode])
    network = FastVNet(seeded_vnet("zoo", 1)).set_train(training)
    with pytest.raises(error, match=found):
        network(ms.Tensor(np.zeros(shape, dtype)))


# ------------------------------------------------------------------ who gets which


def config_of(choice):
    return override_config(vnet_cfg, ["width=1", f"fast_conv3d={choice}"])


@pytest.fixture
def set_compiler(tmp_path, monkeypatch):
    """Function text -> makes it the compiler, with an empty cache; as in a new process."""

    def forget():
        operators.library.cache_clear()
        build.library_path.cache_clear()

    def choose(text):
        compiler = tmp_path / "compiler"
        compiler.write_text(f"#!/bin/sh\n{text}")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("FAST_CONV3D_CACHE", str(tmp_path / "cache"))
        forget()

    yield choose
    forget()


FAILING = 'case "$*" in *--version) exit 0 ;; esac\necho "ops.cpp:1: error: too old"\nexit 1\n'


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_fast_conv3d_chooses_what_computes_on_a_cpu(choice, capsys):
    network = create_vnet(config_of(choice))
    fast = to_fast_vnet(network, config_of(choice), "CPU")
    assert isinstance(fast, FastVNet) and fast.network is network
    assert to_fast_vnet(network, config_of("off"), "CPU") is network
    assert "MindSpore's own" not in capsys.readouterr().out


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_other_devices_keep_the_plain_network(target, set_compiler, capsys):
    set_compiler(FAILING)
    for choice in ("auto", "off"):
        network = create_vnet(config_of(choice))
        assert to_fast_vnet(network, config_of(choice), target) is network
    with pytest.raises(
        UsageError, match=f"fast_conv3d=on computes in float32 on CPU, not on {target}"
    ):
        to_fast_vnet(network, config_of("on"), target)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        (FAILING, "ops.cpp:1: error: too old", "try another compiler"),
        ("exit 1\n", "cannot be run", "set it to a C++ compiler or unset it"),
    ],
)
def test_where_it_cannot_be_built_auto_says_so_in_one_line(
    text, reason, remedy, set_compiler, capsys
):
    set_compiler(text)
    network = create_vnet(config_of("auto"))
    assert to_fast_vnet(network, config_of("auto"), "CPU") is network
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if "compiling its C++ code" not in line]
    (line,) = lines
    assert line.startswith("fast_conv3d: ") and reason in line and remedy in line
    assert "MindSpore's own convolutions" in line
    assert printed.err == ""
    with pytest.raises(build.BuildError, match=reason) as error:
        to_fast_vnet(network, config_of("on"), "CPU")
    assert remedy in str(error.value) and "\n" not in str(error.value)


def test_exports_hold_the_plain_graph(tmp_path):
    """Also where the network already computes through the fast one."""
    depths = {"encoder_depths": (1,) * 5, "decoder_depths": (1,) * 4}
    network = seeded_vnet("zoo", 1, **depths).set_train(False)
    volume, _ = batch_of(1, (16, 16, 16))
    FastVNet(network).set_train(False)(volume)
    ms.export(network, volume, file_name=str(tmp_path / "vnet"), file_format="MINDIR")
    content = (tmp_path / "vnet.mindir").read_bytes()
    assert b"Conv3D" in content and b"fast_conv3d" not in content


# ------------------------------------------------------------------ a short training

STEPS, STEPS_COMPARED = 30, 6


@pytest.fixture(scope="module")
def phantom_volumes():
    """Three phantom cases on a small network grid."""
    grid = override_config(vnet_cfg, ["VolSize=32,32,16", "dstRes=3,3,4.5"])
    cases = [phantom_case(seed=1, index=index) for index in range(3)]
    return [
        TrainingVolume(
            intensity_on_network_grid(sitk.Cast(image, sitk.sitkFloat32), grid),
            mask_to_network_grid(mask, grid),
            plane="axial",
        )
        for image, mask in cases
    ]


def training_losses(volumes, choice, *runs):
    """The losses of the steps that the trainer takes, of several runs from the same weights.

    Args:
        volumes: of the cases.
        choice: `fast_conv3d`.
        runs: of each its steps, and by how much its weights are perturbed.
    """
    settings = ["variant=monai", "width=4", "batch_size=2", "warmup_step=0", "seed=3"]
    config = override_config(vnet_cfg, [*settings, f"fast_conv3d={choice}"])
    ms.set_seed(config.seed)
    network = to_fast_vnet(create_vnet(config), config, "CPU")
    samples = TrainingSamples(volumes, config, network.dropout_channels)
    optimizer = create_optimizer(network, config, np.full(STEPS, 0.01, np.float32))
    step = create_training_cell(network, optimizer, config, "CPU")
    start = {parameter.name: parameter.asnumpy().copy() for parameter in step.get_parameters()}
    for seed, (steps, perturbation) in enumerate(runs):
        for parameter in step.get_parameters():
            parameter.set_data(ms.Tensor(start[parameter.name]))
        perturb(network, perturbation, seed)
        losses = []
        for number in range(steps):
            first = number * config.batch_size
            batch = [samples[index] for index in range(first, first + config.batch_size)]
            columns = (ms.Tensor(np.stack(column)) for column in zip(*batch, strict=True))
            losses.append(float(step(*columns).asnumpy()))
        yield np.array(losses)


def test_a_short_training_follows_the_plain_one(phantom_volumes):
    """For a few steps, while what rounding does to it still grows in proportion: in the end it
    decides, and a training goes another way on each processor.
    """
    perturbed_runs = [(STEPS_COMPARED, LAYER_ERROR)] * 5
    fast, *perturbed = training_losses(phantom_volumes, "on", (STEPS, 0), *perturbed_runs)
    assert fast[-3:].mean() < 0.65 < 0.8 < fast[0]  # it learns
    (plain,) = training_losses(phantom_volumes, "off", (STEPS_COMPARED, 0))
    apart, *spread = (
        np.abs(losses - fast[:STEPS_COMPARED]).max() for losses in (plain, *perturbed)
    )
    assert apart < max(spread)


def test_several_calls_in_a_graph_are_apart():
    """Two equal ones, which may not share a tape that the backward pass uses up, and one of the
    logits; with a gradient each. The same as one call.
    """
    fast = FastVNet(seeded_vnet("instance", 1)).set_train()
    volume, _ = batch_of(1, (32, 16, 16))
    first, second, third = (
        ms.Tensor(batch_of(1, (32, 16, 16), seed)[0].asnumpy()[0]) for seed in (2, 3, 4)
    )
    probability = ms.Tensor(fast(volume).asnumpy().copy())
    of_logits = third * probability * (1 - probability)

    def separate(volume):
        logits = fast.logits(volume)
        return ((fast(volume) * first).sum() + (fast(volume) * second).sum()) + (
            logits * of_logits
        ).sum()

    def together(volume):
        return (fast(volume) * (first + second + third)).sum()

    of = fast.trainable_params()[:3]
    gradients = [
        [gradient.asnumpy().copy() for gradient in ms.value_and_grad(function, None, of)(volume)[1]]
        for function in (separate, together)
    ]
    for found, expected in zip(*gradients, strict=True):
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected) > 0


@pytest.mark.parametrize("mask_shape, dtype", [((1, 3), np.float32), ((2, None), np.float16)])
def test_unfit_factors_are_refused(mask_shape, dtype):
    network = FastVNet(create_vnet(config_of("auto"))).set_train()
    shape = (mask_shape[0], mask_shape[1] or network.dropout_channels)
    volume = ms.Tensor(np.zeros((2, 1, 16, 16, 16), np.float32))
    with pytest.raises(ValueError, match="dropout_mask must be float32 of shape"):
        network(volume, ms.Tensor(np.ones(shape, dtype)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda of: setattr(of.in_tr, "relu", nn.ReLU()), "supports ELU, PReLU, .*, not ReLU"),
        (lambda of: setattr(of.up_tr64, "bn", nn.GroupNorm(1, 2)), "BatchNorm3d, .* not GroupNorm"),
        (lambda of: setattr(of.up_tr64, "relu1", nn.PReLU(2)), "one activation, not "),
        (lambda of: setattr(of.in_tr.bn.bn2d, "eps", 1e-3), "one epsilon, not "),
        (lambda of: setattr(of.in_tr.bn.bn2d, "momentum", 0.5), "one momentum, not "),
        (lambda of: setattr(of.out_tr, "conv2", nn.Conv3d(2, 2, 7)), "compute the head's kernel"),
    ],
)
def test_unsupported_layers_are_refused(change, found):
    network = seeded_vnet("zoo", 1)
    change(network)
    with pytest.raises(TypeError, match=found):
        FastVNet(network)


def test_a_parameter_of_another_shape_is_refused(pynative_mode, capfd):
    network = seeded_vnet("zoo", 1)
    network.up_tr64.up_conv = nn.Conv3dTranspose(8, 3, 2, stride=2, pad_mode="valid")
    volume, _ = batch_of(1, (16, 16, 16))
    with pytest.raises(RuntimeError):
        FastVNet(network).set_train(False)(volume).asnumpy()
    assert "a parameter of layer 19 has 192 values, expected 128" in capfd.readouterr().err


def test_a_broken_library_is_a_build_error(monkeypatch, tmp_path):
    broken = tmp_path / "libfast_conv3d.so"
    broken.write_bytes(b"")
    monkeypatch.setattr(operators, "library_path", lambda: broken)
    operators.library.cache_clear()
    try:
        with pytest.raises(BuildError, match="cannot be loaded .* delete"):
            operators.library()
    finally:
        operators.library.cache_clear()
