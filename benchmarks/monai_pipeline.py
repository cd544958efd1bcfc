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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pytorch_network import FOREGROUND, InstanceVNet

REPEATS = 10  # of the network alone


class Network(InstanceVNet):
    """The V-Net of variant `instance`; returns the probability (batch, 1, X, Y, Z)."""

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.softmax(super().forward(volume), 1)[:, FOREGROUND : FOREGROUND + 1]


def load_network(weights_path: str) -> Network:
    """Returns the network with weights of an .npz file, named as in this project's checkpoints."""
    with np.load(weights_path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file}
    network = Network(len(weights["in_tr.conv.weight"]), dropout=0.0)
    names = {".bn.gamma": ".bn.weight", ".bn.beta": ".bn.bias"}
    for ours, theirs in names.items():
        weights = {name.replace(ours, theirs): value for name, value in weights.items()}
    network.load_state_dict(weights)
    return network.eval()


def average_probability(network: Network, volume: torch.Tensor, flip_average: bool) -> torch.Tensor:
    """The foreground's probability of (batch, 1, X, Y, Z), with or without its mirror image."""
    straight = network(volume)
    if not flip_average:
        return straight
    return (straight + network(volume.flip(2)).flip(2)) / 2


def segment(network: Network, settings: dict[str, Any]) -> None:
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


def time_network(network: Network, settings: dict[str, Any]) -> dict[str, Any]:
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
