"""Rules on names of files: masks, lesions, cases."""

from pathlib import Path

import pytest

from src.promise12.names import case_names, looks_like_mask, outlines_lesions


@pytest.mark.parametrize(
    "path, is_mask, is_lesion",
    [
        ("s/Case00.mhd", False, False),
        ("s/Case00_segmentation.mhd", True, False),
        ("s/Case00_Segmentation.nii.gz", True, False),
        ("s/Case00_seg.nrrd", True, False),
        ("s/Case00_labels.nii", True, False),
        ("s/Case00.seg.nrrd", True, False),
        ("s/Case00_prostate_mask_2.nii", True, False),
        ("s/mask_12.nii", True, False),
        ("s/labelsTr/Case00.nii.gz", True, False),
        ("s/Masks/Case00.nii.gz", True, False),
        ("s/ground-truth/Case00.nii.gz", False, False),
        ("s/ground_truth/Case00.nii.gz", True, False),
        ("s/t2_tumor_reader1.nii.gz", True, True),
        ("s/csPCa_lesion_delineations/human/1_2.nii.gz", False, True),
        ("prostate_cancer/Case00.nii.gz", False, False),
        ("s/Prostate_01.nii.gz", False, False),
        ("s/PCa_1.nii.gz", False, False),
        ("s/tumor/mask/1.nii.gz", True, True),
        ("s/GT_001.nii.gz", False, False),
        ("s/01_prostate.nii.gz", False, False),
        ("s/patient_masked_01.nii", False, False),
    ],
)
def test_names(path, is_mask, is_lesion):
    assert looks_like_mask(Path(path)) == is_mask
    assert outlines_lesions(Path(path)) == is_lesion


def test_case_names():
    assert case_names(Path("Case_01_t2_seg.nii"))[:3] == ["case 01 t2 seg", "case 01 t2", "case 01"]
