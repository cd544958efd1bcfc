"""This project's network, or stock MindSpore's, for `benchmarks.worker`."""

import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from benchmarks.layers import Layer, layer_arrays, sample
from benchmarks.machine import (
    describe_process,
    peak_memory_bytes,
    reset_peak_memory,
    usable_cores,
)
from benchmarks.worker import FULL_WIDTH
from src.config import override_config, vnet_cfg
from src.devices.device import start_device
from src.dropout import draw_dropout_mask
from src.export.monai_weights import from_monai, read_state_dict
from src.fast_conv3d.network import to_fast_vnet
from src.training.optimizer import create_optimizer
from src.training.step import create_training_cell
from src.vnet import create_vnet

DEVICE = "CPU"
STEPS = 1000  # more than any benchmark trains


class Gradient(nn.Cell):
    """The gradient of one convolution with respect to its input or its weight.

    `construct(x, dy)` takes the input and the gradient of the output; the forward pass is not run.
    """

    def __init__(self, cell: nn.Cell, by_weight: bool) -> None:
        super().__init__()
        self.cell = cell
        self.weight = ms.ParameterTuple(cell.trainable_params())
        self.by_weight = by_weight
        self.gradient = ops.GradOperation(get_by_list=by_weight, sens_param=True)

    def construct(self, x, dy):
        if self.by_weight:
            return self.gradient(self.cell, self.weight)(x, dy)[0]
        return self.gradient(self.cell)(x, dy)


def from_pytorch(state: dict[str, np.ndarray], variant: str) -> dict[str, np.ndarray]:
    """Renames the weights of MONAI's network or of `benchmarks.pytorch_network`."""
    if variant == "monai":
        return from_monai(state)
    leaves = {".bn.weight": ".bn.gamma", ".bn.bias": ".bn.beta"}
    for theirs, ours in leaves.items():
        state = {name.replace(theirs, ours): array for name, array in state.items()}
    return state


class Implementation:
    """A network on this process's cores.

    Args:
        size: X, Y, Z of a volume.
        batch: volumes at once.
        fast_conv3d: "on", or "off" for stock MindSpore.
        network: as `benchmarks.worker.FULL_WIDTH`.
    """

    def __init__(
        self, size: list[int], batch: int, fast_conv3d: str, network: dict = FULL_WIDTH
    ) -> None:
        self.config = override_config(
            vnet_cfg,
            [
                *(f"{key}={value}" for key, value in network.items()),
                f"VolSize={','.join(map(str, size))}",
                f"batch_size={batch}",
                f"fast_conv3d={fast_conv3d}",
            ],
        )
        start_device(DEVICE)
        self.step = 0

    def describe(self) -> dict:
        """Versions and threads."""
        return {
            "mindspore": ms.__version__,
            "fast_conv3d": self.config.fast_conv3d,
            "threads": usable_cores(),
            **describe_process(),
        }

    def load(self, folder: str, training: bool) -> dict:
        """Loads volume.npy, mask.npy and weights.npz if it exists; resets the peak of memory."""
        started = time.perf_counter()
        self.volume = np.load(Path(folder, "volume.npy"))
        self.mask = np.load(Path(folder, "mask.npy"))
        network = create_vnet(self.config)
        self.network = to_fast_vnet(network, self.config, DEVICE).set_train(training)
        weights = Path(folder, "weights.npz")
        if weights.is_file():
            arrays = from_pytorch(read_state_dict(weights), self.config.variant)
            for name, parameter in self.network.parameters_dict().items():
                parameter.set_data(ms.Tensor(arrays.pop(name)))
        if training:
            rates = np.full(STEPS, self.config.lr, np.float32)
            optimizer = create_optimizer(self.network, self.config, rates)
            self.training_cell = create_training_cell(self.network, optimizer, self.config, DEVICE)
        reset_peak_memory()
        parameters = sum(parameter.size for parameter in self.network.trainable_params())
        return {"seconds": time.perf_counter() - started, "parameters": parameters}

    def infer(self) -> dict:
        """Times the way from the volume to its probability, both NumPy arrays."""
        started = time.perf_counter()
        self.probability = self.network(ms.Tensor(self.volume)).asnumpy()
        return {"seconds": time.perf_counter() - started}

    def write_probability(self, path: str) -> None:
        """Writes the probability of the last `infer` as .npy, (batch, X, Y, Z)."""
        np.save(path, self.probability)

    def train_step(self, drop: bool) -> dict:
        """Runs forward, loss, backward and Adam; without dropout unless `drop`."""
        started = time.perf_counter()
        batch = tuple(ms.Tensor(array) for array in (self.volume, self.mask, self._mask(drop)))
        loss = float(self.training_cell(*batch).asnumpy())
        seconds = time.perf_counter() - started
        self.step += 1
        return {"loss": loss, "seconds": seconds}

    def peak_memory(self) -> int:
        """The peak of memory since `load`, in bytes."""
        return peak_memory_bytes()

    def load_layer(self, batch: int, **layer) -> str:
        """Creates one convolution; returns the name of the module that implements it."""
        layer = Layer(**layer)
        x, weight, dy = layer_arrays(layer, batch)
        cell = self._convolution(layer)
        cell.weight.set_data(ms.Tensor(weight))
        self.x, self.dy = ms.Tensor(x), ms.Tensor(dy)
        self.parts = {
            "forward": lambda: cell(self.x),
            "input gradient": lambda: input_gradient(self.x, self.dy),
            "weight gradient": lambda: weight_gradient(self.x, self.dy),
        }
        input_gradient, weight_gradient = Gradient(cell, False), Gradient(cell, True)
        return type(cell).__module__

    def run_layer(self, part: str) -> dict:
        """Times one of `benchmarks.layers.PARTS`; also returns some values of its result."""
        started = time.perf_counter()
        result = self.parts[part]().asnumpy()  # no copy; waits for the result
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "sample": sample(result)}

    def _mask(self, drop):
        """The dropout mask of one step, (batch, channels), as training draws it; or all ones."""
        channels, batch = self.network.dropout_channels, len(self.volume)
        if not drop:
            return np.ones((batch, channels), np.float32)
        first = self.step * batch
        return np.stack(
            [
                draw_dropout_mask(self.config.seed, first + index, channels, self.config.dropout)
                for index in range(batch)
            ]
        )

    def _convolution(self, layer):
        channels = (layer.in_channels, layer.out_channels)
        if layer.kind == "up":
            return nn.Conv3dTranspose(*channels, 2, stride=2, pad_mode="valid")
        if layer.kind == "down":
            return nn.Conv3d(*channels, 2, stride=2, pad_mode="valid")
        if self.config.fast_conv3d == "off":
            return nn.Conv3d(*channels, 5, pad_mode="pad", padding=2)
        from src.fast_conv3d.conv3d import Conv3d

        return Conv3d(*channels, has_bias=False)
