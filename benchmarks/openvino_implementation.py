"""V-Net in OpenVINO, converted from PyTorch, for `benchmarks.worker`; inference only."""

import time
from pathlib import Path

import numpy as np
import openvino
import torch

from benchmarks.machine import (
    describe_process,
    peak_memory_bytes,
    reset_peak_memory,
    usable_cores,
)
from benchmarks.pytorch_implementation import FOREGROUND, create_network, load_weights


class Probability(torch.nn.Module):
    """A network that ends with the foreground's probability."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net(volume), dim=1)[:, FOREGROUND]


class Implementation:
    """A network on all cores of this process.

    Args:
        network: as `benchmarks.worker.FULL_WIDTH`.
        bfloat16: whether it may compute in bfloat16; otherwise in float32.
    """

    def __init__(self, network: dict, bfloat16: bool) -> None:
        self.network = network
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores(),
        }

    def describe(self) -> dict:
        """Versions and threads, and the precision that was chosen."""
        return {
            "openvino": openvino.__version__,
            "threads": usable_cores(),
            "how": self.settings,
            **describe_process(),
        }

    def load(self, folder: str, training: bool) -> dict:
        """Loads volume.npy and weights.npz, converts and compiles; resets the peak of memory."""
        assert not training
        started = time.perf_counter()
        self.volume = np.load(Path(folder, "volume.npy"))
        net = create_network(self.network).eval()
        load_weights(net, folder)
        model = openvino.convert_model(
            Probability(net),
            example_input=torch.from_numpy(self.volume),
            input=list(self.volume.shape),
        )
        compiled = openvino.Core().compile_model(model, "CPU", self.settings)
        self.request = compiled.create_infer_request()
        reset_peak_memory()
        parameters = sum(parameter.numel() for parameter in net.parameters())
        return {"seconds": time.perf_counter() - started, "parameters": parameters}

    def infer(self) -> dict:
        """Times the way from the volume to its probability, both NumPy arrays."""
        started = time.perf_counter()
        self.probability = self.request.infer({0: self.volume})[0]
        return {"seconds": time.perf_counter() - started}

    def write_probability(self, path: str) -> None:
        """Writes the probability of the last `infer` as .npy, (batch, X, Y, Z)."""
        np.save(path, self.probability)

    def peak_memory(self) -> int:
        """The peak of memory since `load`, in bytes."""
        return peak_memory_bytes()
