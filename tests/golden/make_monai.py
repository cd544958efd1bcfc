"""Writes what MONAI's VNet computes from seeded weights; needs PyTorch and MONAI 1.6.

    python tests/golden/make_monai.py

monai.npz is the network as it comes, monai_prelu_bias.npz one with all that is optional about its
parameters.
"""

import json
import sys
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets import VNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import golden_file  # noqa: E402

from src.acceptance.golden import GOLDEN, seeded  # noqa: E402

FOREGROUND = 1
VERSIONS = {
    "python": sys.version.split()[0],
    "numpy": np.__version__,
    "torch": torch.__version__,
    "monai": monai.__version__,
}


class Keep(torch.nn.Module):
    """Dropout that multiplies by given factors, in evaluation too."""

    def __init__(self, stage, place, channels):
        super().__init__()
        self.dropout_mask = torch.tensor(golden_file.dropout_mask(stage, place, channels))[
            :, :, None, None, None
        ]

    def forward(self, x):
        return x * self.dropout_mask


def seeded_net(**options):
    """VNet with two logits, every array of its state dict drawn from the seed and its name."""
    net = VNet(out_channels=2, **options)
    net.load_state_dict(
        {
            name: torch.tensor(seeded.parameter(name, tuple(array.shape)))
            for name, array in net.state_dict().items()
        }
    )
    return net


def shapes_of(net):
    return {name: tuple(array.shape) for name, array in net.state_dict().items()}


def probability_of(net, volume):
    return torch.softmax(net(volume), dim=1)[:, FOREGROUND]


def dice_loss(p, g, epsilon=1e-5):
    p, g = p.flatten(1), g.flatten(1)
    return (1 - (2 * (p * g).sum(1) + epsilon) / ((p * p).sum(1) + (g * g).sum(1) + epsilon)).mean()


def dropout_probability(net, volume):
    """The evaluated probability with the channels dropped that `golden_file.dropout_mask` says."""
    for stage in ("down_tr128", "down_tr256", "up_tr256", "up_tr128", "up_tr64", "up_tr32"):
        cell = getattr(net, stage)
        if stage.startswith("down"):
            cell.dropout = Keep(stage, "down", cell.down_conv.out_channels)
        elif cell.dropout is not None:
            cell.dropout = Keep(stage, "up", cell.up_conv.in_channels)
        if stage.startswith("up"):
            # The other half of what the stage joins is as wide as the transposed convolution's.
            cell.dropout2 = Keep(stage, "skip", cell.up_conv.out_channels)
    return probability_of(net, volume)


def write_prelu_bias():
    net = seeded_net(act="prelu", bias=True).eval()
    with torch.no_grad():
        probability = probability_of(net, torch.tensor(seeded.volume()[:1, :, :16, :16, :16]))
    np.savez_compressed(
        Path(__file__).with_name("monai_prelu_bias.npz"),
        meta=json.dumps({"versions": VERSIONS, "shapes": shapes_of(net)}),
        probability=probability.numpy(),
    )


def main():
    volume, mask = torch.tensor(seeded.volume()), torch.tensor(seeded.mask())
    probabilities = {}
    net = seeded_net().eval()
    shapes = shapes_of(net)
    with torch.no_grad():
        probabilities["eval"] = probability_of(net, volume).numpy()
        probabilities["dropout"] = dropout_probability(net, volume).numpy()

    net = seeded_net().train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout3d):
            module.p = 0.0
    probability = probability_of(net, volume)
    probabilities["train"] = probability.detach().numpy()
    loss = dice_loss(probability, mask)
    loss.backward()
    golden_file.write(
        GOLDEN / "monai.npz",
        VERSIONS,
        shapes,
        probabilities,
        loss.item(),
        {name: array.grad.numpy() for name, array in net.named_parameters()},
        {name: array.numpy() for name, array in net.named_buffers() if "running" in name},
    )
    write_prelu_bias()


if __name__ == "__main__":
    main()
