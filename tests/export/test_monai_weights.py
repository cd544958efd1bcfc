import errno
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file

from src.acceptance.golden import GOLDEN, seeded
from src.checkpoint import load_weights
from src.config import load_config
from src.export.monai_weights import from_monai, read_state_dict
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.vnet import VARIANTS, VNet, create_vnet
from tests.helpers import ROOT
from tests.networks import computed_once
from tools import import_monai

WITH_BIASES = ROOT / "tests/golden/monai_prelu_bias.npz"


def monai_shapes(path):
    """Name -> shape of a state dict, as MONAI itself gave it."""
    with np.load(path) as file:
        shapes = json.loads(str(file["meta"]))["shapes"]
    return {name: tuple(shape) for name, shape in shapes.items()}


def zeros(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def whole_state():
    """A whole state dict: each parameter holds one value of its own."""
    shapes = monai_shapes(GOLDEN / "monai.npz")
    return {
        name: np.full(shape, index, np.float32)
        for index, (name, shape) in enumerate(shapes.items())
    }


def import_with(monkeypatch, capsys, *arguments, grid=("VolSize=96,96,48", "dstRes=1,1,2")):
    """The exit code and the last line on standard error of import_monai.py."""
    words = [*map(str, arguments), *(word for text in grid for word in ("--set", text))]
    monkeypatch.setattr(sys, "argv", ["import_monai.py", *words])
    try:
        run(import_monai.main)
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "activation"), [(GOLDEN / "monai.npz", "elu"), (WITH_BIASES, "prelu")]
)
def test_names_and_shapes_are_those_of_the_variant(path, activation):
    weights = from_monai(zeros(monai_shapes(path)))
    network = VNet(VARIANTS["monai"]._replace(activation=activation))
    assert {name: array.shape for name, array in weights.items()} == {
        parameter.name: parameter.shape for parameter in network.get_parameters()
    }
    assert all(array.dtype == np.float32 for array in weights.values())


def test_slopes_and_biases_before_batch_norm_give_monais_probability():
    state = {
        name: seeded.parameter(name, shape) for name, shape in monai_shapes(WITH_BIASES).items()
    }
    before = {name: array.copy() for name, array in state.items()}
    weights = from_monai(state)
    network = VNet(VARIANTS["monai"]._replace(activation="prelu")).set_train(False)
    for name, parameter in network.parameters_dict().items():
        parameter.set_data(ms.Tensor(weights[name]))
    probability = computed_once(network, seeded.volume()[:1, :, :16, :16, :16])
    with np.load(WITH_BIASES) as file:
        np.testing.assert_allclose(probability, file["probability"], rtol=0, atol=1e-5)
    assert all(np.array_equal(state[name], before[name]) for name in state)  # the caller's own


def _without(name):
    return lambda state: state.pop(name)


def _with(name, shape):
    return lambda state: state.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(
            _with("encoder.conv.weight", (1,)),
            "encoder.conv.weight is not a parameter of monai.networks.nets.VNet",
            id="another network",
        ),
        pytest.param(
            _with("down_tr64.ops.2.conv_block.conv.weight", (64, 64, 5, 5, 5)),
            "down_tr64.ops.2.conv_block.conv.weight is not a parameter",
            id="deeper",
        ),
        pytest.param(
            _without("up_tr64.ops.0.conv_block.adn.N.running_var"),
            "up_tr64.ops.0.conv_block.adn.N.running_var is missing",
            id="cut off",
        ),
        pytest.param(
            _with("in_tr.conv_block.conv.weight", (16, 2, 5, 5, 5)),
            "in_tr.conv_block.conv.weight has shape (16, 2, 5, 5, 5), (16, 1, 5, 5, 5) in",
            id="two input channels",
        ),
        pytest.param(
            _with("out_tr.conv2.weight", (1, 1, 1, 1, 1)),
            "out_tr.conv2.weight has shape (1, 1, 1, 1, 1), (2, 2, 1, 1, 1) in",
            id="one output channel",
        ),
        pytest.param(
            _with("in_tr.act_function.weight", (16,)),
            "down_tr32.act_function1.weight is missing",
            id="slopes of one stage only",
        ),
    ],
)
def test_another_state_is_refused_by_its_first_odd_name(change, found):
    state = zeros(monai_shapes(GOLDEN / "monai.npz"))
    change(state)
    with pytest.raises(DataError) as error:
        from_monai(state)
    assert str(error.value).startswith(found)


def test_a_wrapped_state_dict_names_the_wrapper():
    with pytest.raises(DataError, match=r"^state_dict is not a parameter"):
        from_monai({"state_dict": zeros(monai_shapes(GOLDEN / "monai.npz")), "epoch": 3})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_import_makes_a_checkpoint_that_loads(suffix, whole_state, tmp_path, monkeypatch, capsys):
    source = tmp_path / f"vnet{suffix}"
    if suffix == ".npz":
        np.savez(source, **whole_state)
    else:
        save_file(whole_state, source)
    target = tmp_path / "imported" / "vnet.ckpt"
    code, err = import_with(monkeypatch, capsys, "--state_dict", source, "--ckpt_file", target)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in target.parent.iterdir()) == ["config.json", "vnet.ckpt"]
    config = load_config(target.parent / "config.json")
    assert (config.variant, config.width) == ("monai", 16)
    assert (config.VolSize, config.dstRes) == ([96, 96, 48], [1, 1, 2])
    network = create_vnet(config)
    load_weights(network, target)
    for name, array in from_monai(whole_state).items():
        np.testing.assert_array_equal(network.parameters_dict()[name].asnumpy(), array)


@pytest.mark.parametrize("setting", ["width=8", "variant=zoo"])
def test_the_network_is_monais(tmp_path, monkeypatch, capsys, setting):
    options = ("--state_dict", tmp_path / "vnet.npz", "--ckpt_file", tmp_path / "vnet.ckpt")
    grid = ("VolSize=96,96,48", "dstRes=1,1,2", setting)
    code, err = import_with(monkeypatch, capsys, *options, grid=grid)
    assert code == 2 and "variant and width are those of MONAI's network" in err


@pytest.mark.parametrize("grid", [["VolSize=96,96,48"], ["dstRes=1,1,2"], []])
def test_the_grid_must_be_known(tmp_path, monkeypatch, capsys, grid):
    """A network on another grid than its own gives plausible wrong masks."""
    options = ("--state_dict", tmp_path / "vnet.npz", "--ckpt_file", tmp_path / "vnet.ckpt")
    code, err = import_with(monkeypatch, capsys, *options, grid=grid)
    assert code == 2 and "is not known" in err and "on which grid the network was trained" in err


def test_slopes_have_no_place_in_a_configuration(tmp_path, monkeypatch, capsys):
    source, target = tmp_path / "vnet.npz", tmp_path / "vnet.ckpt"
    np.savez(source, **zeros(monai_shapes(WITH_BIASES)))
    code, err = import_with(monkeypatch, capsys, "--state_dict", source, "--ckpt_file", target)
    assert code == 1
    assert "vnet.npz: its activation is PReLU" in err
    assert list(tmp_path.iterdir()) == [source]


def test_a_checkpoint_does_not_stay_without_its_configuration(
    whole_state, tmp_path, monkeypatch, capsys
):
    """Without one it would be loaded as variant 'zoo'."""
    source, folder = tmp_path / "vnet.npz", tmp_path / "imported"
    np.savez(source, **whole_state)
    replace = Path.replace

    def onto_a_full_disk(path, target):
        if Path(target).name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", onto_a_full_disk)
    options = ("--state_dict", source, "--ckpt_file", folder / "vnet.ckpt")
    code, err = import_with(monkeypatch, capsys, *options)
    assert code == 1
    assert "config.json" in err and "No space left on device" in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("present", ["vnet.ckpt", "config.json"])
def test_nothing_is_overwritten(present, tmp_path, monkeypatch, capsys):
    (tmp_path / present).write_text("mine")
    code, err = import_with(
        monkeypatch,
        capsys,
        *("--state_dict", tmp_path / "vnet.npz", "--ckpt_file", tmp_path / "vnet.ckpt"),
    )
    assert code == 1
    assert f"{present}: exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "target", "code", "found"),
    [
        ("vnet.h5", "vnet.ckpt", 2, "vnet.h5: expected a state dict as .pt, .pth, .npz"),
        ("vnet.npz", "vnet.mindir", 2, "vnet.mindir: expected a name that ends with .ckpt"),
        ("absent.npz", "vnet.ckpt", 1, "absent.npz: no such file"),
        ("cut.npz", "vnet.ckpt", 1, "cut.npz: not a complete state dict"),
        ("cut.safetensors", "vnet.ckpt", 1, "cut.safetensors: not a complete state dict"),
        ("pickled.npz", "vnet.ckpt", 1, "pickled.npz: not a complete state dict"),
        ("other.npz", "vnet.ckpt", 1, "other.npz: fc.weight is not a parameter"),
    ],
)
def test_bad_files_end_in_one_line(source, target, code, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {"fc.weight": np.zeros(3, np.float32)}
    np.savez_compressed("other.npz", **state)
    np.savez("pickled.npz", **{"in_tr.conv_block.conv.weight": np.array([{}])})
    save_file(state, "cut.safetensors")
    Path("cut.npz").write_bytes(Path("other.npz").read_bytes()[:-30])
    Path("cut.safetensors").write_bytes(Path("cut.safetensors").read_bytes()[:-5])
    Path("vnet.h5").touch()
    before = sorted(tmp_path.iterdir())
    exit_code, err = import_with(monkeypatch, capsys, "--state_dict", source, "--ckpt_file", target)
    assert exit_code == code
    assert err.startswith(f"error: {found}")
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pytorch_file_without_pytorch_says_what_to_do(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"vnet{suffix}"
    path.touch()
    with pytest.raises(DataError, match=r"needs the package torch; install it, or .* np\.savez"):
        read_state_dict(path)


def test_unknown_suffix_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="expected a state dict as"):
        read_state_dict(tmp_path / "vnet.onnx")
