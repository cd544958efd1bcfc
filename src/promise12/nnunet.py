"""Exports img/ and gt/ as a raw data set of nnU-Net v2, for comparisons.

Format: documentation/dataset_format.md of nnU-Net.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..images.formats import only_file
from ..images.reading import read_mask, read_volume_or_one_of
from ..images.writing import write_volume
from ..utils.errors import DataError, UsageError
from ..utils.files import temporary_folder
from .checking import cases_of, sets_of

log = logging.getLogger(__name__)

FILE_ENDING = ".nii.gz"
NAME = re.compile(r"Dataset\d{3}_\w+")


def export_nnunet(
    data_path: Path,
    out_path: Path,
    labels: Sequence[int] = (),
    channel: int | None = None,
) -> None:
    """Writes imagesTr, labelsTr, dataset.json, and imagesTs, labelsTs if there are test sets.

    Geometry and voxels are kept; NIfTI's header rounds the geometry of other formats to float32.

    Args:
        data_path: a training set with img/ and gt/; or a folder of sets, whose TestData and
            LiveTestData become imagesTs, as SET_NAME if a name occurs twice.
        out_path: the new folder, named DatasetNNN_NAME.
        labels: mask values that together are the prostate; empty: masks must have only 0 and 1.
        channel: index of the T2 image in 4-D files.

    Raises:
        UsageError: the folder does not have such a name.
        DataError: the folder exists, a training case does not have exactly one image and mask, or a
            file cannot be read or written; nothing is left behind.
    """
    if not NAME.fullmatch(out_path.name):
        raise UsageError(
            f"{out_path}: nnU-Net requires a folder named DatasetNNN_NAME, such as "
            f"{out_path.parent / 'Dataset500_Prostate'}"
        )
    if out_path.exists():
        raise DataError(f"{out_path}: is there already; choose another folder, or move it away")
    training, test = _cases(data_path)
    with temporary_folder(out_path.parent, ".exporting-") as staging:
        folder = staging / out_path.name
        for part, cases in (("Tr", training), ("Ts", test)):
            for name, (image, mask) in tqdm(cases.items(), f"Exporting {part}", disable=None):
                _write(folder, part, name, image, mask, labels, channel)
        metadata = {
            "channel_names": {"0": "T2"},
            "labels": {"background": 0, "prostate": 1},
            "numTraining": len(training),
            "file_ending": FILE_ENDING,
        }
        (folder / "dataset.json").write_text(json.dumps(metadata, indent=4) + "\n")
        folder.rename(out_path)
    log.info(f"{out_path}: {len(training)} training cases, {len(test)} test images")


def _cases(data_path):
    """Training and test cases, `{name: (image, mask or None)}`."""
    training: dict[str, tuple[Path, Path | None]] = {}
    test: dict[str, tuple[Path, Path | None]] = {}
    for folder in sets_of(data_path):
        is_training = folder == data_path or folder.name == "TrainData"
        for case in cases_of(folder):
            name, images, masks = case.name, case.images, case.masks
            if unread := (*case.unread_images, *case.unread_masks):
                raise DataError(f"{folder}: {unread[0]}")
            if not images or (is_training and not masks):
                raise DataError(
                    f"{folder}: {name} has {len(images)} image(s) and {len(masks)} mask(s), "
                    "expected one of each; prepare_data.py --check says what to do"
                )
            found = (only_file(images), only_file(masks) if masks else None)
            if is_training:
                training[name] = found
            else:
                test[name if name not in {**training, **test} else f"{folder.name}_{name}"] = found
    if not training:
        raise DataError(
            f"{data_path}: no training cases; give the folder of img/ and gt/, or of TrainData"
        )
    return training, test


def _write(folder, part, name, image_path, mask_path, labels, channel):
    image = read_volume_or_one_of(image_path, channel)[0]
    write_volume(image, folder / f"images{part}" / f"{name}_0000{FILE_ENDING}", image_path)
    if mask_path is None:
        return
    mask = read_mask(mask_path, image, image_path, labels)
    write_volume(mask, folder / f"labels{part}" / f"{name}{FILE_ENDING}", image_path)
