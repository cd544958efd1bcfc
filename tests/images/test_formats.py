"""Names of volumes."""

import os
from pathlib import Path

import pytest

from src.images.formats import list_images, only_file, stem, suffix_of
from src.utils.errors import DataError
from src.utils.files import check_name
from tests.helpers import touch


@pytest.mark.parametrize(
    "path, name, suffix",
    [
        ("Case03.mhd", "Case03", ".mhd"),
        ("img/Case03.nii.gz", "Case03", ".nii.gz"),
        ("/a.mha/Case03.nii", "Case03", ".nii"),
        ("P.1 T2.nrrd", "P.1 T2", ".nrrd"),
        ("CASE03.NII.GZ", "CASE03", ".nii.gz"),
        ("Case03.mha", "Case03", ".mha"),
        ("Case03_segmentation.mhd", "Case03_segmentation", ".mhd"),
        ("Case03", "Case03", None),
        ("Case03.raw", "Case03.raw", None),
        ("Case03.gz", "Case03.gz", None),
        (Path("a") / "b.mhd", "b", ".mhd"),
    ],
)
def test_stem_and_suffix(path, name, suffix):
    assert stem(path) == name and suffix_of(path) == suffix


def test_images_in_a_folder(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.mhd", "a.raw", "a.mha", ".c.mhd", "notes.txt", "d.zraw")
    assert list_images(tmp_path) == {
        "a": [tmp_path / "a.mha", tmp_path / "a.mhd"],
        "b": [tmp_path / "b.nii.gz"],
    }


@pytest.mark.parametrize("name", [b"Prost\xe4t.nii", b"Prost\xe4t/img/Case00.mhd"])
def test_a_name_that_is_not_utf8_is_refused_in_words_that_can_be_printed(name):
    with pytest.raises(DataError) as error:
        check_name(os.fsdecode(name))
    assert str(error.value).startswith(name.decode("latin-1").replace("\xe4", "\\xe4"))
    str(error.value).encode("ascii")
    check_name(Path("Prostatä (1)+#%/Fälle.nii.gz"))


def test_a_case_has_one_file():
    assert only_file([Path("img/a.mhd")]) == Path("img/a.mhd")
    with pytest.raises(
        DataError, match="^img: a.mhd and a.nii.gz have the same case name, a; keep"
    ):
        only_file([Path("img/a.mhd"), Path("img/a.nii.gz")])
