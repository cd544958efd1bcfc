"""The augmentation of this project, of MONAI or of TorchIO, for `benchmarks.worker`.

The chains are as equal as the libraries allow: flip, affine and elastic deformation in as few
resamplings as each library has, histogram matching, gamma, bias field, low resolution, blur and
noise, all with probability 1. The other libraries resample masks by nearest neighbours, which costs
less.
"""

import time
from pathlib import Path

import numpy as np

OURS_ONLY = "augment_transplant"  # which the other libraries do not have
TURN_DEGREES, SHIFT_MM, SCALE = 10, 8, (0.7, 1.4)  # as in src/augment.py


class Implementation:
    """One library on one core.

    Args:
        library: "ours", "monai" or "torchio".
    """

    def __init__(self, library: str) -> None:
        self.library = library

    def load(self, folder: str) -> str:
        """Loads volumes.npy and masks.npy, both (cases, X, Y, Z); returns the library's version."""
        volumes, masks = (np.load(Path(folder, f"{name}.npy")) for name in ("volumes", "masks"))
        self.augment, version = {"ours": _ours, "monai": _monai, "torchio": _torchio}[self.library](
            volumes, masks
        )
        return version

    def sample(self, number: int) -> dict:
        """Augments one image and mask; returns core seconds, without waiting for a core."""
        started = time.process_time()
        image, mask = self.augment(number)
        seconds = time.process_time() - started
        return {"seconds": seconds, "shapes": [list(image.shape), list(mask.shape)]}


def _ours(volumes, masks):
    from src.augment import augment_case
    from src.config import AUGMENT_KEYS, override_config, vnet_cfg
    from src.data_manager import TrainingVolume

    config = override_config(vnet_cfg, [f"{key}=1" for key in AUGMENT_KEYS if key != OURS_ONLY])
    cases = [TrainingVolume(*case, "axial") for case in zip(volumes, masks, strict=True)]
    return lambda number: augment_case(cases, 0, number, config), "src/augment.py"


def _monai(volumes, masks):
    import monai
    import torch
    from monai import transforms

    torch.set_num_threads(1)
    image, both = {"keys": "image", "prob": 1}, {"keys": ("image", "mask"), "prob": 1}
    chain = transforms.Compose(
        [
            transforms.RandFlipd(**both, spatial_axis=0),
            transforms.Rand3DElasticd(
                **both,
                sigma_range=(5, 7),
                magnitude_range=(50, 150),
                rotate_range=(np.radians(TURN_DEGREES),) * 3,
                translate_range=(SHIFT_MM, SHIFT_MM, SHIFT_MM / 1.5),  # voxels of 1 x 1 x 1.5 mm
                scale_range=((SCALE[0] - 1, SCALE[1] - 1),) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            transforms.RandHistogramShiftd(**image),
            transforms.RandAdjustContrastd(**image, gamma=(0.7, 1.5)),
            transforms.RandBiasFieldd(**image),
            transforms.RandSimulateLowResolutiond(**image, zoom_range=(1 / 3, 1 / 1.5)),
            transforms.RandGaussianSmoothd(**image),
            transforms.RandGaussianNoised(**image),
        ]
    ).set_random_state(0)
    case = {"image": torch.from_numpy(volumes[:1]), "mask": torch.from_numpy(masks[:1])}

    def augment(_):
        sample = chain(case)
        return sample["image"][0], sample["mask"][0]

    return augment, f"MONAI {monai.__version__}, PyTorch {torch.__version__}"


def _torchio(volumes, masks):
    import torch
    import torchio

    torch.set_num_threads(1)
    torch.manual_seed(0)
    percentiles = (1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99)  # TorchIO's landmarks
    other = np.percentile(volumes[1][volumes[1] > 0], percentiles)
    chain = torchio.Compose(
        [
            torchio.RandomFlip(0, flip_probability=1),
            torchio.RandomAffineElasticDeformation(
                affine_kwargs={"scales": SCALE, "degrees": TURN_DEGREES, "translation": SHIFT_MM}
            ),
            torchio.HistogramStandardization({"image": other}),
            torchio.RandomGamma(),
            torchio.RandomBiasField(),
            torchio.RandomAnisotropy(downsampling=(1.5, 3)),
            torchio.RandomBlur((0.5, 1.5)),
            torchio.RandomNoise(),
        ]
    )
    affine = np.diag((1, 1, 1.5, 1))
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=torch.from_numpy(volumes[:1]), affine=affine),
        mask=torchio.LabelMap(tensor=torch.from_numpy(masks[:1]).to(torch.uint8), affine=affine),
    )

    def augment(_):
        sample = chain(subject)
        return sample["image"].data[0], sample["mask"].data[0]

    return augment, f"TorchIO {torchio.__version__}, PyTorch {torch.__version__}"
