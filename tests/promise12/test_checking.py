"""What the check finds, and its table."""

import re
import shutil
import threading

import numpy as np
import pandas as pd
import pytest

from src.promise12 import checking
from src.promise12.checking import check, format_table, print_report
from src.promise12.splits import list_cases
from src.utils.errors import DataError
from tests.dicom_study import write_study
from tests.volumes import make_pairs, make_volume


@pytest.fixture
def data(tmp_path):
    """Two good cases in img/ and gt/."""
    for number in range(2):
        make_volume(tmp_path / f"data/img/Case0{number}.mhd", seed=number)
        make_volume(tmp_path / f"data/gt/Case0{number}_segmentation.mhd")
    return tmp_path / "data"


def changed_header(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def filled(value, dtype=np.float32):
    values = np.ones((4, 5, 6), dtype)
    values[1, 2, 3] = value
    return values


IMAGE, MASK = "img/Case01", "gt/Case01_segmentation"
FAULTS = {
    "truncated image": (
        lambda d: (d / f"{IMAGE}.raw").write_bytes((d / f"{IMAGE}.raw").read_bytes()[:-20]),
        "Case01.raw.*truncated",
    ),
    "truncated mask": (
        lambda d: (d / f"{MASK}.raw").write_bytes((d / f"{MASK}.raw").read_bytes()[:-20]),
        "Case01_segmentation.raw.*truncated",
    ),
    "voxels missing": (lambda d: (d / f"{IMAGE}.raw").unlink(), "Case01.raw is missing"),
    "corrupt header": (lambda d: (d / f"{IMAGE}.mhd").write_text("hello"), "Case01.mhd.*header"),
    "NaN": (lambda d: make_volume(d / f"{IMAGE}.mhd", values=filled(np.nan)), "Case01.mhd.*NaN"),
    "other size": (
        lambda d: make_volume(d / f"{MASK}.mhd", size=(6, 5, 5)),
        r"Case01_segmentation.mhd: not on the grid .*: size \(6, 5, 5\), expected",
    ),
    "other spacing": (
        lambda d: changed_header(d / f"{MASK}.mhd", "0.5 0.5 4", "0.5 0.6 4"),
        "Case01_segmentation.mhd: not on the grid of its image .*spacing",
    ),
    "other origin": (
        lambda d: changed_header(d / f"{MASK}.mhd", "-10 20 30", "-10 20 34"),
        "Case01_segmentation.mhd: not on the grid of its image .*origin",
    ),
    "other direction": (
        lambda d: changed_header(d / f"{MASK}.mhd", "1 0 0 0 1 0 0 0 1", "1 0 0 0 -1 0 0 0 -1"),
        "Case01_segmentation.mhd: not on the grid of its image .*mm away",
    ),
    "labels": (
        lambda d: make_volume(d / f"{MASK}.mhd", values=filled(2, np.uint8)),
        "Case01_segmentation.mhd: labels 1, 2",
    ),
    "empty mask": (
        lambda d: make_volume(d / f"{MASK}.mhd", values=np.zeros((4, 5, 6), np.uint8)),
        "Case01_segmentation.mhd: the mask is empty",
    ),
    "no mask": (lambda d: (d / f"{MASK}.mhd").unlink(), "Case01.mhd: image without a mask"),
    "no image": (
        lambda d: (d / f"{IMAGE}.mhd").unlink(),
        "Case01_segmentation.mhd: mask without an image",
    ),
    "two images": (
        lambda d: make_volume(d / f"{IMAGE}.nrrd"),
        "Case01.mhd and Case01.nrrd have the same case name",
    ),
    "voxels elsewhere, absolute": (
        lambda d: changed_header(d / f"{IMAGE}.mhd", "Case01.raw", f"{d}/{IMAGE}.raw"),
        "Case01.mhd: ElementDataFile .* is not in the header's folder",
    ),
    "voxels elsewhere, relative": (
        lambda d: changed_header(d / f"{MASK}.mhd", "Case01_s", "../gt/Case01_s"),
        "Case01_segmentation.mhd: ElementDataFile .* is not in the header's folder",
    ),
    "voxels elsewhere, Windows": (
        lambda d: changed_header(d / f"{IMAGE}.mhd", "Case01.raw", "D:\\x\\Case01.raw"),
        "Case01.mhd: ElementDataFile .* is not in the header's folder",
    ),
}


FAULTS |= {
    "mask named as its image": (
        lambda d: rename_mask(d, "Case01.mhd"),
        "^gt/Case01.mhd: not found .* by this name; rename it to Case01_segmentation.mhd$",
    ),
    "mask named as by others": (
        lambda d: rename_mask(d, "Case01_Label.mhd"),
        "^gt/Case01_Label.mhd: .*rename it to Case01_segmentation.mhd$",
    ),
    "a second mask": (
        lambda d: make_volume(d / "gt/Case01.nii.gz"),
        "^gt/Case01.nii.gz: a second mask of Case01; move it away$",
    ),
    "image of another format": (
        lambda d: (d / f"{IMAGE}.mhd").rename(d / f"{IMAGE}.nhdr"),
        "^img/Case01.nhdr: of a format that is not read; convert it to one of .mhd, ",
    ),
    "mask of another format": (
        lambda d: (d / f"{MASK}.mhd").rename(d / f"{MASK}.hdr"),
        "^gt/Case01_segmentation.hdr: of a format that is not read; convert",
    ),
    "image in a folder": (
        lambda d: (d / f"{IMAGE}.mhd").rename(folder_of(d / IMAGE) / "t2.mhd"),
        "^img/Case01: a folder of images, .*prepare_data.py --source$",
    ),
    "DICOM folder": (
        lambda d: ((d / f"{IMAGE}.mhd").unlink(), write_study(d / IMAGE)),
        "^img/Case01: a folder of images, .*prepare_data.py --source$",
    ),
    "mask in a folder": (
        lambda d: (d / f"{MASK}.mhd").rename(folder_of(d / MASK) / "mask.nhdr"),
        "^gt/Case01_segmentation: a folder of images",
    ),
}


def rename_mask(data, name):
    (data / f"{MASK}.mhd").rename(data / "gt" / name)


def folder_of(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds(data, fault):
    damage, message = FAULTS[fault]
    damage(data)
    frame = check(data)
    assert frame["case"].tolist() == ["Case00", "Case01"]
    good, bad = frame["problems"]
    assert good == ""
    assert pd.Series([bad]).str.contains(message).all(), bad
    assert len(bad.splitlines()) == 1


def test_check_of_good_cases(data):
    frame = check(data)
    assert frame.columns.tolist() == ["case", "size", "spacing_mm", "prostate_ml", "problems"]
    assert frame["size"].tolist() == ["6x5x4"] * 2
    assert frame["spacing_mm"].tolist() == ["0.5x0.5x4"] * 2
    assert frame["prostate_ml"].tolist() == pytest.approx([12 * 0.5 * 0.5 * 4 / 1000] * 2)
    assert frame["problems"].tolist() == ["", ""]


def test_two_headers_that_name_one_data_file(data):
    """An image like that of another case, or like a mask, is a mistake of copying."""
    changed_header(data / "img/Case01.mhd", "Case01.raw", "Case00.raw")
    problems = check(data)["problems"].tolist()
    assert problems[0] == ""
    assert problems[1] == (
        "Case01.mhd: its voxels are in Case00.raw, like those of Case00.mhd; give each its own "
        "data file"
    )


def test_files_of_no_case_have_a_row(data):
    (data / "img/p 7.mnc").touch()
    (data / "img/q").mkdir()
    make_volume(data / "gt/r.mhd")
    (data / "img/notes").mkdir()
    for name in ("img/notes/a.txt", "img/list.csv", "gt/.hidden.nhdr", "img/._Case00.mhd"):
        (data / name).touch()
    frame = check(data).set_index("case")
    assert frame.index.tolist() == ["Case00", "Case01", "p 7", "r"]
    assert frame["problems"].str.split(":").str[0].tolist() == ["", "", "img/p 7.mnc", "gt/r.mhd"]
    assert frame["size"].tolist() == ["6x5x4", "6x5x4", "", ""]


def test_what_no_case_lacks_is_no_problem(data, capsys):
    """Copies, zones and converted files beside complete cases; folders of no case have a line."""
    for name in ("img/backup/Case00.mhd", "gt/zones/Case00_pz.nii.gz"):
        make_volume(data / name)
    for name in ("img/Case00.par", "gt/Case00_segmentation.vtk", "img/__MACOSX/._Case00.mhd"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).touch()
    assert check(data)["problems"].tolist() == ["", ""]
    lines = capsys.readouterr().out
    for name in ("img/backup", "gt/zones"):
        assert re.search(f"{name}: a folder of images.*, or move it away$", lines, re.M)
    assert "MACOSX" not in lines


def test_a_mask_of_no_image_is_not_renamed(data):
    make_volume(data / "gt/Case00_pz.nii.gz")
    problems = check(data).set_index("case")["problems"]
    expected = "gt/Case00_pz.nii.gz: of no image: there is none called Case00_pz; move it away"
    assert problems[problems != ""].to_dict() == {"Case00_pz": expected}


def test_dicom_files_in_img_are_told_once(data):
    write_study(data.parent / "study")
    for path in (data.parent / "study/S1").iterdir():
        path.rename(data / "img" / path.name)
    problems = [line for line in check(data)["problems"] if line]
    assert len(problems) == 1
    assert re.fullmatch(r"img/.*: DICOM, which is not read here; lay it out with .*", problems[0])


def test_a_name_that_no_split_can_hold(data):
    make_volume(data / "img/a,b.mhd")
    make_volume(data / "gt/a,b_segmentation.mhd")
    with pytest.raises(DataError, match="a,b.mhd: a split file cannot hold this name; rename"):
        list_cases(data)
    frame = check(data).set_index("case")
    assert "a,b.mhd: a split file cannot hold this name; rename" in frame["problems"]["a,b"]
    shutil.rmtree(data / "gt")
    data.rename(data.parent / "TestData")
    assert (check(data.parent / "TestData")["problems"] == "").all()


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_what_passes_the_check_can_be_listed(data, fault, capsys):
    """The names that the check and a split take are the same."""
    FAULTS.get(fault, (lambda _: None,))[0](data)
    try:
        listed = list_cases(data)
    except DataError:
        listed = []
    is_good = listed == ["Case00.mhd", "Case01.mhd"] and "left out" not in capsys.readouterr().out
    assert is_good or (check(data)["problems"] != "").any()
    assert fault != "none" or is_good


def test_training_images_need_masks(data):
    shutil.rmtree(data / "gt")
    assert check(data)["problems"].str.contains("image without a mask").tolist() == [True, True]


def test_check_reads_nothing_outside_the_data(data):
    """A header that names a file elsewhere is reported although that file would be readable."""
    shutil.copy(data / f"{IMAGE}.raw", data.parent / "elsewhere.raw")
    changed_header(data / f"{IMAGE}.mhd", "Case01.raw", "../../elsewhere.raw")
    assert "elsewhere.raw is not in the header's folder" in check(data)["problems"][1]


def test_check_of_several_sets(tmp_path):
    make_volume(tmp_path / "TrainData/img/Case00.mhd")
    make_volume(tmp_path / "TrainData/gt/Case00_segmentation.mhd")
    make_volume(tmp_path / "TestData/img/Case00.mhd")
    make_volume(tmp_path / "LiveTestData/img/Case00.mhd")
    make_volume(tmp_path / "LiveTestData/img/Case01.mhd")
    make_volume(tmp_path / "LiveTestData/gt/Case00_segmentation.mhd")
    frame = check(tmp_path).set_index("case")
    assert frame.index.tolist() == [
        "TrainData/Case00",
        "TestData/Case00",
        "LiveTestData/Case00",
        "LiveTestData/Case01",
    ]
    assert frame["problems"].astype(bool).tolist() == [False, False, False, True]
    assert "image without a mask" in frame["problems"].iloc[-1]


def test_check_of_the_zoos_flat_test_folder(tmp_path):
    make_volume(tmp_path / "TestData/Case00.mhd")
    assert check(tmp_path)["problems"].tolist() == [""]
    make_volume(tmp_path / "TestData/Case01.mhd")
    make_volume(tmp_path / "TestData/Case01_segmentation.mhd")
    problems = check(tmp_path / "TestData")["problems"].tolist()
    assert "image without a mask" in problems[0]
    assert problems[1] == ""


@pytest.mark.parametrize("content", [None, "flat"])
def test_check_of_nothing(tmp_path, content):
    folder = tmp_path / "volumes"
    folder.mkdir()
    if content:
        make_pairs(folder, ["Case00"])
    with pytest.raises(DataError, match="volumes: no volumes in img/.*prepare_data.py --source"):
        check(folder)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_table_fits_the_terminal(width):
    problem = "Case01_segmentation.mhd: labels 0, 1, 7, expected only 0 and 1 (1 is the prostate)"
    frame = pd.DataFrame(
        [
            ("Case00", "512x512x54", "0.3906x0.3906x3", 45.26, ""),
            ("Case01", "", "", np.nan, problem),
        ],
        columns=["case", "size", "spacing_mm", "prostate_ml", "problems"],
    )
    text = format_table(frame, width)
    longest_word = max(map(len, problem.split()))
    assert max(map(len, text.splitlines())) <= max(width, 4 + longest_word)
    words = " ".join(text.replace("!", " ").split())
    assert "Case00 512x512x54 0.3906x0.3906x3 45.3" in words
    assert f"Case01 ? ? - {problem}" in words


def test_report(data, capsys):
    print_report(check(data))
    assert capsys.readouterr().out.endswith("2 cases, no problems\n")
    (data / f"{MASK}.mhd").unlink()
    with pytest.raises(DataError, match="1 of 2 cases have problems"):
        print_report(check(data))
    assert "  ! Case01.mhd: image without a mask" in capsys.readouterr().out


def test_volumes_are_read_side_by_side_and_listed_in_order(tmp_path, monkeypatch):
    """Two images wait for one another."""
    make_pairs(tmp_path / "all", [f"Case{number:02d}" for number in range(6)])
    for path in (tmp_path / "all").iterdir():
        folder = tmp_path / "data" / ("gt" if "_segmentation" in path.name else "img")
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (tmp_path / "data/img/Case03.raw").unlink()
    monkeypatch.setattr(checking, "worker_count", lambda _: 1)
    alone = check(tmp_path / "data")
    both = threading.Barrier(2, timeout=60)
    read = checking.read_volume_or_one_of

    def together(path, channel):
        both.wait()  # raises where the other never comes
        return read(path, channel)

    monkeypatch.setattr(checking, "read_volume_or_one_of", together)
    monkeypatch.setattr(checking, "worker_count", lambda _: 2)
    pd.testing.assert_frame_equal(check(tmp_path / "data"), alone)
    assert alone["case"].tolist() == [f"Case{number:02d}" for number in range(6)]
    assert [bool(problem) for problem in alone["problems"]] == [n == 3 for n in range(6)]
