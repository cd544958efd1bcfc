"""Converts the weights of MONAI's VNet to a checkpoint of variant 'monai'."""

import logging
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from ..checkpoint import save_weights
from ..config import CONFIG_NAME, override_config, save_config, vnet_cfg
from ..utils.errors import DataError, UsageError, naming, reason_of
from ..vnet import DOWN_NAMES, UP_NAMES, VARIANTS, VNet

log = logging.getLogger(__name__)

MONAI_VNET = "monai.networks.nets.VNet(out_channels=2)"
# PyTorch's parameter name -> MindSpore's, by kind of layer.
NORM = {
    "weight": "bn2d.gamma",
    "bias": "bn2d.beta",
    "running_mean": "bn2d.moving_mean",
    "running_var": "bn2d.moving_variance",
}
CONV = {"weight": "weight", "bias": "bias"}
PRELU = {"weight": "w"}


def monai_names() -> dict[str, str]:
    """Returns MONAI's parameter name -> ours, for every 3-D configuration of its VNet."""
    variant = VARIANTS["monai"]
    convs = {"out_tr.conv2": "out_tr.conv2"}
    norms = {}
    activations = {"in_tr.act_function": "in_tr.relu", "out_tr.act_function1": "out_tr.relu"}
    blocks = {"in_tr.conv_block": ("in_tr", "conv"), "out_tr.conv_block": ("out_tr", "conv1")}
    depths = variant.encoder_depths[1:] + variant.decoder_depths
    for stage, depth in zip(DOWN_NAMES + UP_NAMES, depths, strict=True):
        resampling = f"{stage}.down_conv" if stage in DOWN_NAMES else f"{stage}.up_conv"
        convs[resampling] = resampling
        norms[f"{stage}.bn1"] = f"{stage}.bn"
        activations |= {f"{stage}.act_function{n}": f"{stage}.relu{n}" for n in (1, 2)}
        for index in range(depth):
            unit = f"{stage}.ops.{index}"
            ours = unit if depth > 1 else f"{stage}.ops"
            blocks[f"{unit}.conv_block"] = (ours, "conv")
            activations[f"{unit}.act_function"] = f"{ours}.relu"
    for block, (ours, conv) in blocks.items():
        convs[f"{block}.conv"] = f"{ours}.{conv}"
        norms[f"{block}.adn.N"] = f"{ours}.bn"
    return {
        f"{theirs}.{leaf}": f"{ours}.{our_leaf}"
        for layers, leaves in ((convs, CONV), (norms, NORM), (activations, PRELU))
        for theirs, ours in layers.items()
        for leaf, our_leaf in leaves.items()
    }


def from_monai(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the parameters of MONAI's VNet; both libraries use the same array layouts.

    With `bias=True` MONAI has a bias before each batch norm, which only shifts the mean: it is
    subtracted from the moving mean. PReLU is recognized by its slopes.

    Args:
        state: `monai.networks.nets.VNet(out_channels=2).state_dict()` as arrays.

    Returns:
        Name -> float32 array for `VNet(VARIANTS["monai"])`, or with activation "prelu" if the
        state has slopes.

    Raises:
        DataError: the state of another network; the message names the first mismatch.
    """
    names = monai_names()
    ours = {}
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        if name not in names:
            raise DataError(f"{name} is not a parameter of {MONAI_VNET}; expected its state dict")
        ours[names[name]] = np.array(array, np.float32)
    has_slopes = any(name.endswith(f".{PRELU['weight']}") for name in ours)
    variant = VARIANTS["monai"]._replace(activation="prelu" if has_slopes else "elu")
    expected = {parameter.name: parameter.shape for parameter in VNet(variant).get_parameters()}
    theirs = {our_name: name for name, our_name in names.items()}
    for name, shape in expected.items():
        if name not in ours:
            raise DataError(f"{theirs[name]} is missing; expected the state dict of {MONAI_VNET}")
        if ours[name].shape != shape:
            raise DataError(
                f"{theirs[name]} has shape {ours[name].shape}, {shape} in {MONAI_VNET}; "
                "expected a network with one input channel and two output channels"
            )
    for name in [name for name in ours if name not in expected]:
        layer = name.rsplit(".", 2)[0]
        ours[f"{layer}.bn.{NORM['running_mean']}"] -= ours.pop(name)
    return ours


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict from a .pt or .pth (needs PyTorch), .safetensors or .npz file.

    Returns:
        Name -> array.

    Raises:
        UsageError: another suffix.
        DataError: no such file, unreadable, not a dict of arrays, or PyTorch is missing.
    """
    path = Path(path)
    readers = {".pt": _read_torch, ".pth": _read_torch, ".npz": _read_npz}
    readers[".safetensors"] = _read_safetensors
    if path.suffix not in readers:
        raise UsageError(f"{path}: expected a state dict as {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return readers[path.suffix](path)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: reading it needs the package {error.name}; install it, or save the state "
            "dict as .npz where PyTorch is installed: "
            "np.savez(file, **{k: v.numpy() for k, v in state.items()})"
        ) from None
    except Exception as error:  # each library has its own exceptions for broken files
        raise DataError(
            f"{path}: not a complete state dict of arrays ({reason_of(error)})"
        ) from None


def _read_npz(path):
    with np.load(path) as file:
        return dict(file)


def _read_safetensors(path):
    from safetensors.numpy import load_file  # comes with MindSpore

    return load_file(path)


def _read_torch(path):
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    # Other entries mean that this is not a state dict; `from_monai` names the first of them.
    return {
        name: value.float().numpy() if torch.is_tensor(value) else value
        for name, value in state.items()
    }


def import_monai(
    state_dict_path: str | Path, ckpt_path: str | Path, overrides: Sequence[str]
) -> None:
    """Writes MONAI's weights as a checkpoint of variant 'monai', with `config.json` beside it.

    Args:
        state_dict_path: see `read_state_dict`.
        ckpt_path: of the checkpoint, a new file that ends with .ckpt.
        overrides: `--set` texts, among them `VolSize` and `dstRes` of the network's training.

    Raises:
        UsageError: a file name has another suffix, or an override is missing or wrong.
        DataError: the state dict is unreadable or of another network, a file exists already, or
            cannot be written.
    """
    ckpt_path = Path(ckpt_path)
    config_path = ckpt_path.with_name(CONFIG_NAME)
    if ckpt_path.suffix != ".ckpt":
        raise UsageError(f"{ckpt_path}: expected a name that ends with .ckpt")
    config = override_config(vnet_cfg, ["variant=monai", *overrides])
    if (config.variant, config.width) != ("monai", vnet_cfg.width):
        raise UsageError("variant and width are those of MONAI's network; leave them out")
    for key in ("VolSize", "dstRes"):
        if not any(text.startswith(f"{key}=") for text in overrides):
            raise UsageError(
                f"{key} is not known: {state_dict_path} does not say on which grid the network was "
                f"trained; give --set {key}=X,Y,Z"
            )
    for path in (ckpt_path, config_path):
        if path.exists():
            raise DataError(f"{path}: exists already; choose another folder")
    state = read_state_dict(state_dict_path)
    with naming(state_dict_path):
        weights = from_monai(state)
    network = VNet(VARIANTS["monai"])
    parameters = network.parameters_dict()
    slope = next((name for name in weights if name not in parameters), None)
    if slope is not None:
        raise DataError(
            f"{state_dict_path}: its activation is PReLU ({slope}), variant 'monai' has ELU; "
            "expected a network with MONAI's default activation"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(weights[name]))
    ckpt_path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network, ckpt_path)
    try:
        save_config(config, config_path)
    except DataError:
        ckpt_path.unlink()  # without configuration it would be loaded as variant 'zoo'
        raise
    log.info(
        f"{ckpt_path}: its activation is taken for ELU, MONAI's default; the weights do not tell "
        "it from ReLU"
    )
