"""V-Net in PyTorch, for `benchmarks.worker`: MONAI's, or its twin of variant `instance`."""

import importlib.util
import time
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets import VNet
from torch.nn.functional import binary_cross_entropy_with_logits, conv3d, conv_transpose3d

from benchmarks.layers import Layer, layer_arrays, sample
from benchmarks.machine import (
    describe_process,
    peak_memory_bytes,
    reset_peak_memory,
    usable_cores,
)
from benchmarks.pytorch_network import InstanceVNet

FOREGROUND = 1  # channel of the logits, as in variants `monai` and `instance`
EPSILON = 1e-5  # of the Dice loss, as in src/loss.py
CHOICE_CALLS = 3  # timed calls of each way to compute
DEFAULT = {"channels_last": False, "compile": False, "fused_adam": False}


def dice_loss(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """`DiceLoss` of src/loss.py, of (batch, X, Y, Z) probability and mask."""
    p, g = p.flatten(1), g.flatten(1)
    overlap = 2 * (p * g).sum(1) + EPSILON
    return (1 - overlap / ((p * p).sum(1) + (g * g).sum(1) + EPSILON)).mean()


def loss_of(logits: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
    """The loss `name` of src/loss.py, of (batch, 2, X, Y, Z) logits, in float32."""
    logits = logits.float()
    loss = dice_loss(torch.softmax(logits, 1)[:, FOREGROUND], mask)
    if name == "dice_ce":
        logit = logits[:, FOREGROUND] - logits[:, 1 - FOREGROUND]
        loss = loss + binary_cross_entropy_with_logits(logit, mask)
    return loss


def create_network(network: dict) -> torch.nn.Module:
    """Creates the network of `benchmarks.worker.FULL_WIDTH` or of a preset.

    Raises:
        ValueError: a variant that has no twin.
    """
    if network["variant"] == "instance":
        return InstanceVNet(network["width"], network["dropout"])
    if network["variant"] == "monai" and network["width"] == 16:
        rate = network["dropout"]
        return VNet(out_channels=2, dropout_prob_down=rate, dropout_prob_up=(rate, rate))
    raise ValueError(f"no network in PyTorch for {network}")


def load_weights(net: torch.nn.Module, folder: str) -> None:
    """Loads weights.npz of a folder."""
    with np.load(Path(folder, "weights.npz")) as file:
        net.load_state_dict({name: torch.from_numpy(file[name]) for name in file})


class Implementation:
    """A network on all cores of this process.

    Args:
        network: as `benchmarks.worker.FULL_WIDTH`.
        bfloat16: whether convolutions run in bfloat16 (autocast).
    """

    def __init__(self, network: dict, bfloat16: bool = False) -> None:
        torch.set_num_threads(usable_cores())
        self.network = network
        self.bfloat16 = bfloat16
        self.net = create_network(network)
        self.how = DEFAULT

    def describe(self) -> dict:
        """Versions and threads, and the way of computing."""
        return {
            "torch": torch.__version__,
            "monai": monai.__version__,
            "threads": torch.get_num_threads(),
            "how": self.how,
            **describe_process(),
        }

    def has_openvino(self) -> bool:
        """Whether this environment has OpenVINO."""
        return importlib.util.find_spec("openvino") is not None

    def write_weights(self, folder: str, seed: int) -> None:
        """Draws weights as PyTorch does, and writes them to weights.npz.

        Batch norms get the statistics of `folder`'s volume, as in a training: with the initial 0
        and 1 the probability would be close to one half everywhere, whatever the convolutions.
        """
        torch.manual_seed(seed)
        self.net = create_network(self.network).train()
        self._drop(False)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        with torch.inference_mode():
            self.net(torch.from_numpy(np.load(Path(folder, "volume.npy"))))
        state = {name: value.numpy() for name, value in self.net.state_dict().items()}
        np.savez(Path(folder, "weights.npz"), **state)

    def choose(self, folder: str, training: bool, may_compile: bool) -> dict:
        """Finds the fastest way to compute: memory format, then torch.compile or not.

        Adam is the fused one: it is many times faster than the default.

        Returns:
            "how" for `load`, and "median_s": way -> median time in s, or the reason of a failure.
        """
        medians: dict[str, float | str] = {}

        def median_of(name, **how):
            try:
                self.load(folder, training, {**DEFAULT, "fused_adam": True, **how})
                call = (lambda: self.train_step(True)) if training else self.infer
                call()
                times = [call()["seconds"] for _ in range(CHOICE_CALLS)]
            except Exception as error:  # torch.compile needs a compiler and Python's headers
                medians[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                return float("inf")
            medians[name] = sorted(times)[CHOICE_CALLS // 2]
            return medians[name]

        plain = median_of("plain")
        channels_last = median_of("channels_last", channels_last=True) < plain
        compiled = False
        if may_compile:
            best = "channels_last" if channels_last else "plain"
            name = f"{best}, torch.compile"
            seconds = median_of(name, channels_last=channels_last, compile=True)
            compiled = seconds < medians[best]
        how = {"channels_last": channels_last, "compile": compiled, "fused_adam": True}
        return {"how": how, "median_s": medians}

    def load(self, folder: str, training: bool, how: dict = DEFAULT) -> dict:
        """Loads volume.npy, mask.npy and weights.npz; resets the peak of memory.

        Args:
            folder: with these files.
            training: whether steps or inference follow.
            how: `channels_last`, `compile`, `fused_adam`.
        """
        started = time.perf_counter()
        self.how = how
        self.format = torch.channels_last_3d if how["channels_last"] else torch.contiguous_format
        self.volume = np.load(Path(folder, "volume.npy"))
        self.mask = np.load(Path(folder, "mask.npy"))
        self.net = create_network(self.network)
        load_weights(self.net, folder)
        self.net.train(training)
        self.net.to(memory_format=self.format)
        self.forward = self._compiled() if how["compile"] else self.net
        self.optimizer = self._adam(how["fused_adam"])
        reset_peak_memory()
        parameters = sum(parameter.numel() for parameter in self.net.parameters())
        return {"seconds": time.perf_counter() - started, "parameters": parameters}

    def infer(self) -> dict:
        """Times the way from the volume to its probability, both NumPy arrays."""
        started = time.perf_counter()
        with torch.inference_mode():
            logits = self._logits().float()
            self.probability = torch.softmax(logits, dim=1)[:, FOREGROUND].numpy()
        return {"seconds": time.perf_counter() - started}

    def write_probability(self, path: str) -> None:
        """Writes the probability of the last `infer` as .npy, (batch, X, Y, Z)."""
        np.save(path, self.probability)

    def train_step(self, drop: bool) -> dict:
        """Runs forward, loss, backward and Adam; without dropout unless `drop`."""
        self._drop(drop)
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self._logits(), torch.from_numpy(self.mask), self.network["loss"])
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

    def _logits(self):
        volume = torch.from_numpy(self.volume).to(memory_format=self.format)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.forward(volume)

    def _compiled(self):
        """The network with torch.compile, whose helper processes would take cores from it."""
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1
        return torch.compile(self.net)

    def _adam(self, fused):
        """Adam with L2 on the convolutions' weights only, as `create_optimizer` has it."""
        parameters = list(self.net.parameters())
        decayed = [parameter for parameter in parameters if parameter.dim() > 1]
        others = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.network["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.Adam(groups, lr=self.network["lr"], fused=fused)

    def _drop(self, drop):
        for module in self.net.modules():
            if isinstance(module, torch.nn.Dropout3d):
                module.train(drop)
