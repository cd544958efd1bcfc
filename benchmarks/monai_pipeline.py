"""What predict.py does, by MONAI and PyTorch, for `benchmarks/pipeline.py`.

    PYTHON benchmarks/monai_pipeline.py SETTINGS.json

Load, orient, resample, normalize, pad or crop to the network grid, the network, back to the image's
grid, threshold, largest component, NIfTI: MONAI's own transforms, on all cores. It has neither
`equalize` (the z-score stands in for it) nor tables and pictures.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms
from torch import nn

REPEATS = 10  # of the network alone
FOREGROUND = 1  # channel of the logits


class Unit(nn.Module):
    """A convolution, instance norm and ELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 5, padding=2, bias=False)
        self.bn = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.elu(self.bn(self.conv(x)))


def units(depth: int, channels: int) -> nn.Module:
    """The convolutions of a residual block; a single one has no index in the parameters' names."""
    return Unit(channels) if depth == 1 else nn.Sequential(*(Unit(channels) for _ in range(depth)))


class Down(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.down_conv = nn.Conv3d(channels, 2 * channels, 2, stride=2, bias=False)
        self.bn = nn.InstanceNorm3d(2 * channels, affine=True)
        self.ops = units(depth, 2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down = nn.functional.elu(self.bn(self.down_conv(x)))
        return nn.functional.elu(self.ops(down) + down)


class Up(nn.Module):
    def __init__(self, in_channels: int, channels: int, depth: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, channels // 2, 2, stride=2, bias=False)
        self.bn = nn.InstanceNorm3d(channels // 2, affine=True)
        self.ops = units(depth, channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        joined = torch.cat((nn.functional.elu(self.bn(self.up_conv(x))), skip), 1)
        return nn.functional.elu(self.ops(joined) + joined)


class VNet(nn.Module):
    """The V-Net of variant `instance` of `src/vnet.py`, with its parameter names; the probability.

    Args:
        width: channels of the first level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_tr = nn.ModuleDict(
            {
                "conv": nn.Conv3d(1, width, 5, padding=2, bias=False),
                "bn": nn.InstanceNorm3d(width, affine=True),
            }
        )
        self.down_tr32, self.down_tr64 = Down(width, 1), Down(2 * width, 2)
        self.down_tr128, self.down_tr256 = Down(4 * width, 3), Down(8 * width, 2)
        self.up_tr256, self.up_tr128 = Up(16 * width, 16 * width, 2), Up(16 * width, 8 * width, 2)
        self.up_tr64, self.up_tr32 = Up(8 * width, 4 * width, 1), Up(4 * width, 2 * width, 1)
        self.out_tr = nn.ModuleDict({"conv2": nn.Conv3d(2 * width, 2, 1)})

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        x = nn.functional.elu(self.in_tr["bn"](self.in_tr["conv"](volume)) + volume)
        skips = []
        for stage in (self.down_tr32, self.down_tr64, self.down_tr128, self.down_tr256):
            skips.append(x)
            x = stage(x)
        for stage in (self.up_tr256, self.up_tr128, self.up_tr64, self.up_tr32):
            x = stage(x, skips.pop())
        return torch.softmax(self.out_tr["conv2"](x), 1)[:, FOREGROUND : FOREGROUND + 1]


def load_network(weights_path: str) -> VNet:
    """Returns the network with weights of an .npz file, named as in this project's checkpoints."""
    with np.load(weights_path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file}
    network = VNet(width=len(weights["in_tr.conv.weight"]))
    names = {".bn.gamma": ".bn.weight", ".bn.beta": ".bn.bias"}
    for ours, theirs in names.items():
        weights = {name.replace(ours, theirs): value for name, value in weights.items()}
    network.load_state_dict(weights)
    return network.eval()


def average_probability(network: VNet, volume: torch.Tensor, flip_average: bool) -> torch.Tensor:
    """The foreground's probability of (batch, 1, X, Y, Z), with or without its mirror image."""
    straight = network(volume)
    if not flip_average:
        return straight
    return (straight + network(volume.flip(2)).flip(2)) / 2


def segment(network: VNet, settings: dict[str, Any]) -> None:
    """Segments the images, and writes their masks."""
    to_grid = transforms.Compose(
        [
            transforms.LoadImaged("image"),
            transforms.EnsureChannelFirstd("image"),
            transforms.Orientationd("image", axcodes="LPS"),
            transforms.Spacingd("image", pixdim=settings["spacing_mm"]),
            transforms.NormalizeIntensityd("image", nonzero=True),
            transforms.ResizeWithPadOrCropd("image", spatial_size=settings["size"]),
        ]
    )
    to_mask = transforms.Compose(
        [
            transforms.Invertd("mask", transform=to_grid, orig_keys="image", nearest_interp=False),
            transforms.AsDiscreted("mask", threshold=0.5),
            transforms.KeepLargestConnectedComponentd("mask"),
            transforms.SaveImaged(
                "mask",
                output_dir=settings["output"],
                output_postfix="test",
                separate_folder=False,
                output_dtype=np.uint8,
                print_log=False,
            ),
        ]
    )
    for image in settings["images"]:
        case = to_grid({"image": image})
        batch = case["image"][None]
        case["mask"] = average_probability(network, batch, settings["flip_average"])[0]
        to_mask(case)


def time_network(network: VNet, settings: dict[str, Any]) -> dict[str, Any]:
    """Times the network on volume.npy of a folder, and compares with probability.npy there."""
    folder = Path(settings["folder"])
    volume = torch.from_numpy(np.load(folder / "volume.npy"))[None, None]
    probability = network(volume)[0, 0].numpy()
    difference = np.abs(probability - np.load(folder / "probability.npy")).max()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        average_probability(network, volume, settings["flip_average"])
        seconds.append(time.perf_counter() - start)
    return {"difference": float(difference), "seconds": seconds}


def main() -> None:
    """Does what the settings say."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    network = load_network(settings["weights"])
    with torch.inference_mode():
        if "images" in settings:
            segment(network, settings)
        else:
            print(json.dumps(time_network(network, settings)))


if __name__ == "__main__":
    main()
