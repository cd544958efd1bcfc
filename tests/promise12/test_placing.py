"""Volumes copied to img/ and gt/: which set, nothing lost, nothing half written."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from src.images.reading import read_volume, read_volume_or_one_of
from src.promise12.checking import check
from src.promise12.layouts import Options
from src.promise12.placing import lay_out
from src.utils.errors import DataError
from tests.helpers import tree
from tests.volumes import image_of, make_pairs, make_volume, zip_of


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz", ".nii", ".nrrd"])
def test_flat_folder(tmp_path, suffix):
    source = make_pairs(tmp_path / "volumes", ["Case00", "x 1"], suffix)
    (source / "notes.txt").write_text("not a volume")
    before = tree(source)
    lay_out([source], tmp_path / "out")
    assert tree(source) == before
    expected = {
        f"TrainData/{'gt' if '_segmentation' in name else 'img'}/{name}": content
        for name, content in before.items()
        if name != "notes.txt"
    }
    assert tree(tmp_path / "out") == expected
    assert (check(tmp_path / "out")["problems"] == "").all()


@pytest.mark.parametrize(
    "place, masked, expected",
    [
        ("training_data", True, "TrainData"),
        ("test_data", True, "TestData"),
        ("test_data", False, "TestData"),
        ("livechallenge_test_data", True, "LiveTestData"),
        ("TrainingData_Part2", True, "TrainData"),
        ("promise12/TrainData", False, "TrainData"),
        ("promise12/TestData", False, "TestData"),
        ("LiveTestData", False, "LiveTestData"),
        ("test_data/training_data", True, "TrainData"),
        ("latest", True, "TrainData"),
        ("liverpool_prostate", True, "TrainData"),
        ("hospital", True, "TrainData"),
        ("hospital", False, "TestData"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_set_follows_from_the_names(tmp_path, place, masked, expected, zipped):
    volumes = tmp_path / "in" / place
    make_volume(volumes / "Case00.mhd")
    if masked:
        make_volume(volumes / "Case00_segmentation.mhd")
    source = tmp_path / "in" / Path(place).parts[0]
    if zipped:
        source = Path(shutil.make_archive(str(source), "zip", source.parent, source.name))
    lay_out([source], tmp_path / "out")
    names = {"img/Case00.mhd", "img/Case00.raw"}
    names |= {"gt/Case00_segmentation.mhd", "gt/Case00_segmentation.raw"} if masked else set()
    assert set(tree(tmp_path / "out")) == {f"{expected}/{name}" for name in names}


def test_archives_as_the_record_has_them(tmp_path):
    expected = {}
    for number, (name, target) in enumerate(
        [
            ("training_data", "TrainData"),
            ("test_data", "TestData"),
            ("livechallenge_test_data", "LiveTestData"),
        ]
    ):
        folder = make_pairs(tmp_path / name, ["Case00", "Case01"], seed=10 * number)
        zip_of(folder, tmp_path / f"{name}.zip", f"{name}/")
        for file, content in tree(folder).items():
            expected[f"{target}/{'gt' if '_seg' in file else 'img'}/{file}"] = content
    archives = sorted(tmp_path.glob("*.zip"))
    lay_out(archives, tmp_path / "out")
    assert tree(tmp_path / "out") == expected


def test_flat_parts_meet_in_one_set(tmp_path, capsys):
    for part in (1, 2):
        folder = make_pairs(tmp_path / f"part{part}", [f"Case0{part}"])
        zip_of(folder, tmp_path / f"TrainingData_Part{part}.zip")
        lay_out([tmp_path / f"TrainingData_Part{part}.zip"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/TrainData/img").iterdir()) == [
        "Case01.mhd",
        "Case01.raw",
        "Case02.mhd",
        "Case02.raw",
    ]
    assert capsys.readouterr().out.count("4 files written, 0 there already") == 2


def test_img_gt_layout_and_the_zoos_test_folder(tmp_path):
    make_volume(tmp_path / "data/TrainData/img/Case00.mhd")
    make_volume(tmp_path / "data/TrainData/gt/Case00_segmentation.mhd")
    make_volume(tmp_path / "data/TestData/Case00.mhd", seed=1)
    lay_out([tmp_path / "data"], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {
        "TrainData/img/Case00.mhd",
        "TrainData/img/Case00.raw",
        "TrainData/gt/Case00_segmentation.mhd",
        "TrainData/gt/Case00_segmentation.raw",
        "TestData/img/Case00.mhd",
        "TestData/img/Case00.raw",
    }


@pytest.mark.parametrize("named", ["voxels.bin", "./Case00.raw", "raw/voxels.bin"])
@pytest.mark.parametrize("zipped", [False, True])
def test_voxels_follow_the_name_in_their_header(tmp_path, named, zipped):
    source = make_pairs(tmp_path / "volumes", ["Case00"], ".mha")
    header = make_volume(source / "Case00.mhd")
    (source / "Case00.mha").unlink()
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(header)))
    voxels = source / named
    voxels.parent.mkdir(exist_ok=True)
    header.with_suffix(".raw").rename(voxels)
    header.write_text(header.read_text().replace("Case00.raw", named))
    if zipped:
        source = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", source))
    lay_out([source], tmp_path / "out")
    assert check(tmp_path / "out")["problems"].tolist() == [""]
    placed = sitk.ReadImage(str(tmp_path / "out/TrainData/img/Case00.mhd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed), expected)


def test_a_mask_without_the_labels_is_no_gland(tmp_path):
    """A mask of 0 and 1 only must not pass where its other files hold zones 1 and 2."""
    make_volume(tmp_path / "data/img/a.mha")
    make_volume(tmp_path / "data/gt/a_segmentation.mha")
    with pytest.raises(DataError, match=r"a_segmentation.mha: labels 0, 1, none of .* --labels 2"):
        lay_out([tmp_path / "data"], tmp_path / "out", Options(labels=(2,)))
    assert not (tmp_path / "out").exists()


def test_a_faulty_mask_of_our_layout_is_left_to_the_check(tmp_path):
    make_volume(tmp_path / "data/img/a.mha")
    make_volume(tmp_path / "data/gt/a_segmentation.mha", values=np.full((4, 5, 6), 0.5))
    lay_out([tmp_path / "data"], tmp_path / "out", Options(labels=(2,)))
    (problem,) = check(tmp_path / "out")["problems"]
    assert "values 0.5, expected whole numbers" in problem


@pytest.mark.parametrize("volumes", [1, 2])
def test_directions_rounded_in_a_nifti_header_hide_no_channels(tmp_path, volumes):
    """SimpleITK refuses the rounded axes of an oblique file that `read_volume` reads."""
    array = np.random.default_rng(0).integers(0, 900, (volumes, 4, 5, 6)).astype(np.int16)
    (tmp_path / "data/img").mkdir(parents=True)
    path = tmp_path / "data/img/a.nii"
    images = [image_of(volume) for volume in array]
    sitk.WriteImage(sitk.JoinSeries(images) if volumes > 1 else images[0], str(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<3f", content, 80, 1, 1, 1)  # pixdim
    struct.pack_into("<2h", content, 252, 0, 1)  # qform_code, sform_code
    struct.pack_into("<12f", content, 280, 1, 2e-3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(content)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    make_volume(tmp_path / "data/gt/a_segmentation.nii", values=np.ones((4, 5, 6), np.uint8))
    mask = sitk.ReadImage(str(tmp_path / "data/gt/a_segmentation.nii"))
    mask.CopyInformation(read_volume_or_one_of(path, 0)[0])
    sitk.WriteImage(mask, str(tmp_path / "data/gt/a_segmentation.nii"))
    lay_out([tmp_path / "data"], tmp_path / "out", Options(labels=(1, 2), channel=volumes - 1))
    placed = read_volume(tmp_path / "out/TrainData/img/a.nii")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed), array[-1])
    assert check(tmp_path / "out")["problems"].tolist() == [""]


def test_second_run_keeps_what_is_there(tmp_path, capsys):
    source = make_pairs(tmp_path / "volumes", ["Case00", "Case01"])
    lay_out([source], tmp_path / "out")
    (tmp_path / "out/TrainData/img/Case01.raw").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    lay_out([source, zip_of(source, tmp_path / "volumes.zip")], tmp_path / "out")
    assert "1 files written, 7 there already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert (tmp_path / "out/TrainData/img/Case01.raw").exists()


def test_other_content_is_never_replaced(tmp_path):
    source = make_pairs(tmp_path / "volumes", ["Case00"])
    lay_out([source], tmp_path / "out")
    before = tree(tmp_path / "out")
    make_pairs(source, ["Case00", "Case01"], seed=8)
    with pytest.raises(DataError, match=r"TrainData/img/Case00.raw: is there already and differs"):
        lay_out([source], tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_sources_that_contradict_each_other(tmp_path):
    sources = [make_pairs(tmp_path / name, ["Case00"], seed=len(name)) for name in ("a", "bb")]
    with pytest.raises(DataError, match="bb/Case00.raw and a/Case00.raw differ"):
        lay_out(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_stays(tmp_path, monkeypatch, existing):
    source = make_pairs(tmp_path / "volumes", ["Case00", "Case01"])
    out = tmp_path / "out"
    if existing:
        lay_out([make_pairs(tmp_path / "first", ["Case07"])], out)
    before = tree(out) if existing else {}
    write_bytes, written = Path.write_bytes, []

    def full_at_the_third_file(path, content):
        written.append(path)
        write_bytes(path, content[:10] if len(written) == 3 else content)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_bytes", full_at_the_third_file)
        lay_out([source], out)
    assert tree(out) == before
    lay_out([source], out)
    assert len(tree(out)) == len(before) + 8


def test_leftovers_of_a_killed_run_are_named(tmp_path, capsys):
    (tmp_path / "out/.unpacking-abc").mkdir(parents=True)
    lay_out([make_pairs(tmp_path / "volumes", ["Case00"])], tmp_path / "out")
    assert ".unpacking-abc: left behind" in capsys.readouterr().out
