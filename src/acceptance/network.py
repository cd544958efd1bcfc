"""Does the whole network compute what the zoo's, MONAI's and a CPU's do?"""

import json

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from ..devices.device import apply_precision
from ..export.monai_weights import from_monai
from ..vnet import create_vnet
from .golden import GOLDEN, seeded
from .precisions import PRECISIONS, configuration, tolerance
from .table import Table


def check_network(target: str, table: Table, small: bool) -> dict[str, np.ndarray]:
    """Compares the variants `zoo` and, unless `small`, `monai` with golden values.

    Returns:
        "instance PRECISION" -> probability of the variant `instance`, (batch, X, Y, Z), to be
        compared with a CPU's.
    """
    found = {}
    for precision in PRECISIONS[target]:
        for variant in ("zoo",) if small else ("zoo", "monai"):
            with table.record_errors(f"network {variant}, {precision}"):
                _check_variant(variant, target, precision, table)
    for precision in PRECISIONS[target]:
        with table.record_errors(f"network instance, {precision}"):
            config = configuration(precision, "variant=instance", "width=4", "VolSize=48,32,32")
            found[f"instance {precision}"] = _predict(seeded_network(config), config, target)
    return found


def _check_variant(variant: str, target: str, precision: str, table: Table) -> None:
    with np.load(GOLDEN / f"{variant}.npz") as golden:
        shapes = json.loads(str(golden["meta"]))["shapes"]
        expected = golden["eval_voxels"]
    weights = {name: seeded.parameter(name, tuple(shape)) for name, shape in shapes.items()}
    if variant == "monai":
        weights = from_monai(weights)
    config = configuration(precision, f"variant={variant}", "VolSize=48,32,32")
    network = create_vnet(config)
    parameters = {name: ms.Parameter(ms.Tensor(v), name=name) for name, v in weights.items()}
    ms.load_param_into_net(network, parameters, strict_load=True)
    every = slice(None, None, seeded.STRIDE)
    voxels = _predict(network, config, target)[:, every, every, every]
    check = f"network {variant}, {precision}, probability"
    table.near(check, voxels, expected, 5 * tolerance(target, precision))


def _predict(network: nn.Cell, config: EasyDict, target: str) -> np.ndarray:
    apply_precision(network, config, target)
    return network.set_train(False)(ms.Tensor(seeded.volume())).asnumpy()


def seeded_network(config: EasyDict) -> nn.Cell:
    """Creates a network whose weights are the same on every device."""
    network = create_vnet(config)
    for parameter in network.get_parameters():
        value = seeded.parameter(parameter.name, parameter.shape)
        parameter.set_data(ms.Tensor(value))
    return network
