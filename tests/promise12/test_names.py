"""Rules on names of files: masks, lesions, cases."""

from pathlib import Path

import pytest

from src.promise12.names import case_names, looks_like_mask, outlines_lesions, patient_of, set_named


@pytest.mark.parametrize(
    "path, is_mask, is_lesion",
    [
        ("s/Case00.mhd", False, False),
        ("s/Case00_segmentation.mhd", True, False),
        ("s/Case00_Segmentation.nii.gz", True, False),
        ("s/Case00_seg.nrrd", True, False),
        ("s/Case00_labels.nii", True, False),
        ("s/Case00.seg.nrrd", True, False),
        ("s/sub-01_T2w_dseg.nii.gz", True, False),
        ("s/Case00_mask_v2.nii", True, False),
        ("s/Segmentation.seg.nrrd", True, False),  # 3D Slicer
        ("s/Case00 Mask.nii.gz", True, False),
        ("s/annotations/Case00.nii.gz", True, False),
        ("s/Case00.segment.nrrd", False, False),
        ("s/masked.nii", False, False),
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


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (
            "TrainData TrainingData_Part2 training_data train trainset training-set TRAIN",
            "TrainData",
        ),
        (
            "prostate158_train imagesTr_train train_val TrainImages MyTrainSet train2 2-train "
            "traincases trainimages",
            "TrainData",
        ),
        (
            "TestData test_data test testset Test-Set testing TestingData TestImages 12test "
            "testcases testimages test_scans",
            "TestData",
        ),
        ("prostate158_test promise12_test.data TESTdata test_datasets", "TestData"),
        ("LiveTestData livechallenge_test_data live_test_data livetest LIVE live", "LiveTestData"),
        ("Liverpool liverpool_prostate liver_mr delivery Testicular testosterone", None),
        ("trainees trained latest contest attest untrained trainer", None),
        ("imagesTr imagesTs labelsTr img gt Task05_Prostate Dataset500_Prostate", None),
    ],
)
def test_sets_are_named_by_whole_words(folders, expected):
    assert {name: set_named(name) for name in folders.split()} == dict.fromkeys(
        folders.split(), expected
    )


def test_case_names():
    assert case_names(Path("Case_01_t2_seg.nii"))[:3] == ["case 01 t2 seg", "case 01 t2", "case 01"]
    assert case_names(Path("P1_mask_v2.nii"))[-1] == "p1"
    assert case_names(Path("P1_v2_mask.nii"))[-1] == "p1 v2"  # another examination than P1


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("10005_1000005", "10005"),
        ("10005_1000005_t2w", "10005"),
        ("sub-07_ses-2", "sub-07"),
        ("sub-07_run-1_T2w", "sub-07"),
        ("sub-07", "sub-07"),
        ("Case03", "Case03"),
        ("prostate_03", "prostate_03"),
        ("10005_1000005_b", "10005_1000005_b"),
        ("2021_001", "2021_001"),
        ("20210304_101530", "20210304_101530"),
        ("ProstateX-0001", "ProstateX-0001"),
    ],
)
def test_the_patient_of_a_case(case, patient):
    assert patient_of(case) == patient
