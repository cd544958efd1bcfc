"""What is written: the image's geometry, whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from src.images.formats import SUFFIXES
from src.images.reading import read_image
from src.images.writing import move_volumes, volume_files, write_volume
from src.utils.errors import DataError
from tests.helpers import tree
from tests.volumes import TOLERANCE, geometry_error


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_written_has_the_images_geometry(tmp_path, make_image, oblique, suffix, dtype):
    values = np.random.default_rng(0).random((5, 6, 7)) * (255 if dtype == np.uint8 else 1)
    geometry = (0.273456789012345, 0.61234567891234, 3.6000000001), (-101.123456789, 1 / 3, 1e-3)
    image = make_image(values.astype(dtype), *geometry, oblique)
    path = tmp_path / "new" / f"scan{suffix}"
    write_volume(image, path)
    written = sitk.ReadImage(str(path))
    assert written.GetPixelID() == image.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), values.astype(dtype))
    assert geometry_error(image, written) <= TOLERANCE[suffix]
    expected = {"scan.mhd", "scan.zraw"} if suffix == ".mhd" else {f"scan{suffix}"}
    assert {file.name for file in path.parent.iterdir()} == expected
    read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_earlier_file_is_replaced(tmp_path, make_image, suffix):
    path = tmp_path / f"scan{suffix}"
    for value in (1, 2):
        write_volume(make_image(np.full((3, 4, 5), value, np.uint8)), path)
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 2).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size_bytes", [0, 300, 20000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path, make_image, full_disk, suffix, size_bytes
):
    path = tmp_path / f"scan{suffix}"
    write_volume(make_image(np.ones((3, 4, 5), np.uint8)), path)
    before = tree(tmp_path)
    noise = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    with full_disk(size_bytes), pytest.raises(DataError) as error:
        write_volume(make_image(noise), path)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot be written (") and "\n" not in message
    assert tree(tmp_path) == before
    assert [file for file in tmp_path.rglob("*") if file.is_dir()] == []


@pytest.mark.parametrize("place", ["file/scan.mhd", "file/below/scan.nii.gz"])
def test_a_folder_that_cannot_be_written(tmp_path, make_image, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError) as error:
        write_volume(make_image(np.ones((3, 4, 5), np.uint8)), tmp_path / place)
    assert str(error.value).startswith(f"{tmp_path / place}: cannot be written (")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, make_image):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        write_volume(make_image(np.ones((3, 4, 5), np.uint8)), tmp_path / "scan.mhd")
    assert list(tmp_path.iterdir()) == []


def test_a_mhd_has_its_voxels_in_a_second_file():
    names = ["a_test.mhd", "b_test.mha", "c_test.nii.gz"]
    expected = ["a_test.mhd", "a_test.zraw", "b_test.mha", "c_test.nii.gz"]
    assert volume_files(names) == expected


def test_tables_are_moved_after_the_volumes_that_they_list(tmp_path, monkeypatch):
    """A kill between two files leaves no table of volumes that are not there."""
    source, moved = tmp_path / "source", []
    for name in ("a.zraw", "a.mhd", "metrics.json", "report.html", "sub/b.nii.gz", "overlays.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda p, to: moved.append(p.name) or replace(p, to))
    move_volumes(source, tmp_path / "target")
    assert set(moved[:2]) == {"a.zraw", "b.nii.gz"} and moved[2] == "a.mhd" and len(moved) == 6
