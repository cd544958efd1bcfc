"""Sources as peers write them: what each becomes, and what is refused with which words."""

import json
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from src.promise12.checking import check
from src.promise12.layouts import Options
from src.promise12.placing import lay_out
from src.utils.errors import DataError
from tests.helpers import tree
from tests.volumes import make_volume

SHAPE = (4, 5, 6)
IMAGE, GLAND, ZONES, CHANNELS = "image", "gland", "zones", "two channels"


def voxels(kind, name):
    """(z, y, x), or (channel, z, y, x), as a kind of volume has them; images differ by name."""
    if kind in (GLAND, ZONES):
        values = np.zeros(SHAPE, np.uint8)
        values[1:3, 1:4, 2:4] = 1  # 12 voxels
        if kind == ZONES:
            values[1:3, 1:3, 2] = 2  # 4 of them
        return values
    shape = (2, *SHAPE) if kind == CHANNELS else SHAPE
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 900, shape).astype("int16")


def image_with(values):
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing((0.5, 0.5, 4.0, 1.0)[: values.ndim])
    image.SetOrigin((-10.0, 20.0, 30.0, 0.0)[: values.ndim])
    return image


def make_source(folder, files):
    """Files below a folder: path -> kind of volume, or what a JSON file holds."""
    for name, kind in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(kind))
        elif kind is None:
            path.write_bytes(b"no volume")
        else:
            sitk.WriteImage(image_with(voxels(kind, name)), str(path))
    return folder


def laid_out(tmp_path, files, **options):
    """Lays a source out; returns the output folder."""
    source = make_source(tmp_path / "scans", files)
    before = tree(source)
    lay_out([source], tmp_path / "out", Options(**options))
    assert tree(source) == before
    return tmp_path / "out"


def nnunet_json(labels, **channels):
    names = {number.lstrip("c"): name for number, name in channels.items()} or {"0": "T2"}
    return {"channel_names": names, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}


PROSTATE = {"background": 0, "prostate": 1}
PZ_TZ = {"background": 0, "PZ": 1, "TZ": 2}
NNUNET = {
    "imagesTr/p_00_0000.nii.gz": IMAGE,
    "imagesTr/p_01_0000.nii.gz": IMAGE,
    "imagesTs/p_02_0000.nii.gz": IMAGE,
    "labelsTr/p_00.nii.gz": GLAND,
    "labelsTr/p_01.nii.gz": GLAND,
}
DECATHLON = {
    "imagesTr/prostate_00.nii.gz": CHANNELS,
    "imagesTr/._prostate_00.nii.gz": None,
    "imagesTs/prostate_03.nii.gz": CHANNELS,
    "labelsTr/prostate_00.nii.gz": ZONES,
    "labelsTr/._prostate_00.nii.gz": None,
}
DECATHLON_JSON = {
    "tensorImageSize": "4D",
    "modality": {"0": "T2", "1": "ADC"},
    "labels": {"0": "background", "1": "PZ", "2": "TZ"},
    "training": [
        {"image": "./imagesTr/prostate_00.nii.gz", "label": "./labelsTr/prostate_00.nii.gz"}
    ],
    "test": ["./imagesTs/prostate_03.nii.gz"],
}
PICAI = {
    f"images/{study.split('_')[0]}/{study}_{contrast}.mha": IMAGE
    for study in ("10000_1000000", "10001_1000001")
    for contrast in ("t2w", "adc", "hbv", "sag", "cor")
}
WHOLE_GLAND = "picai_labels/anatomical_delineations/whole_gland/AI/Bosma22b"
LESIONS = "picai_labels/csPCa_lesion_delineations/human_expert/resampled"
PICAI_GLANDS = {
    f"{WHOLE_GLAND}/{study}.nii.gz": GLAND
    for study in ("10000_1000000", "10001_1000001", "10002_1000002")
}
PICAI_LESIONS = {f"{LESIONS}/10000_1000000.nii.gz": ZONES}
PICAI_PLACED = {
    f"TrainData/{place}": source
    for study in ("10000_1000000", "10001_1000001")
    for place, source in {
        f"img/{study}.mha": f"images/{study[:5]}/{study}_t2w.mha",
        f"gt/{study}_segmentation.nii.gz": f"{WHOLE_GLAND}/{study}.nii.gz",
    }.items()
}
PROSTATE158 = {
    f"train/{patient}/{name}.nii.gz": kind
    for patient in ("020", "021")
    for name, kind in {
        "t2": IMAGE,
        "adc": IMAGE,
        "dwi": IMAGE,
        "t2_anatomy_reader1": ZONES,
        "t2_tumor_reader1": GLAND,
        "adc_tumor_reader1": GLAND,
    }.items()
}

# name: (files, options, what is laid out, what is printed)
GOOD = {
    "nnU-Net": (
        NNUNET | {"dataset.json": nnunet_json(PROSTATE)},
        {},
        {
            "TrainData/img/p_00.nii.gz": "imagesTr/p_00_0000.nii.gz",
            "TrainData/img/p_01.nii.gz": "imagesTr/p_01_0000.nii.gz",
            "TrainData/gt/p_00_segmentation.nii.gz": "labelsTr/p_00.nii.gz",
            "TrainData/gt/p_01_segmentation.nii.gz": "labelsTr/p_01.nii.gz",
            "TestData/img/p_02.nii.gz": "imagesTs/p_02_0000.nii.gz",
        },
        ["taken for nnU-Net: 3 image(s), 2 mask(s)", "label 1 prostate becomes the mask"],
    ),
    "nnU-Net with masks of test images": (
        {
            "imagesTr/a_0000.nii": IMAGE,
            "imagesTs/a_0000.nii": IMAGE,
            "labelsTr/a.nii": GLAND,
            "labelsTs/a.nii": GLAND,
        },
        {},
        {
            "TrainData/img/a.nii": "imagesTr/a_0000.nii",
            "TrainData/gt/a_segmentation.nii": "labelsTr/a.nii",
            "TestData/img/a.nii": "imagesTs/a_0000.nii",
            "TestData/gt/a_segmentation.nii": "labelsTs/a.nii",
        },
        ["taken for nnU-Net: 2 image(s), 2 mask(s)"],
    ),
    "nnU-Net without dataset.json, in a folder": (
        {f"Dataset100_P/{name}": kind for name, kind in NNUNET.items()},
        {},
        {
            "TrainData/img/p_00.nii.gz": "Dataset100_P/imagesTr/p_00_0000.nii.gz",
            "TrainData/img/p_01.nii.gz": "Dataset100_P/imagesTr/p_01_0000.nii.gz",
            "TrainData/gt/p_00_segmentation.nii.gz": "Dataset100_P/labelsTr/p_00.nii.gz",
            "TrainData/gt/p_01_segmentation.nii.gz": "Dataset100_P/labelsTr/p_01.nii.gz",
            "TestData/img/p_02.nii.gz": "Dataset100_P/imagesTs/p_02_0000.nii.gz",
        },
        ["taken for nnU-Net"],
    ),
    "nnU-Net, T2 is the second channel by its name": (
        {
            "imagesTr/a_0000.nrrd": IMAGE,
            "imagesTr/a_0001.nrrd": IMAGE,
            "labelsTr/a.nrrd": GLAND,
            "dataset.json": nnunet_json(PROSTATE, c0="ADC", c1="T2W"),
        },
        {},
        {
            "TrainData/img/a.nrrd": "imagesTr/a_0001.nrrd",
            "TrainData/gt/a_segmentation.nrrd": "labelsTr/a.nrrd",
        },
        ["channel 1 (T2W) of 0 ADC, 1 T2W", "1 other volume(s) left out: imagesTr/a_0000.nrrd"],
    ),
    "nnU-Net, --channel, no names": (
        {
            "imagesTs/a_0000.mha": IMAGE,
            "imagesTs/a_0001.mha": IMAGE,
        },
        {"channel": 1},
        {"TestData/img/a.mha": "imagesTs/a_0001.mha"},
        ["left out: imagesTs/a_0000.mha"],
    ),
    "nnU-Net version 1's dataset.json": (
        NNUNET
        | {
            "dataset.json": {
                "modality": "MRI",
                "labels": {"0": "background", "1": "prostate"},
                "training": [
                    {"image": "./imagesTr/p_00.nii.gz", "label": "./labelsTr/p_00.nii.gz"}
                ],
            }
        },
        {},
        {
            "TrainData/img/p_00.nii.gz": "imagesTr/p_00_0000.nii.gz",
            "TrainData/img/p_01.nii.gz": "imagesTr/p_01_0000.nii.gz",
            "TrainData/gt/p_00_segmentation.nii.gz": "labelsTr/p_00.nii.gz",
            "TrainData/gt/p_01_segmentation.nii.gz": "labelsTr/p_01.nii.gz",
            "TestData/img/p_02.nii.gz": "imagesTs/p_02_0000.nii.gz",
        },
        ["taken for nnU-Net"],
    ),
    "Decathlon": (
        DECATHLON | {"dataset.json": DECATHLON_JSON},
        {"labels": (1, 2)},
        {
            "TrainData/img/prostate_00.nii.gz": (0, "imagesTr/prostate_00.nii.gz"),
            "TrainData/gt/prostate_00_segmentation.nii.gz": ((1, 2), "labelsTr/prostate_00.nii.gz"),
            "TestData/img/prostate_03.nii.gz": (0, "imagesTs/prostate_03.nii.gz"),
        },
        [
            "taken for Medical Segmentation Decathlon: 2 image(s), 1 mask(s)",
            "channel 0 (T2) of 0 T2, 1 ADC",
            "labels 1,2 of 1 PZ, 2 TZ become the mask",
        ],
    ),
    "Decathlon's layout with numbers like nnU-Net's channels": (
        {"imagesTr/p_0001.nii": IMAGE, "labelsTr/p_0001.nii": GLAND},
        {},
        {
            "TrainData/img/p_0001.nii": "imagesTr/p_0001.nii",
            "TrainData/gt/p_0001_segmentation.nii": "labelsTr/p_0001.nii",
        },
        ["taken for Medical Segmentation Decathlon: 1 image(s), 1 mask(s)"],
    ),
    "Decathlon, one label, the other channel": (
        DECATHLON | {"dataset.json": DECATHLON_JSON},
        {"labels": (2,), "channel": 1},
        {
            "TrainData/img/prostate_00.nii.gz": (1, "imagesTr/prostate_00.nii.gz"),
            "TrainData/gt/prostate_00_segmentation.nii.gz": ((2,), "labelsTr/prostate_00.nii.gz"),
            "TestData/img/prostate_03.nii.gz": (1, "imagesTs/prostate_03.nii.gz"),
        },
        ["labels 2 of 1 PZ, 2 TZ"],
    ),
    "Decathlon with files missing": (
        {
            "imagesTr/prostate_00.nii": IMAGE,
            "labelsTr/prostate_00.nii": GLAND,
            "dataset.json": DECATHLON_JSON,
        },
        {"labels": (1, 2)},
        {
            "TrainData/img/prostate_00.nii": "imagesTr/prostate_00.nii",
            "TrainData/gt/prostate_00_segmentation.nii": "labelsTr/prostate_00.nii",
        },
        ["listed in dataset.json, but missing: ./imagesTr/prostate_00.nii.gz, ./imagesTs"],
    ),
    "PI-CAI": (
        PICAI | PICAI_GLANDS | PICAI_LESIONS,
        {},
        PICAI_PLACED,
        [
            "taken for PI-CAI: 2 image(s), 2 mask(s)",
            "masks without an image here: ",
            "10002_1000002.nii.gz",
            "1 outline(s) of lesions, not of the prostate, left out",
            "8 other volume(s) left out: images/10000/10000_1000000_adc.mha",
        ],
    ),
    "PI-CAI without masks": (
        PICAI,
        {},
        {
            f"TestData/img/{study}.mha": f"images/{study[:5]}/{study}_t2w.mha"
            for study in ("10000_1000000", "10001_1000001")
        },
        ["taken for PI-CAI: 2 image(s), 0 mask(s)"],
    ),
    "PI-CAI, zones": (
        {"images/1/1_2_t2w.mha": IMAGE, "labels/zonal_pz_tz/1_2.nii.gz": ZONES},
        {"labels": (1, 2)},
        {
            "TrainData/img/1_2.mha": "images/1/1_2_t2w.mha",
            "TrainData/gt/1_2_segmentation.nii.gz": ((1, 2), "labels/zonal_pz_tz/1_2.nii.gz"),
        },
        ["masks of the zones, as there are none of the whole gland"],
    ),
    "PI-CAI, whole glands and zones": (
        PICAI
        | PICAI_GLANDS
        | {"picai_labels/anatomical_delineations/zonal_pz_tz/10000_1000000.nii.gz": ZONES},
        {},
        PICAI_PLACED,
        ["taken for PI-CAI: 2 image(s), 2 mask(s)", "9 other volume(s) left out"],
    ),
    "PI-CAI, one of two readers": (
        PICAI | PICAI_GLANDS | {f"{WHOLE_GLAND[:-8]}Guerbet23/10000_1000000.nii.gz": GLAND},
        {"mask_pattern": "**/Bosma22b/{case}.nii.gz"},
        PICAI_PLACED,
        ["taken for PI-CAI, masks by --mask_pattern"],
    ),
    "Prostate158": (
        PROSTATE158,
        {"labels": (1, 2)},
        {
            f"TrainData/{place}": source
            for patient in ("020", "021")
            for place, source in {
                f"img/{patient}.nii.gz": f"train/{patient}/t2.nii.gz",
                f"gt/{patient}_segmentation.nii.gz": (
                    (1, 2),
                    f"train/{patient}/t2_anatomy_reader1.nii.gz",
                ),
            }.items()
        },
        [
            "taken for one folder per patient: 2 image(s), 2 mask(s)",
            "outlines of lesions, not of the prostate, left out: train/020/adc_tumor_reader1",
            "4 other volume(s) left out: train/020/adc.nii.gz",
        ],
    ),
    "one patient, detached voxels": (
        {
            "P1/t2.mhd": IMAGE,
            "P1/prostate.mhd": GLAND,
            "P2/t2.mhd": IMAGE,
            "P2/prostate.mhd": GLAND,
        },
        {},
        {
            f"TrainData/{place}": source
            for patient in ("P1", "P2")
            for place, source in {
                f"img/{patient}.mhd": f"{patient}/t2.mhd",
                f"img/{patient}.raw": f"{patient}/t2.raw",
                f"gt/{patient}_segmentation.mhd": f"{patient}/prostate.mhd",
                f"gt/{patient}_segmentation.raw": f"{patient}/prostate.raw",
            }.items()
        },
        ["taken for one folder per patient: 2 image(s), 2 mask(s)"],
    ),
    "patients' folders with other words": (
        {
            f"ES/{p}/{name}.nrrd": kind
            for p in "12"
            for name, kind in (("t2_img", IMAGE), ("label", GLAND))
        },
        {},
        {
            f"TrainData/{place}": source
            for p in "12"
            for place, source in {
                f"img/{p}.nrrd": f"ES/{p}/t2_img.nrrd",
                f"gt/{p}_segmentation.nrrd": f"ES/{p}/label.nrrd",
            }.items()
        },
        ["taken for one folder per patient"],
    ),
    "patients' folders whose masks begin with the name of a folder": (
        {f"{p}/t2.nii": IMAGE for p in ("P1", "P1_v2", "prostate")}
        | {"P1/prostate_mask.nii": GLAND, "P1_v2/P1_mask.nii": GLAND, "prostate/mask.nii": GLAND},
        {},
        {f"TrainData/img/{p}.nii": f"{p}/t2.nii" for p in ("P1", "P1_v2", "prostate")}
        | {
            "TrainData/gt/P1_segmentation.nii": "P1/prostate_mask.nii",
            "TrainData/gt/P1_v2_segmentation.nii": "P1_v2/P1_mask.nii",
            "TrainData/gt/prostate_segmentation.nii": "prostate/mask.nii",
        },
        ["taken for one folder per patient: 3 image(s), 3 mask(s)"],
    ),
    "patients' folders, masks in a tree of their own": (
        {
            "scans/A/anat/T2.nii": IMAGE,
            "scans/B/anat/T2.nii": IMAGE,
            "masks/A/mask.nii": GLAND,
            "masks/B.nii": GLAND,
        },
        {},
        {
            "TrainData/img/A.nii": "scans/A/anat/T2.nii",
            "TrainData/img/B.nii": "scans/B/anat/T2.nii",
            "TrainData/gt/A_segmentation.nii": "masks/A/mask.nii",
            "TrainData/gt/B_segmentation.nii": "masks/B.nii",
        },
        ["taken for one folder per patient: 2 image(s), 2 mask(s)"],
    ),
    "images and labels in two folders": (
        {
            "images/a.nii": IMAGE,
            "images/b.nii": IMAGE,
            "labels/a.nii": GLAND,
            "labels/b_label.nii": GLAND,
        },
        {},
        {
            "TrainData/img/a.nii": "images/a.nii",
            "TrainData/img/b.nii": "images/b.nii",
            "TrainData/gt/a_segmentation.nii": "labels/a.nii",
            "TrainData/gt/b_segmentation.nii": "labels/b_label.nii",
        },
        ["by their names and folders: 2 image(s), 2 mask(s)", "taken for masks: labels/a.nii"],
    ),
    "masks side by side under other names": (
        {
            "a.nii": IMAGE,
            "a_seg.nii": GLAND,
            "a_t2.nii": IMAGE,
            "b b.nrrd": IMAGE,
            "b b_Segmentation.nrrd": GLAND,
            "c_t2.mha": IMAGE,
            "c_prostate_mask.nii": GLAND,
            "img_07.nii": IMAGE,
            "mask_07.nii": GLAND,
            "e.nrrd": IMAGE,
            "e-label.nrrd": GLAND,
            "f.nrrd": IMAGE,
            "f.seg.nrrd": GLAND,
        },
        {},
        {
            f"TrainData/{place}": source
            for place, source in {
                "img/a.nii": "a.nii",
                "gt/a_segmentation.nii": "a_seg.nii",
                "img/a_t2.nii": "a_t2.nii",
                "img/b b.nrrd": "b b.nrrd",
                "gt/b b_segmentation.nrrd": "b b_Segmentation.nrrd",
                "img/c_t2.mha": "c_t2.mha",
                "gt/c_t2_segmentation.nii": "c_prostate_mask.nii",
                "img/img_07.nii": "img_07.nii",
                "gt/img_07_segmentation.nii": "mask_07.nii",
                "img/e.nrrd": "e.nrrd",
                "gt/e_segmentation.nrrd": "e-label.nrrd",
                "img/f.nrrd": "f.nrrd",
                "gt/f_segmentation.nrrd": "f.seg.nrrd",
            }.items()
        },
        ["7 image(s), 6 mask(s)"],
    ),
    "T2 among other contrasts in one folder": (
        {"a_t2.nii": IMAGE, "a_adc.nii": IMAGE, "a_t2_segmentation.nii": GLAND},
        {},
        {
            "TrainData/img/a_t2.nii": "a_t2.nii",
            "TrainData/gt/a_t2_segmentation.nii": "a_t2_segmentation.nii",
        },
        ["1 other volume(s) left out: a_adc.nii"],
    ),
    "ours with zones and 4-D": (
        {
            "img/a.nii": CHANNELS,
            "gt/a_segmentation.nii": ZONES,
            "img/b.mhd": IMAGE,
            "gt/b_segmentation.mhd": GLAND,
        },
        {"labels": (1, 2), "channel": 1},
        {
            "TrainData/img/a.nii": (1, "img/a.nii"),
            "TrainData/gt/a_segmentation.nii": ((1, 2), "gt/a_segmentation.nii"),
            "TrainData/img/b.mhd": "img/b.mhd",
            "TrainData/img/b.raw": "img/b.raw",
            "TrainData/gt/b_segmentation.mhd": "gt/b_segmentation.mhd",
            "TrainData/gt/b_segmentation.raw": "gt/b_segmentation.raw",
        },
        ["taken for NAME and NAME_segmentation: 2 image(s), 2 mask(s)"],
    ),
    "patterns": (
        {
            "sub-01/anat/x_T2w.nii": IMAGE,
            "sub-02/anat/y_T2w.nii": IMAGE,
            "derivatives/deep/sub-01/outline_1.nii": ZONES,
            "derivatives/deep/sub-02/outline_9.nii": ZONES,
        },
        {
            "image_pattern": "{case}/anat/*_T2w.nii",
            "mask_pattern": "derivatives/**/{case}/outline_?.nii",
            "labels": (1, 2),
        },
        {
            "TrainData/img/sub-01.nii": "sub-01/anat/x_T2w.nii",
            "TrainData/img/sub-02.nii": "sub-02/anat/y_T2w.nii",
            "TrainData/gt/sub-01_segmentation.nii": (
                (1, 2),
                "derivatives/deep/sub-01/outline_1.nii",
            ),
            "TrainData/gt/sub-02_segmentation.nii": (
                (1, 2),
                "derivatives/deep/sub-02/outline_9.nii",
            ),
        },
        ["taken for images by --image_pattern, masks by --mask_pattern: 2 image(s), 2 mask(s)"],
    ),
    "a pattern for masks whose names tell nothing": (
        {"a.nii": IMAGE, "b.nii": IMAGE, "a_outline.nii": GLAND, "b_outline.nii": GLAND},
        {"mask_pattern": "{case}_outline.nii"},
        {
            "TrainData/img/a.nii": "a.nii",
            "TrainData/img/b.nii": "b.nii",
            "TrainData/gt/a_segmentation.nii": "a_outline.nii",
            "TrainData/gt/b_segmentation.nii": "b_outline.nii",
        },
        ["taken for NAME and NAME_segmentation, masks by --mask_pattern: 2 image(s), 2 mask(s)"],
    ),
    "one of two readers, one folder per patient": (
        PROSTATE158 | {"train/020/t2_anatomy_reader2.nii.gz": ZONES},
        {"labels": (1, 2), "mask_pattern": "train/{case}/t2_anatomy_reader1.nii.gz"},
        {
            f"TrainData/{place}": source
            for patient in ("020", "021")
            for place, source in {
                f"img/{patient}.nii.gz": f"train/{patient}/t2.nii.gz",
                f"gt/{patient}_segmentation.nii.gz": (
                    (1, 2),
                    f"train/{patient}/t2_anatomy_reader1.nii.gz",
                ),
            }.items()
        },
        ["taken for one folder per patient, masks by --mask_pattern: 2 image(s), 2 mask(s)"],
    ),
    "names that differ in their case only": (
        {"a.nii": IMAGE, "A.nii": IMAGE, "a_seg.nii": GLAND, "mask_A.nii": GLAND},
        {},
        {
            "TrainData/img/a.nii": "a.nii",
            "TrainData/img/A.nii": "A.nii",
            "TrainData/gt/a_segmentation.nii": "a_seg.nii",
            "TrainData/gt/A_segmentation.nii": "mask_A.nii",
        },
        ["2 image(s), 2 mask(s)"],
    ),
    "a set by the name of a folder": (
        {"test_retest/a.nii": IMAGE, "test_retest/a_mask.nii": GLAND},
        {},
        {
            "TestData/img/a.nii": "test_retest/a.nii",
            "TestData/gt/a_segmentation.nii": "test_retest/a_mask.nii",
        },
        ["  TestData by the name of the folder test_retest\n"],
    ),
    "masks called as in BIDS": (
        {"sub-01/anat/sub-01_T2w.nii": IMAGE, "derivatives/sub-01/sub-01_T2w_dseg.nii": GLAND},
        {},
        {
            "TrainData/img/sub-01_T2w.nii": "sub-01/anat/sub-01_T2w.nii",
            "TrainData/gt/sub-01_T2w_segmentation.nii": "derivatives/sub-01/sub-01_T2w_dseg.nii",
        },
        ["1 image(s), 1 mask(s)"],
    ),
    "cases called after the disease": (
        {"PCa_1.nii": IMAGE, "PCa_1_seg.nii": GLAND},
        {},
        {
            "TrainData/img/PCa_1.nii": "PCa_1.nii",
            "TrainData/gt/PCa_1_segmentation.nii": "PCa_1_seg.nii",
        },
        ["1 image(s), 1 mask(s)"],
    ),
    "4-D in other formats": (
        {"a.mha": CHANNELS, "b.nii": CHANNELS, "c.mhd": CHANNELS},
        {"channel": 1},
        {
            "TestData/img/a.mha": (1, "a.mha"),
            "TestData/img/b.nii": (1, "b.nii"),
            "TestData/img/c.mha": (1, "c.mhd"),
        },
        ["3 image(s), 0 mask(s)"],
    ),
    "a pattern for images alone": (
        {"a/t2.nii": IMAGE, "a/t2_tumor.nii": GLAND},
        {"image_pattern": "{case}/t2.nii"},
        {"TestData/img/a.nii": "a/t2.nii"},
        ["1 other volume(s) left out: a/t2_tumor.nii"],
    ),
}


# name: the cases of which the check says that they have no mask
PROBLEMS = {"masks side by side under other names": ["TrainData/a_t2"]}


@pytest.mark.parametrize("name", GOOD)
def test_what_becomes_of(tmp_path, capsys, name):
    files, options, expected, lines = GOOD[name]
    out = laid_out(tmp_path, files, **options)
    printed = capsys.readouterr().out
    for line in lines:
        assert line in printed
    assert set(tree(out)) == set(expected)
    for target, origin in expected.items():
        if isinstance(origin, str):
            content = (tmp_path / "scans" / origin).read_bytes()
            if target.endswith(".mhd"):
                content = content.replace(
                    f"{Path(origin).stem}.raw".encode(), f"{Path(target).stem}.raw".encode()
                )
            assert (out / target).read_bytes() == content
        else:
            check_converted(out / target, tmp_path / "scans" / origin[1], origin[0])
    problems = check(out).set_index("case")["problems"]
    assert problems[problems != ""].index.tolist() == PROBLEMS.get(name, [])


def check_converted(path, origin, what):
    """A channel of a 4-D image, or labels merged to 1, where and as large as before."""
    before, after = (sitk.ReadImage(str(p)) for p in (origin, path))
    values = sitk.GetArrayFromImage(before)
    expected = values[what] if isinstance(what, int) else np.isin(values, what)
    assert after.GetSize() == before.GetSize()[:3]
    assert after.GetSpacing() == before.GetSpacing()[:3]
    assert after.GetOrigin() == before.GetOrigin()[:3]
    assert after.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert np.array_equal(sitk.GetArrayFromImage(after), expected)


def test_suffixes_in_capitals(tmp_path):
    """SimpleITK writes no .MHA."""
    source = make_source(tmp_path / "scans", {"a.mha": CHANNELS, "a_mask.mha": ZONES})
    kept = shutil.copytree(source, tmp_path / "kept")
    for path in source.iterdir():
        path.rename(path.with_suffix(".MHA"))
    lay_out([source], tmp_path, Options(channel=1, labels=(1, 2)))
    check_converted(tmp_path / "TrainData/img/a.mha", kept / "a.mha", 1)
    mask = tmp_path / "TrainData/gt/a_segmentation.mha"
    check_converted(mask, kept / "a_mask.mha", (1, 2))


# name: (files, options, what is said)
BAD = {
    "nnU-Net, zones without --labels": (
        NNUNET | {"dataset.json": nnunet_json(PZ_TZ)},
        {},
        r"dataset.json: labels 1 PZ, 2 TZ; say which.*--labels 1,2",
    ),
    "nnU-Net, regions without --labels": (
        NNUNET | {"dataset.json": nnunet_json({"background": 0, "whole": [1, 2], "PZ": 2})},
        {},
        r"labels 1 whole, 2 whole or PZ; say which.*--labels 1,2",
    ),
    "nnU-Net, lesions": (
        NNUNET | {"dataset.json": nnunet_json({"background": 0, "csPCa lesion": 1})},
        {},
        r"labels 1 csPCa lesion; say which",
    ),
    "nnU-Net, one zone only": (
        NNUNET | {"dataset.json": nnunet_json({"background": 0, "Prostate PZ": 1})},
        {},
        r"labels 1 Prostate PZ; say which",
    ),
    "nnU-Net, the prostate is not label 1": (
        NNUNET | {"dataset.json": nnunet_json({"background": 0, "prostate": 2})},
        {},
        r"labels 2 prostate; say which .* --labels 2",
    ),
    "nnU-Net, another organ": (
        NNUNET | {"dataset.json": nnunet_json({"background": 0, "bladder": 1})},
        {},
        r"labels 1 bladder; say which .* --labels 1",
    ),
    "nnU-Net, a label that is not there": (
        NNUNET | {"dataset.json": nnunet_json(PZ_TZ)},
        {"labels": (1, 3)},
        r"no label 3, only 1 PZ, 2 TZ; give some of these to --labels",
    ),
    "nnU-Net, labels in the masks that nobody told of": (
        NNUNET | {"labelsTr/p_01.nii.gz": ZONES},
        {},
        r"labelsTr/p_01.nii.gz: labels 0, 1, 2.*--labels 1,2",
    ),
    "nnU-Net, two channels and no names": (
        {"imagesTr/a_0000.nii": IMAGE, "imagesTr/a_0001.nii": IMAGE, "labelsTr/a.nii": GLAND},
        {},
        r"channels 0, 1, not exactly one of them T2.*--channel 0",
    ),
    "nnU-Net, channels that do not begin with 0": (
        {"imagesTr/a_0001.nii": IMAGE, "imagesTr/a_0002.nii": IMAGE, "labelsTr/a.nii": GLAND},
        {},
        r"channels 1, 2, not exactly one of them T2.*--channel 1",
    ),
    "nnU-Net, only ADC": (
        NNUNET | {"dataset.json": nnunet_json(PROSTATE, c0="ADC")},
        {},
        r"channels 0 ADC, not exactly one of them T2",
    ),
    "nnU-Net, no such channel": (
        NNUNET | {"dataset.json": nnunet_json(PROSTATE)},
        {"channel": 4},
        r"no channel 4, only 0 T2; give one of these to --channel",
    ),
    "nnU-Net, a channel missing in one case": (
        {"imagesTr/a_0000.nii": IMAGE, "imagesTr/a_0001.nii": IMAGE, "imagesTr/b_0000.nii": IMAGE},
        {"channel": 1},
        r"b has no channel 1; add b_0001 or move the case away",
    ),
    "nnU-Net, no number": (
        NNUNET | {"imagesTr/p_03.nii.gz": IMAGE, "dataset.json": nnunet_json(PROSTATE)},
        {},
        r"imagesTr/p_03.nii.gz: no channel number in its name; rename it, such as p_03_0000",
    ),
    "nnU-Net, mask without an image": (
        NNUNET | {"labelsTr/p_09.nii.gz": GLAND},
        {},
        r"labelsTr/p_09.nii.gz: mask without an image",
    ),
    "nnU-Net, two formats": (
        NNUNET | {"imagesTr/p_00_0000.nrrd": IMAGE},
        {},
        r"p_00 has several images: imagesTr/p_00_0000.nii.gz, imagesTr/p_00_0000.nrrd",
    ),
    "nnU-Net, the image is a mask": (
        NNUNET | {"imagesTr/p_00_0000.nii.gz": ZONES},
        {},
        r"p_00_0000.nii.gz: only the values 0, 1, 2: looks like a label map",
    ),
    "two data sets": (
        {f"{d}/imagesTr/a_0000.nii": IMAGE for d in ("Dataset001_A", "Dataset002_B")},
        {},
        r"several data sets: scans/Dataset001_A, scans/Dataset002_B; give one",
    ),
    "labelsTr alone": (
        {"labelsTr/a.nii": GLAND},
        {},
        r"labelsTr/a.nii: a mask by its folder, and no image for it",
    ),
    "Decathlon without --labels": (
        DECATHLON | {"dataset.json": DECATHLON_JSON},
        {},
        r"labels 1 PZ, 2 TZ; say which.*--labels 1,2",
    ),
    "Decathlon without dataset.json": (
        DECATHLON,
        {"labels": (1, 2)},
        r"prostate_03.nii.gz: .*2 volumes.*--channel",
    ),
    "4-D, no such channel": (
        DECATHLON,
        {"labels": (1, 2), "channel": 2},
        r"prostate_03.nii.gz: .*channel 2",
    ),
    "PI-CAI, lesions only": (
        PICAI | PICAI_LESIONS,
        {},
        r"human_expert/resampled/10000_1000000.nii.gz: outlines of lesions.*--mask_pattern",
    ),
    "PI-CAI, two readers": (
        PICAI | PICAI_GLANDS | {f"{WHOLE_GLAND[:-8]}Guerbet23/10000_1000000.nii.gz": GLAND},
        {},
        r"10000_1000000 has several masks: .*; say which, such as --mask_pattern "
        r"'.*Bosma22b/\{case\}.nii.gz' or '.*Guerbet23/\{case\}.nii.gz'",
    ),
    "PI-CAI without T2": (
        {"images/1/1_2_adc.mha": IMAGE},
        {},
        r"PI-CAI's names, but none ends with _t2w; add .* --image_pattern",
    ),
    "Prostate158, two readers": (
        PROSTATE158 | {"train/020/t2_anatomy_reader2.nii.gz": ZONES},
        {"labels": (1, 2)},
        r"020 has several masks: train/020/t2_anatomy_reader1.nii.gz, .*reader2.nii.gz; say which, "
        r"such as --mask_pattern 'train/\{case\}/t2_anatomy_reader1.nii.gz'",
    ),
    "Prostate158 without --labels": (PROSTATE158, {}, r"labels 0, 1, 2.*--labels 1,2"),
    "Prostate158, tumours only": (
        {name: kind for name, kind in PROSTATE158.items() if "anatomy" not in name},
        {},
        r"train/020/adc_tumor_reader1.nii.gz, .*outlines of lesions by their names",
    ),
    "patients with two T2 images": (
        {"A/t2_tse.nii": IMAGE, "A/t2_space.nii": IMAGE, "B/t2_tse.nii": IMAGE},
        {},
        r"A holds t2_space.nii, t2_tse.nii, not exactly one T2 image.*--image_pattern '\{case\}/t2",
    ),
    "patients without T2": (
        {"A/adc.nii": IMAGE, "B/adc.nii": IMAGE},
        {},
        r"A holds adc.nii, not exactly one T2 image",
    ),
    "a patient's mask without an image": (
        {"A/t2.nii": IMAGE, "B/mask.nii": GLAND},
        {},
        r"B/mask.nii: mask without an image",
    ),
    "folder of masks": ({"a_seg.nii": GLAND}, {}, r"a_seg.nii: a mask by its name, and no image"),
    "mask of another case": (
        {"case_1.nii": IMAGE, "case_1_2_seg.nii": GLAND},
        {},
        r"case_1_2_seg.nii: a mask by its name, and no image",
    ),
    "mask of another visit": (
        {"P1.nii": IMAGE, "P1_v2_mask.nii": GLAND},
        {},
        r"P1_v2_mask.nii: a mask by its name, and no image",
    ),
    "names that differ in their case only": (
        {"Ab.nii": IMAGE, "aB.nii": IMAGE, "AB_seg.nii": GLAND},
        {},
        r"AB_seg.nii: a mask by its name, and several images for it \(Ab, aB\); give",
    ),
    "patients of several visits": (
        {f"P{p}/v{v}/t2.nii": IMAGE for p in (1, 2) for v in (1, 2)},
        {},
        r"P1/v1, P2/v1: folders of one name, .*; rename .*sub-P1_ses-v1,.*/\{case\}/v1/FILE",
    ),
    "a mask named as another patient's": (
        {"1/t2.nii": IMAGE, "2/t2.nii": IMAGE, "1/2_mask.nii": GLAND},
        {},
        r"scans/1/2_mask.nii: in the folder of 1, named as of 2; .*--mask_pattern",
    ),
    "two masks by name": (
        {"a.nii": IMAGE, "a_seg.nii": GLAND, "a_segmentation.nii": GLAND},
        {},
        r"a has several masks: a_seg.nii, a_segmentation.nii; .* '\{case\}_seg.nii' or",
    ),
    "a label map under the name of an image": (
        {"a.nii": IMAGE, "a_outline.nii": GLAND},
        {},
        r"a_outline.nii: only the values 0, 1: looks like a label map.*--mask_pattern",
    ),
    "pattern that finds nothing": (
        {"a.nii": IMAGE},
        {"image_pattern": "x/{case}.nii"},
        r"--image_pattern x/\{case\}.nii matches none of 1 volumes, such as a.nii; give a pattern",
    ),
    "pattern that finds a case twice": (
        {"x/a.nii": IMAGE, "y/a.nii": IMAGE},
        {"image_pattern": "*/{case}.nii"},
        r"a has several images: x/a.nii, y/a.nii; .* 'x/\{case\}.nii' or 'y/\{case\}.nii'",
    ),
    "pattern of masks for other cases": (
        {"a.nii": IMAGE, "m/b.nii": GLAND},
        {"image_pattern": "{case}.nii", "mask_pattern": "m/{case}.nii"},
        r"m/b.nii: mask without an image",
    ),
    "zones by a pattern, without --labels": (
        {"a.nii": IMAGE, "m/a.nii": ZONES},
        {"mask_pattern": "m/{case}.nii"},
        r"m/a.nii: labels 0, 1, 2.*--labels 1,2",
    ),
    "labels that the masks have not": (
        {"a.nii": IMAGE, "m/a.nii": ZONES},
        {"image_pattern": "{case}.nii", "mask_pattern": "m/{case}.nii", "labels": (7,)},
        r"m/a.nii: labels 0, 1, 2, none of them among --labels 7",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(tmp_path, name):
    files, options, message = BAD[name]
    with pytest.raises(DataError, match=message) as refused:
        laid_out(tmp_path, files, **options)
    assert len(str(refused.value).splitlines()) == 1
    assert re.search("; |, expected |, or say ", str(refused.value))  # what to do
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "", "\xff"])
def test_dataset_json_that_is_none(tmp_path, content):
    source = make_source(tmp_path / "scans", NNUNET)
    (source / "dataset.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        DataError, match="scans/dataset.json is not a JSON file .*; get it again, or"
    ):
        lay_out([source], tmp_path / "out")


def test_zip_of_a_peers_layout(tmp_path):
    source = make_source(tmp_path / "Task05_Prostate", DECATHLON | {"dataset.json": DECATHLON_JSON})
    archive = Path(shutil.make_archive(str(source), "zip", tmp_path, source.name))
    options = Options(labels=(1, 2))
    lay_out([source], tmp_path / "from_folder", options)
    lay_out([archive], tmp_path / "from_zip", options)
    assert tree(tmp_path / "from_zip") == tree(tmp_path / "from_folder")
    assert len(tree(tmp_path / "from_zip")) == 3


def test_faults_in_a_zip_are_named_by_the_zip(tmp_path):
    source = make_source(tmp_path / "scans", NNUNET | {"labelsTr/p_00.nii.gz": ZONES})
    archive = Path(shutil.make_archive(str(source), "zip", tmp_path, source.name))
    with pytest.raises(DataError) as refused:
        lay_out([archive], tmp_path / "out")
    assert str(refused.value).startswith(f"{archive}: scans/labelsTr/p_00.nii.gz: labels 0, 1, 2")


def test_second_run_keeps_what_was_converted(tmp_path, capsys):
    out = laid_out(tmp_path, DECATHLON | {"dataset.json": DECATHLON_JSON}, labels=(1, 2))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    lay_out([tmp_path / "scans"], out, Options(labels=(1, 2)))
    assert "TrainData: 0 files written, 2 there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == before


def test_other_labels_never_replace_a_mask(tmp_path):
    out = laid_out(tmp_path, DECATHLON | {"dataset.json": DECATHLON_JSON}, labels=(1, 2))
    before = tree(out)
    with pytest.raises(DataError, match="prostate_00_segmentation.nii.gz: is there already and di"):
        lay_out([tmp_path / "scans"], out, Options(labels=(2,)))
    assert tree(out) == before


def test_moved_geometry_is_other_content(tmp_path):
    out = laid_out(tmp_path, DECATHLON | {"dataset.json": DECATHLON_JSON}, labels=(1, 2))
    path = out / "TrainData/img/prostate_00.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetSpacing((0.5, 0.5, 4.5))
    sitk.WriteImage(image, str(path))
    with pytest.raises(DataError, match="img/prostate_00.nii.gz: is there already and differs"):
        lay_out([tmp_path / "scans"], out, Options(labels=(1, 2)))


def test_output_within_the_source_is_no_source(tmp_path):
    source = make_source(tmp_path / "scans", {"a.nii": IMAGE, "a_segmentation.nii": GLAND})
    for _ in range(2):
        lay_out([source], source / "out")
    assert set(tree(source / "out")) == {
        "TrainData/img/a.nii",
        "TrainData/gt/a_segmentation.nii",
    }
    for path in source.glob("*.nii"):
        path.unlink()
    with pytest.raises(DataError, match="scans: holds no volume .*; give the folder or zip"):
        lay_out([source], source / "out")


def test_name_that_is_no_utf8(tmp_path):
    """Such a file is named by the check; ITK would end the process."""
    source = make_source(tmp_path / "scans", {"a.nii": IMAGE, "a_seg.nii": GLAND})
    for name in ("", "_seg"):
        (source / f"a{name}.nii").rename(source / os.fsdecode(b"Prost\xe4t%s.nii" % name.encode()))
    lay_out([source], tmp_path / "out")
    frame = check(tmp_path / "out")
    assert len(frame) == 1
    assert r"Prost\xe4t.nii: the name of this file" in frame["problems"][0]
    for options in (Options(labels=(1, 2)), Options(channel=0)):
        lay_out([source], tmp_path / "out", options)


def test_image_without_a_mask_is_named(tmp_path, capsys):
    files = {name: kind for name, kind in NNUNET.items() if name != "labelsTr/p_01.nii.gz"}
    out = laid_out(tmp_path, files)
    assert "images without a mask: p_01" in capsys.readouterr().out
    problems = check(out).set_index("case")["problems"]
    assert problems[problems != ""].index.tolist() == ["TrainData/p_01"]
    assert "image without a mask" in problems["TrainData/p_01"]


def test_label_map_in_img_is_found_by_the_check(tmp_path):
    make_source(tmp_path, {"img/a.nii": ZONES, "gt/a_segmentation.nii": GLAND})
    assert "looks like a label map" in check(tmp_path)["problems"][0]


def test_check_with_labels_and_channel(tmp_path):
    make_source(tmp_path, {"img/a.nii.gz": CHANNELS, "gt/a_segmentation.nii": ZONES})
    assert "--channel" in check(tmp_path)["problems"][0]
    assert "--labels 1,2" in check(tmp_path, channel=0)["problems"][0]
    frame = check(tmp_path, labels=(1, 2), channel=0)
    assert frame["problems"].tolist() == [""]
    assert frame["size"].tolist() == ["6x5x4"]
    assert frame["prostate_ml"].tolist() == pytest.approx([12 * 0.5 * 0.5 * 4 / 1000])
    assert check(tmp_path, (2,), 1)["prostate_ml"].tolist() == pytest.approx([0.004])


def test_a_volume_alone_becomes_a_test_image(tmp_path):
    make_volume(tmp_path / "scans/x.nrrd")
    lay_out([tmp_path / "scans"], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"TestData/img/x.nrrd"}
