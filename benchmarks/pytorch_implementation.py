"""MONAI's VNet in PyTorch, for `benchmarks.worker`."""

import time
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets import VNet
from torch.nn.functional import conv3d, conv_transpose3d

from benchmarks.layers import Layer, layer_arrays, sample
from benchmarks.machine import (
    describe_process,
    peak_memory_bytes,
    reset_peak_memory,
    usable_cores,
)
from benchmarks.worker import LEARNING_RATE

FOREGROUND = 1  # channel of the logits, as in variant `monai`
EPSILON = 1e-5  # of the Dice loss, as in src/loss.py


def dice_loss(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The loss of src/loss.py, of (batch, X, Y, Z) probability and mask."""
    p, g = p.flatten(1), g.flatten(1)
    overlap = 2 * (p * g).sum(1) + EPSILON
    return (1 - overlap / ((p * p).sum(1) + (g * g).sum(1) + EPSILON)).mean()


class Implementation:
    """MONAI's VNet(out_channels=2) on all cores of this process."""

    def __init__(self) -> None:
        torch.set_num_threads(usable_cores())
        self.net = VNet(out_channels=2)

    def describe(self) -> dict:
        """Versions and threads."""
        return {
            "torch": torch.__version__,
            "monai": monai.__version__,
            "threads": torch.get_num_threads(),
            **describe_process(),
        }

    def write_weights(self, folder: str, seed: int) -> None:
        """Draws weights as MONAI does, and writes them to weights.npz.

        Batch norms get the statistics of `folder`'s volume, as in a training: with the initial 0
        and 1 the probability would be close to one half everywhere, whatever the convolutions.
        """
        torch.manual_seed(seed)
        self.net = VNet(out_channels=2).train()
        self._drop(False)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        with torch.inference_mode():
            self.net(torch.from_numpy(np.load(Path(folder, "volume.npy"))))
        state = {name: value.numpy() for name, value in self.net.state_dict().items()}
        np.savez(Path(folder, "weights.npz"), **state)

    def load(self, folder: str, training: bool) -> dict:
        """Loads volume.npy, mask.npy and weights.npz; resets the peak of memory."""
        started = time.perf_counter()
        self.volume = np.load(Path(folder, "volume.npy"))
        self.mask = np.load(Path(folder, "mask.npy"))
        with np.load(Path(folder, "weights.npz")) as file:
            self.net.load_state_dict({name: torch.from_numpy(file[name]) for name in file})
        self.net.train(training)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LEARNING_RATE)
        reset_peak_memory()
        parameters = sum(parameter.numel() for parameter in self.net.parameters())
        return {"seconds": time.perf_counter() - started, "parameters": parameters}

    def infer(self) -> dict:
        """Times the way from the volume to its probability, both NumPy arrays."""
        started = time.perf_counter()
        with torch.inference_mode():
            self.probability = self._probability().numpy()
        return {"seconds": time.perf_counter() - started}

    def write_probability(self, path: str) -> None:
        """Writes the probability of the last `infer` as .npy, (batch, X, Y, Z)."""
        np.save(path, self.probability)

    def train_step(self, drop: bool) -> dict:
        """Runs forward, loss, backward and Adam; without dropout unless `drop`."""
        self._drop(drop)
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss = dice_loss(self._probability(), torch.from_numpy(self.mask))
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "seconds": time.perf_counter() - started}

    def peak_memory(self) -> int:
        """The peak of memory since `load`, in bytes."""
        return peak_memory_bytes()

    def load_layer(self, batch: int, **layer) -> str:
        """Creates one convolution; returns the name of the module that implements it."""
        layer = Layer(**layer)
        arrays = layer_arrays(layer, batch)
        self.x, self.weight, self.dy = (torch.from_numpy(array) for array in arrays)
        self.x.requires_grad_()
        self.weight.requires_grad_()
        self.convolve = {
            "conv5": lambda: conv3d(self.x, self.weight, padding=2),
            "down": lambda: conv3d(self.x, self.weight, stride=2),
            "up": lambda: conv_transpose3d(self.x, self.weight, stride=2),
        }[layer.kind]
        self.y = self.convolve()  # the output from which gradients are computed
        return "torch"

    def run_layer(self, part: str) -> dict:
        """Times one of `benchmarks.layers.PARTS`; also returns some values of its result."""
        started = time.perf_counter()
        if part == "forward":
            with torch.inference_mode():
                result = self.convolve()
        else:
            by = self.x if part == "input gradient" else self.weight
            (result,) = torch.autograd.grad(self.y, by, self.dy, retain_graph=True)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "sample": sample(result.numpy())}

    def _probability(self):
        return torch.softmax(self.net(torch.from_numpy(self.volume)), dim=1)[:, FOREGROUND]

    def _drop(self, drop):
        for module in self.net.modules():
            if isinstance(module, torch.nn.Dropout3d):
                module.train(drop)
