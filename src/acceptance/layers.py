"""Does each kind of layer compute the golden values, forward and backward?"""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..devices.device import apply_precision
from ..vnet import InstanceNorm3d, conv5
from .golden import GOLDEN
from .precisions import PRECISIONS, configuration, tolerance
from .table import Table


def check_layers(target: str, table: Table, golden_path: Path = GOLDEN / "layers.npz") -> None:
    """Compares the layers with golden values, in each precision of the device.

    Args:
        target: "Ascend", "GPU" or "CPU".
        table: gets the checks.
        golden_path: file of tests/golden/make_layers.py.
    """
    with np.load(golden_path) as file:
        golden = dict(file)
    for precision in PRECISIONS[target]:
        for number, name in enumerate(golden["names"]):
            prefix = f"{number} "
            arrays = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
            with table.record_errors(f"{name}, {precision}"):
                _check_layer(name, arrays, target, precision, table)


def _check_layer(
    name: str, golden: dict[str, np.ndarray], target: str, precision: str, table: Table
) -> None:
    parameters = [golden[key] for key in sorted(golden) if key.startswith("parameter")]
    network = nn.SequentialCell(
        create_layer(name, [golden["x"].shape, *(p.shape for p in parameters)])
    )
    for parameter, value in zip(network.trainable_params(), parameters, strict=True):
        parameter.set_data(ms.Tensor(value))
    apply_precision(network, configuration(precision), target)
    network.set_train()
    y, (inputs, weights) = _Backward(_Float32(network))(
        ms.Tensor(golden["x"]), ms.Tensor(golden["upstream"])
    )
    check, limit = f"{name}, {precision}", tolerance(target, precision)
    table.near(f"{check}, forward", y.asnumpy(), golden["y"], limit)
    for place, gradient in enumerate((*inputs, *weights)):
        what = f"{check}, gradient of its {f'parameter {place}' if place else 'input'}"
        table.near(what, gradient.asnumpy(), golden[f"gradient{place}"], limit)


def create_layer(name: str, shapes: list[tuple[int, ...]]) -> nn.Cell:
    """Creates a layer of the network.

    Args:
        name: in tests/golden/make_layers.py.
        shapes: of the input, (N, C, X, Y, Z), and of the layer's parameters.
    """
    channels = shapes[0][1]
    weight = shapes[1] if len(shapes) > 1 else ()
    return {
        "convolution 5x5x5": lambda: conv5(channels, weight[0], False),
        "convolution 2x2x2, stride 2": lambda: nn.Conv3d(channels, weight[0], 2, stride=2),
        "convolution 1x1x1": lambda: nn.Conv3d(channels, weight[0], 1),
        "transposed convolution 2x2x2": lambda: nn.Conv3dTranspose(
            channels, weight[1], 2, stride=2
        ),
        "batch norm": lambda: nn.BatchNorm3d(channels),
        "instance norm": lambda: InstanceNorm3d(channels),
        "ELU": nn.ELU,
        "PReLU": lambda: nn.PReLU(channels),
        "softmax": lambda: nn.Softmax(1),
    }[name]()


class _Float32(nn.Cell):
    """A network whose output is float32 in mixed precision, too."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x):
        return ops.cast(self.network(x), ms.float32)


class _Backward(nn.Cell):
    """A network's output, and the gradients of its input and of its weights."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.weights = ms.ParameterTuple(network.trainable_params())
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, x, upstream):
        return self.network(x), self.gradient(self.network, self.weights)(x, upstream)
