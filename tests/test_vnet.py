"""The network against independent oracles.

`golden/make_zoo.py` and `golden/make_monai.py` wrote what the model zoo's and MONAI's own code
computes from weights that `src/acceptance/golden/seeded.py` makes here again, by name.
"""

import json
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.acceptance.golden import GOLDEN, seeded
from src.config import override_config, vnet_cfg
from src.export.monai_weights import from_monai, monai_names
from src.loss import DiceLoss
from src.utils.errors import UsageError
from src.vnet import DOWN_NAMES, UP_NAMES, VARIANTS, InstanceNorm3d, VNet, create_vnet
from tests.golden import golden_file
from tests.networks import seed_weights
from tests.rounding import FLOAT32

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
STAGES = ("in_tr", *DOWN_NAMES, *UP_NAMES, "out_tr")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The graph compiler leaves a folder behind where it fails."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def graph_mode():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)


def small_vnet(variant="zoo", width=2, **options):
    return VNet(VARIANTS[variant]._replace(**options), width)


def random_volume(*shape, seed=1):
    return ms.Tensor(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def loss_probability_and_gradients(network, volume, mask):
    """One training step's forward and backward pass; gradients are name -> array."""
    network.set_train(True)
    loss_cell = DiceLoss()

    def forward(volume, mask):
        probability = network(volume)
        return loss_cell(probability, mask), probability

    trainable = network.trainable_params()
    (loss, probability), gradients = ms.value_and_grad(forward, None, trainable, has_aux=True)(
        volume, mask
    )
    return (
        float(loss),
        probability.asnumpy(),
        {p.name: gradient.asnumpy() for p, gradient in zip(trainable, gradients, strict=True)},
    )


# ------------------------------------------------------------------ against the zoo and MONAI


def seeded_dropout_mask(network):
    """The factors that the oracle's script used, in the columns that this network gives them."""
    dropout_mask = np.ones((seeded.BATCH, network.dropout_channels), np.float32)
    places = zip(DOWN_NAMES, network.down_slices, strict=True)
    columns = [(name, "down", column) for name, (column,) in places]
    for name, (up, skip) in zip(UP_NAMES, network.up_slices, strict=True):
        columns += [(name, "up", up), (name, "skip", skip)]
    for name, place, column in columns:
        if column is not None:
            start, stop = column
            dropout_mask[:, start:stop] = golden_file.dropout_mask(name, place, stop - start)
    return ms.Tensor(dropout_mask)


@pytest.fixture(scope="module", params=["zoo", "monai"])
def golden(request):
    """What the oracle computed and what this network computes, at full width in graph mode."""
    ms.set_context(mode=ms.GRAPH_MODE)
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        expected = dict(file)
    shapes = {
        name: tuple(shape) for name, shape in json.loads(str(expected["meta"]))["shapes"].items()
    }
    volume, mask = seeded.volume(), seeded.mask()
    # NumPy may change its random streams one day; then the scripts have to run again.
    np.testing.assert_array_equal(
        volume.ravel()[:: seeded.BATCH * seeded.SIDES[0] * seeded.SIDES[1]],
        expected["volume_sample"],
    )
    weights = {name: seeded.parameter(name, shape) for name, shape in shapes.items()}
    our_name = {name: name for name in shapes}
    if request.param == "monai":
        weights, our_name = from_monai(weights), monai_names()
    network = VNet(VARIANTS[request.param])
    not_loaded = ms.load_param_into_net(
        network,
        {name: ms.Parameter(ms.Tensor(array), name=name) for name, array in weights.items()},
        strict_load=True,
    )
    network.set_train(False)
    volume, mask = ms.Tensor(volume), ms.Tensor(mask)
    # All ones change nothing, see below, and share the compiled graph with "dropout".
    kept = ms.Tensor(np.ones((seeded.BATCH, network.dropout_channels), np.float32))
    probabilities = {
        "eval": network(volume, kept).asnumpy(),
        "dropout": network(volume, seeded_dropout_mask(network)).asnumpy(),
    }
    loss, probabilities["train"], gradients = loss_probability_and_gradients(network, volume, mask)
    return SimpleNamespace(
        variant=request.param,
        shapes=shapes,
        our_name=our_name,
        not_loaded=not_loaded,
        expected=expected,
        network=network,
        probabilities=probabilities,
        loss=loss,
        gradients=gradients,
    )


def test_the_oracles_parameters_are_all_ours(golden):
    assert golden.not_loaded == ([], [])
    if golden.variant == "zoo":
        # The zoo's checkpoints load as they are.
        assert golden.shapes == {p.name: p.shape for p in golden.network.get_parameters()}


@pytest.mark.parametrize("mode", ["eval", "train", "dropout"])
def test_probability_equals_the_oracles(golden, mode):
    probability = golden.probabilities[mode]
    assert probability.shape == (seeded.BATCH, *seeded.SIDES)
    voxels, projections = golden_file.probability_summary(probability)
    assert np.ptp(golden.expected[f"{mode}_voxels"]) > 0.9  # neither constant nor saturated
    np.testing.assert_allclose(voxels, golden.expected[f"{mode}_voxels"], rtol=0, atol=1e-5)
    # All voxels; sixteen random sums that would show a root mean square difference of this size.
    np.testing.assert_allclose(
        projections, golden.expected[f"{mode}_projections"], rtol=0, atol=1e-5
    )


def test_loss_equals_the_oracles(golden):
    assert golden.loss == pytest.approx(float(golden.expected["loss"]), abs=1e-6)


def test_gradients_equal_the_oracles(golden):
    names = golden.expected["gradient_names"]
    assert {golden.our_name[name] for name in names} == set(golden.gradients)
    gradients = {name: golden.gradients[golden.our_name[name]] for name in names}
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients.values()])
    expected_norms = golden.expected["gradient_norms"]
    whole = np.linalg.norm(expected_norms)
    assert np.abs(norms - expected_norms).max() < 1e-4 * whole
    projections = np.stack(
        [
            golden_file.projections(name, gradient, golden_file.GRADIENT_PROJECTIONS)
            for name, gradient in gradients.items()
        ]
    )
    # The norm of the difference of all gradients, estimated from random projections.
    difference = projections - golden.expected["gradient_projections"]
    assert np.sqrt((difference**2).sum() / golden_file.GRADIENT_PROJECTIONS) < 1e-4 * whole
    assert np.sqrt((difference**2).sum(axis=1)).max() < 1e-4 * whole


def test_a_bias_before_batch_norm_has_no_gradient(golden):
    """So that the comparison above need not set it aside."""
    whole = np.linalg.norm(golden.expected["gradient_norms"])
    biases = [name for name in golden.gradients if name.endswith("up_conv.bias")]
    assert len(biases) == (4 if golden.variant == "monai" else 0)
    assert all(np.linalg.norm(golden.gradients[name]) < 1e-6 * whole for name in biases)


def test_moving_statistics_after_one_step_equal_the_oracles(golden):
    """Both libraries move a tenth of the way (MindSpore's momentum 0.9 is PyTorch's 0.1), and both
    towards the unbiased variance; at the bottom, 24 values a channel, it is 4 % more.
    """
    parameters = golden.network.parameters_dict()
    moving = np.concatenate(
        [parameters[golden.our_name[name]].asnumpy() for name in golden.expected["moving_names"]]
    )
    np.testing.assert_allclose(moving, golden.expected["moving"], rtol=0, atol=1e-5)


# ------------------------------------------------------------------ the paper's table 1


def receptive_fields(network):
    """Stage -> side in voxels of what a voxel of its output sees, from the network's own cells.

    The recursion adds (kernel - 1) times the distance of the input's voxels. As in the paper's
    table 1, a transposed convolution of stride 2 counts with its kernel of 2 at its output's
    distance, though each of its output voxels takes in a single voxel.
    """
    fields, field, distance = {}, 1, 1
    for stage in STAGES:
        for _, cell in getattr(network, stage).cells_and_names():
            if isinstance(cell, nn.Conv3dTranspose):
                distance //= cell.stride[0]
                field += (cell.kernel_size[0] - 1) * distance
            elif isinstance(cell, nn.Conv3d):
                field += (cell.kernel_size[0] - 1) * distance
                distance *= cell.stride[0]
        fields[stage] = field
    assert distance == 1
    return fields


def test_receptive_fields_of_table_1():
    assert receptive_fields(small_vnet("paper")) == {
        "in_tr": 5,
        "down_tr32": 22,
        "down_tr64": 72,
        "down_tr128": 172,
        "down_tr256": 372,
        "up_tr256": 476,
        "up_tr128": 528,
        "up_tr64": 546,
        "up_tr32": 551,
        "out_tr": 551,
    }


@pytest.mark.parametrize(
    ("stages", "field", "sides"),
    [(1, 5, (32, 2, 2)), (2, 22, (64, 4, 4)), (3, 72, (160, 8, 8)), (4, 172, (384, 8, 8))],
)
def test_the_encoder_really_sees_that_many_voxels(stages, field, sides):
    """The gradient of one output voxel with respect to a long, thin volume."""
    ms.set_context(mode=ms.PYNATIVE_MODE)  # quicker than compiling for one call
    network = seed_weights(small_vnet("paper", width=1))

    def centre(volume):
        x = volume
        for stage in STAGES[:stages]:
            x = getattr(network, stage)(x)
        return x[0, :, x.shape[2] // 2, 0, 0].sum()

    gradient = ms.grad(centre)(random_volume(1, 1, *sides)).asnumpy()
    (seen,) = np.nonzero(np.abs(gradient).sum(axis=(0, 1, 3, 4)))
    assert seen[-1] - seen[0] + 1 == field
    assert seen[0] > 0
    assert seen[-1] < sides[0] - 1  # the volume did not cut it off


# ------------------------------------------------------------------ shapes and parameters


def expected_parameter_count(variant, width, activation):
    """Stage -> trainable numbers, in closed form from the variant's description."""
    options = VARIANTS[variant]._replace(activation=activation)
    prelu, norm = int(options.activation == "prelu"), 2 * (options.norm is not None)

    def conv(inputs, outputs, side, bias):
        return inputs * outputs * side**3 + outputs * bias

    def block(channels, depth, bias):
        units = depth * (conv(channels, channels, 5, bias) + (norm + prelu) * channels)
        # The sum has slopes of its own; without activation_before_sum they are the last unit's.
        return units + prelu * channels * options.activation_before_sum

    bias = options.encoder_bias
    counts = {"in_tr": conv(1, width, 5, bias) + (norm + prelu) * width}
    for level, (name, depth) in enumerate(
        zip(DOWN_NAMES, options.encoder_depths[1:], strict=True), start=1
    ):
        channels = width * 2**level
        counts[name] = (
            conv(channels // 2, channels, 2, bias)
            + (norm + prelu) * channels
            + block(channels, depth, bias)
        )
    below = 16 * width
    for name, depth, factor in zip(UP_NAMES, options.decoder_depths, (16, 8, 4, 2), strict=True):
        channels = width * factor
        counts[name] = (
            conv(below, channels // 2, 2, options.up_bias)
            + (norm + prelu) * (channels // 2)
            + block(channels, depth, options.decoder_bias)
        )
        below = channels
    last = conv(2, 2, options.head_kernel_size, options.head_bias)
    counts["out_tr"] = conv(below, 2, 5, bias) + (norm + prelu) * 2 + last
    if variant == "paper":  # 1x1x1 alone
        counts["out_tr"] = 2 * below + 2
    return counts


@pytest.mark.parametrize(
    ("variant", "width", "activation"),
    [
        ("zoo", 16, "elu"),
        ("zoo", 3, "prelu"),
        ("monai", 4, "elu"),
        ("monai", 1, "prelu"),
        ("paper", 4, "prelu"),
        ("paper", 5, "elu"),
    ],
)
def test_parameter_count_of_each_stage(variant, width, activation):
    network = small_vnet(variant, width, activation=activation)
    assert {
        stage: sum(p.size for p in getattr(network, stage).trainable_params()) for stage in STAGES
    } == expected_parameter_count(variant, width, activation)
    assert sum(p.size for p in network.trainable_params()) == sum(
        expected_parameter_count(variant, width, activation).values()
    )


def test_the_zoos_network_has_the_known_size():
    counts = expected_parameter_count("zoo", 16, "elu")
    assert sum(counts.values()) == pytest.approx(45.6e6, rel=1e-3)


@pytest.mark.parametrize(
    ("variant", "width", "options", "shape"),
    [
        ("zoo", 1, {}, (1, 16, 32, 48)),
        ("zoo", 2, {"activation": "prelu"}, (3, 16, 16, 16)),
        ("zoo", 3, {"encoder_depths": (1, 1, 1, 1, 1)}, (1, 16, 16, 32)),
        ("monai", 2, {"decoder_depths": (1, 2, 3, 1)}, (2, 32, 16, 16)),
        ("monai", 2, {"norm": None, "encoder_bias": True}, (1, 16, 16, 16)),
        ("paper", 2, {}, (2, 16, 48, 16)),
        ("paper", 1, {"activation": "elu", "norm": "batch"}, (1, 16, 16, 16)),
    ],
)
def test_probability_of_the_volumes_shape(variant, width, options, shape):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = small_vnet(variant, width, **options).set_train(False)
    probability = network(random_volume(shape[0], 1, *shape[1:])).asnumpy()
    assert probability.shape == shape
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert np.ptp(probability) > 0


def test_depths_and_channels_of_the_stages():
    network = small_vnet("zoo", 3, encoder_depths=(1, 3, 1, 2, 1), decoder_depths=(1, 1, 2, 3))
    shapes = {name: parameter.shape for name, parameter in network.parameters_dict().items()}
    convs = {name: shape for name, shape in shapes.items() if len(shape) == 5}
    assert convs == {
        "in_tr.conv.weight": (3, 1, 5, 5, 5),
        "down_tr32.down_conv.weight": (6, 3, 2, 2, 2),
        "down_tr32.ops.0.conv.weight": (6, 6, 5, 5, 5),
        "down_tr32.ops.1.conv.weight": (6, 6, 5, 5, 5),
        "down_tr32.ops.2.conv.weight": (6, 6, 5, 5, 5),
        "down_tr64.down_conv.weight": (12, 6, 2, 2, 2),
        "down_tr64.ops.conv.weight": (12, 12, 5, 5, 5),
        "down_tr128.down_conv.weight": (24, 12, 2, 2, 2),
        "down_tr128.ops.0.conv.weight": (24, 24, 5, 5, 5),
        "down_tr128.ops.1.conv.weight": (24, 24, 5, 5, 5),
        "down_tr256.down_conv.weight": (48, 24, 2, 2, 2),
        "down_tr256.ops.conv.weight": (48, 48, 5, 5, 5),
        # MindSpore's transposed convolution holds (in, out, ...), as PyTorch's does.
        "up_tr256.up_conv.weight": (48, 24, 2, 2, 2),
        "up_tr256.ops.conv.weight": (48, 48, 5, 5, 5),
        "up_tr128.up_conv.weight": (48, 12, 2, 2, 2),
        "up_tr128.ops.conv.weight": (24, 24, 5, 5, 5),
        "up_tr64.up_conv.weight": (24, 6, 2, 2, 2),
        "up_tr64.ops.0.conv.weight": (12, 12, 5, 5, 5),
        "up_tr64.ops.1.conv.weight": (12, 12, 5, 5, 5),
        "up_tr32.up_conv.weight": (12, 3, 2, 2, 2),
        "up_tr32.ops.0.conv.weight": (6, 6, 5, 5, 5),
        "up_tr32.ops.1.conv.weight": (6, 6, 5, 5, 5),
        "up_tr32.ops.2.conv.weight": (6, 6, 5, 5, 5),
        "out_tr.conv1.weight": (2, 6, 5, 5, 5),
        "out_tr.conv2.weight": (2, 2, 3, 3, 3),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_create_vnet_takes_variant_and_width_from_the_configuration(variant):
    network = create_vnet(override_config(vnet_cfg, [f"variant={variant}", "width=2"]))
    assert {p.name: p.shape for p in network.get_parameters()} == {
        p.name: p.shape for p in small_vnet(variant).get_parameters()
    }


@pytest.mark.parametrize("foreground", [0, 1])
def test_probability_is_the_softmax_of_the_foreground_channel(foreground):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = seed_weights(small_vnet("zoo", foreground_channel=foreground)).set_train(False)
    seen = []
    network.out_tr.conv2.register_forward_hook(lambda cell, inputs, out: seen.append(out))
    probability = network(random_volume(1, 1, 16, 16, 16)).asnumpy()
    logits = seen[0].asnumpy().astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials[:, foreground] / exponentials.sum(axis=1)
    # Each exponential errs by the rounding of its argument and some units of its library's exp.
    # The probability p moves by p (1 - p) <= 1/4 of that, and by the rounding of sum and quotient.
    units = np.ptp(logits, axis=1).max() + 16
    np.testing.assert_allclose(probability, expected, rtol=0, atol=units * FLOAT32)


# ------------------------------------------------------------------ behaviour


@pytest.mark.parametrize(
    "variant",
    [
        "instance",
        "paper",
        # Graph mode of these is compared with the oracles above.
        *(pytest.param(variant, marks=pytest.mark.full) for variant in ("zoo", "monai")),
    ],
)
def test_graph_and_pynative_mode_agree(variant):
    """Of networks that are less deep; a graph takes long to compile."""
    depths = {"encoder_depths": (1, 1, 2, 1, 1), "decoder_depths": (1, 2, 1, 1)}
    volume = random_volume(2, 1, 32, 16, 16)
    mask = ms.Tensor((np.random.default_rng(2).random((2, 32, 16, 16)) < 0.3).astype(np.float32))
    results = []
    for mode in MODES.values():
        ms.set_context(mode=mode)
        network = seed_weights(small_vnet(variant, **depths))
        loss, trained, gradients = loss_probability_and_gradients(network, volume, mask)
        evaluated = network.set_train(False)(volume).asnumpy()
        results.append((loss, trained, evaluated, gradients))
    graph, pynative = results
    assert graph[0] == pytest.approx(pynative[0], abs=1e-6)
    np.testing.assert_allclose(graph[1], pynative[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(graph[2], pynative[2], rtol=0, atol=1e-5)
    whole = np.sqrt(sum(np.sum(gradient**2) for gradient in graph[3].values()))
    assert whole > 0
    for name, gradient in graph[3].items():
        assert np.linalg.norm(gradient - pynative[3][name]) < 1e-4 * whole, name


UNFIT = [
    ((1, 1, 20, 32, 32), r"X, Y, Z must be multiples of 16, got \(20, 32, 32\)"),
    ((2, 1, 32, 8, 32), r"X, Y, Z must be multiples of 16, got \(32, 8, 32\)"),
    ((1, 1, 32, 32, 33), r"X, Y, Z must be multiples of 16, got \(32, 32, 33\)"),
    ((1, 1, 32, 0, 32), r"X, Y, Z must be multiples of 16, got \(32, 0, 32\)"),
    ((1, 2, 32, 32, 32), r"shape \(batch, 1, X, Y, Z\), got \(1, 2, 32, 32, 32\)"),
    ((1, 32, 32, 32), r"shape \(batch, 1, X, Y, Z\), got \(1, 32, 32, 32\)"),
]


@pytest.mark.parametrize(
    ("mode", "shape", "found"),
    [*(("pynative", *case) for case in UNFIT), *(("graph", *case) for case in UNFIT[::3])],
)
def test_unfit_volumes_are_refused(mode, shape, found):
    ms.set_context(mode=MODES[mode])
    with pytest.raises(ValueError, match=found):
        small_vnet()(random_volume(*shape))


def test_the_same_seed_gives_the_same_weights():
    def weights(seed):
        ms.set_seed(seed)
        return {p.name: p.asnumpy().copy() for p in small_vnet().get_parameters()}

    first, again, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    convs = [name for name, array in first.items() if array.ndim == 5]
    assert not any(np.array_equal(first[name], other[name]) for name in convs)


# Where each variant drops channels, and how many of them at width 1.
DROPOUT = {
    "zoo": {
        ("down_tr128", "down"): 8,
        ("down_tr256", "down"): 16,
        ("up_tr256", "up"): 16,
        ("up_tr256", "skip"): 8,
        ("up_tr128", "up"): 16,
        ("up_tr128", "skip"): 4,
    },
    "paper": {},
}
DROPOUT["instance"] = DROPOUT["zoo"]
DROPOUT["monai"] = {**DROPOUT["zoo"], ("up_tr64", "skip"): 2, ("up_tr32", "skip"): 1}


def dropout_columns(network):
    """(stage, place) -> (start, stop) of its columns in `dropout_mask`."""
    down = dict(zip(DOWN_NAMES, network.down_slices, strict=True))
    up = dict(zip(UP_NAMES, network.up_slices, strict=True))
    places = {(name, "down"): column for name, (column,) in down.items()}
    for name, (brought, across) in up.items():
        places |= {(name, "up"): brought, (name, "skip"): across}
    return {place: column for place, column in places.items() if column is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("width", [1, 3])
def test_dropout_has_its_columns_for_each_place(variant, width):
    network = small_vnet(variant, width)
    columns = dropout_columns(network)
    assert {place: stop - start for place, (start, stop) in columns.items()} == {
        place: width * count for place, count in DROPOUT[variant].items()
    }
    covered = sorted(index for start, stop in columns.values() for index in range(start, stop))
    assert covered == list(range(network.dropout_channels))


@pytest.mark.parametrize("mode", MODES)
def test_keeping_every_channel_changes_nothing(mode):
    ms.set_context(mode=MODES[mode])
    network = seed_weights(small_vnet("monai")).set_train(False)
    volume = random_volume(2, 1, 16, 16, 16)
    dropout_mask = np.ones((2, network.dropout_channels), np.float32)
    np.testing.assert_array_equal(
        network(volume, ms.Tensor(dropout_mask)).asnumpy(), network(volume).asnumpy()
    )


def test_each_place_of_dropout_matters_and_each_volume_has_its_own():
    """That they act where the zoo and MONAI have them is shown above, by mode "dropout"."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = seed_weights(small_vnet("monai")).set_train(False)
    volume = random_volume(2, 1, 16, 16, 16)
    whole = network(volume).asnumpy()
    for place, (start, stop) in dropout_columns(network).items():
        dropout_mask = np.ones((2, network.dropout_channels), np.float32)
        dropout_mask[1, start:stop] = 0
        dropped = network(volume, ms.Tensor(dropout_mask)).asnumpy()
        np.testing.assert_array_equal(dropped[0], whole[0])
        assert np.abs(dropped[1] - whole[1]).max() > 1e-4, place


def test_a_variant_without_dropout_takes_factors_and_ignores_them():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = seed_weights(small_vnet("paper")).set_train(False)
    volume = random_volume(1, 1, 16, 16, 16)
    dropout_mask = ms.Tensor(np.zeros((1, 1), np.float32))
    np.testing.assert_array_equal(
        network(volume, dropout_mask).asnumpy(), network(volume).asnumpy()
    )


def test_instance_norm_is_that_of_each_channel_of_each_volume():
    random = np.random.default_rng(5)
    x = 3 * random.normal(size=(2, 3, 16, 8, 4)) + random.normal(size=(2, 3, 1, 1, 1))
    gamma, beta = random.normal(size=(2, 3))
    norm = InstanceNorm3d(3)
    norm.gamma.set_data(ms.Tensor(gamma.astype(np.float32)))
    norm.beta.set_data(ms.Tensor(beta.astype(np.float32)))
    flat = x.reshape(2, 3, -1)
    expected = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + 1e-5)
    expected = (gamma[:, None] * expected + beta[:, None]).reshape(x.shape)
    for training in (True, False):
        found = norm.set_train(training)(ms.Tensor(x.astype(np.float32))).asnumpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_instance_norm_needs_more_than_a_voxel_at_the_bottom(small_config):
    with pytest.raises(UsageError, match="variant=instance with VolSize=.* one voxel"):
        create_vnet(small_config("variant=instance"))
    create_vnet(small_config("variant=instance", "VolSize=16,16,32"))
