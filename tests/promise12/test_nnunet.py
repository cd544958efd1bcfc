"""The export: nnU-Net's files with our voxels and geometry, and what is refused."""

import gzip
import json
import shutil
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from src.promise12 import nnunet as module
from src.promise12.checking import check
from src.promise12.nnunet import export_nnunet
from src.promise12.placing import lay_out
from src.utils.errors import DataError, UsageError
from tests.helpers import tree
from tests.volumes import make_volume


@pytest.fixture
def data(tmp_path):
    """Two training cases in two formats, and test images of the same name and without masks."""
    for name, suffix in (("Case00", ".mhd"), ("Case01", ".nii.gz")):
        make_volume(tmp_path / f"data/TrainData/img/{name}{suffix}", seed=len(suffix))
        make_volume(tmp_path / f"data/TrainData/gt/{name}_segmentation{suffix}")
    make_volume(tmp_path / "data/TestData/img/Case00.nrrd", seed=7)
    make_volume(tmp_path / "data/LiveTestData/img/Case00.mha", seed=8)
    make_volume(tmp_path / "data/LiveTestData/gt/Case00_segmentation.mha", seed=8)
    return tmp_path / "data"


FILES = {
    "imagesTr/Case00_0000.nii.gz": "TrainData/img/Case00.mhd",
    "imagesTr/Case01_0000.nii.gz": "TrainData/img/Case01.nii.gz",
    "imagesTs/TestData_Case00_0000.nii.gz": "TestData/img/Case00.nrrd",
    "imagesTs/LiveTestData_Case00_0000.nii.gz": "LiveTestData/img/Case00.mha",
    "labelsTr/Case00.nii.gz": "TrainData/gt/Case00_segmentation.mhd",
    "labelsTr/Case01.nii.gz": "TrainData/gt/Case01_segmentation.nii.gz",
    "labelsTs/LiveTestData_Case00.nii.gz": "LiveTestData/gt/Case00_segmentation.mha",
}


def test_export(tmp_path, data, capsys):
    before = tree(data)
    out = tmp_path / "raw/Dataset500_Prostate"
    export_nnunet(data, out)
    assert "2 training cases, 2 test images" in capsys.readouterr().out
    assert tree(data) == before
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset500_Prostate"]
    assert set(tree(out)) == {*FILES, "dataset.json"}
    for target, origin in FILES.items():
        written, original = (sitk.ReadImage(str(p)) for p in (out / target, data / origin))
        assert np.array_equal(*map(sitk.GetArrayFromImage, (written, original)))
        assert written.GetPixelID() == original.GetPixelID()
        assert written.GetSpacing() == pytest.approx(original.GetSpacing(), abs=1e-6)
        assert written.GetOrigin() == pytest.approx(original.GetOrigin(), abs=1e-5)
        assert written.GetDirection() == pytest.approx(original.GetDirection(), abs=1e-6)
    assert json.loads((out / "dataset.json").read_text()) == {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "prostate": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def test_header_of_a_nifti_image_stays(tmp_path, data):
    """Image and mask get the image's own form codes: qform 0, sform 2."""
    path = data / "TrainData/img/Case01.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[252:256] = struct.pack("<hh", 0, 2)
    path.write_bytes(gzip.compress(content))
    export_nnunet(data, tmp_path / "Dataset500_Prostate")
    for name in ("imagesTr/Case01_0000.nii.gz", "labelsTr/Case01.nii.gz"):
        written = gzip.decompress((tmp_path / "Dataset500_Prostate" / name).read_bytes())
        assert struct.unpack_from("<hh", written, 252) == (0, 2)
        assert written[280:328] == content[280:328]  # srow


def test_there_and_back(tmp_path, data):
    export_nnunet(data, tmp_path / "Dataset500_Prostate")
    lay_out([tmp_path / "Dataset500_Prostate"], tmp_path / "back")
    for name in ("img/Case00", "gt/Case00_segmentation"):
        back, original = (
            sitk.ReadImage(str(path))
            for path in (
                tmp_path / f"back/TrainData/{name}.nii.gz",
                data / f"TrainData/{name}.mhd",
            )
        )
        assert np.array_equal(*map(sitk.GetArrayFromImage, (back, original)))
    assert (check(tmp_path / "back/TrainData")["problems"] == "").all()


def test_export_of_one_set_merges_labels(tmp_path, data):
    zones = np.zeros((4, 5, 6), np.uint8)
    zones[1:3, 1:4, 2:4], zones[1] = 1, 2
    make_volume(data / "TrainData/gt/Case00_segmentation.mhd", values=zones)
    out = tmp_path / "Dataset001_P"
    with pytest.raises(DataError, match="Case00_segmentation.mhd: labels .*--labels 1,2"):
        export_nnunet(data / "TrainData", out)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    export_nnunet(data / "TrainData", out, labels=(1, 2))
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labelsTr/Case00.nii.gz")))
    assert np.array_equal(written, zones > 0)
    assert set(tree(out)) == {*(name for name in FILES if "Tr/" in name), "dataset.json"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "TrainData/gt/Case00_segmentation.mhd").unlink(), "1 image.* 0 mask"),
        (lambda d: (d / "TrainData/img/Case00.mhd").unlink(), "0 image.* 1 mask"),
        (
            lambda d: (d / "LiveTestData/gt/Case00_segmentation.mha").rename(
                d / "LiveTestData/gt/Case00.mha"
            ),
            "LiveTestData: gt/Case00.mha: .*rename it to Case00_segmentation.mha",
        ),
        (
            lambda d: (d / "TestData/img/Case01.nhdr").touch(),
            "TestData: img/Case01.nhdr: of a form",
        ),
        (
            lambda d: make_volume(d / "TrainData/img/Case00.nrrd"),
            "Case00.* and Case00.nrrd have the same case name",
        ),
        (
            lambda d: make_volume(d / "TrainData/gt/Case01_segmentation.nii.gz", size=(6, 5, 5)),
            "Case01_segmentation.nii.gz: not on the grid .*: size",
        ),
    ],
)
def test_bad_cases_leave_nothing(tmp_path, data, damage, message):
    damage(data)
    with pytest.raises(DataError, match=message):
        export_nnunet(data, tmp_path / "raw/Dataset500_Prostate")
    assert not list(tmp_path.glob("raw/*"))


@pytest.mark.parametrize("name", ["Prostate", "Dataset5_P", "Dataset500", "Dataset500_P q"])
def test_names_that_nnunet_does_not_take(tmp_path, data, name):
    with pytest.raises(UsageError, match=r"DatasetNNN_NAME, such as .*Dataset500_Prostate"):
        export_nnunet(data, tmp_path / name)


def test_nothing_is_overwritten(tmp_path, data):
    (tmp_path / "Dataset500_P").mkdir()
    (tmp_path / "Dataset500_P/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="Dataset500_P: is there already"):
        export_nnunet(data, tmp_path / "Dataset500_P")
    assert set(tree(tmp_path / "Dataset500_P")) == {"mine.txt"}


def test_no_training_cases(tmp_path, data):
    shutil.rmtree(data / "TrainData")
    with pytest.raises(DataError, match="data: no training cases; give the folder"):
        export_nnunet(data, tmp_path / "Dataset500_P")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_interrupted_export_leaves_nothing(tmp_path, data, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        export_nnunet(data, tmp_path / "raw/Dataset500_P")
    assert not (tmp_path / "raw").exists()
