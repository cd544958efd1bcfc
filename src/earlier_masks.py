"""Whether the mask of an earlier prediction is still valid: hashes of all that it depends on."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from .config import GRID_KEYS, OUTPUT_KEYS
from .images.formats import NIFTI_SUFFIXES, suffix_of
from .images.nifti import copied_geometry
from .images.writing import volume_files
from .predictor import processing_versions
from .utils import output_folder
from .utils.errors import DataError

if TYPE_CHECKING:
    from .images.dicom.segmentation import Source

# Configuration keys that change a mask, given the weights and the image.
MASK_KEYS = ("variant", "width", "precision", *GRID_KEYS, *OUTPUT_KEYS)


def is_valid(folder: Path, earlier: dict, row: dict, names: dict[str, str]) -> bool:
    """Whether an earlier prediction wrote the same results, and they are still there.

    Args:
        folder: of the results.
        earlier: the image's row of the earlier prediction.
        row: of this one, with the hashes.
        names: of this one's files, see `src.result_files.ResultFiles`.

    Raises:
        DataError: an earlier file was edited, or is of another image of the same name.
    """
    output_folder.check_unedited(folder, volume_files(earlier["outputs"].values()))
    is_same_file = Path(earlier["image"]).resolve() == Path(row["image"]).resolve()
    if not is_same_file and earlier["image_sha256"] not in (None, row["image_sha256"]):
        raise DataError(
            f"{folder / earlier['mask']}: of {earlier['image']}; rename one of the images, or "
            "choose another folder"
        )
    return (
        earlier["fingerprint"] == row["fingerprint"]
        and row["study_sha256"] in (None, earlier["study_sha256"])
        and names.items() <= earlier["outputs"].items()
        and all((folder / file).exists() for file in volume_files(names.values()))
    )


def left_over(folder: Path, names: Collection[str]) -> str:
    """Returns what to say of those earlier results of an image that stay though it has no mask."""
    left = sorted(output_folder.list_outputs(folder).intersection(names))
    return f"; {folder / left[0]} is of an earlier prediction" if left else ""


def network_id(metadata: dict) -> str:
    """Returns the hash of the weights and of the settings that change a mask.

    Args:
        metadata: of the masks, see `src.ensemble.origin_of`, with the "configuration".
    """
    settings = [metadata["configuration"].get(key) for key in MASK_KEYS]
    settings += processing_versions().values()
    digest = hashlib.sha256(json.dumps(settings).encode())
    weights = [metadata.get("checkpoint_sha256", ""), *metadata.get("checkpoints", {}).values()]
    digest.update("".join(weights).encode())
    return digest.hexdigest()


def image_hash(image: sitk.Image) -> str:
    """Returns the hash of an image's geometry and voxels."""
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    digest = hashlib.sha256(repr((geometry, image.GetSize())).encode())
    digest.update(sitk.GetArrayViewFromImage(image).data)
    return digest.hexdigest()


def study_hash(dicom: "Source") -> str:
    """Returns the hash of what a DICOM segmentation says about patient, study and images."""
    return hashlib.sha256(repr(dicom.identity()).encode()).hexdigest()


def fingerprint(image_sha256: str, network: str, source: Path) -> str:
    """Returns the hash of all that a mask depends on: image, network and settings.

    Args:
        image_sha256: from `image_hash`.
        network: from `network_id`.
        source: of the image; a mask of a NIfTI file repeats also what `image_hash` leaves out, such
            as a qform beside the sform.
    """
    is_nifti = suffix_of(source) in NIFTI_SUFFIXES and source.is_file()
    header = copied_geometry(source) if is_nifti else ""
    return hashlib.sha256(f"{image_sha256}{network}{header}".encode()).hexdigest()
