"""Which images a command line means."""

import shutil
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from src.images.writing import write_volume
from src.input_images import find_images
from src.utils.errors import DataError
from src.utils.files import printable
from src.utils.output_folder import register
from tests import dicom_study
from tests.helpers import touch

write_study = partial(dicom_study.write_study, slices=3)  # which are enough to be found


def sources(*arguments):
    """The images that are found, {name: source}."""
    return {image.name: image.source for image in find_images(*arguments)}


def test_images_of_files_and_folders(data, tmp_path, monkeypatch):
    img, gt = data / "img", data / "gt"
    assert sources([str(img)]) == {
        "Case0": img / "Case0.mhd",
        "Case1": img / "Case1.nii.gz",
        "Case2": img / "Case2.nrrd",
    }
    assert list(sources([img / "Case2.nrrd", img / "Case0.mhd"])) == ["Case2", "Case0"]
    both = tmp_path / "flat"
    both.mkdir()
    for path in (*img.iterdir(), *gt.iterdir()):
        (both / path.name).write_bytes(path.read_bytes())
    assert list(sources([both])) == ["Case0", "Case1", "Case2"]  # masks are no scans
    monkeypatch.chdir(img)
    assert list(sources(["."])) == ["Case0", "Case1", "Case2"]


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        ("a_segmentation.mha", True),
        ("a_Segmentation.mha", True),
        ("a-seg.nii.gz", True),
        ("a_seg.nrrd", True),
        ("a.seg.nrrd", True),
        ("a_label.nii", True),
        ("a_labels.nii.gz", True),
        ("a_mask.mhd", True),
        ("labels/a.nii.gz", True),
        ("labelsTr/a.nii.gz", True),
        ("Masks/a.mha", True),
        ("gt/a.mha", True),
        ("imagesTr/a_0000.nii.gz", False),
        ("unmask.mha", False),
        ("a_mask_t2.mha", True),  # as prepare_data.py takes it
        ("a_mask_2.nii", True),
        ("labels_of_all/a.mha", False),
        ("labels/t2/a.mha", False),
    ],
)
def test_masks_are_known_by_their_names(tmp_path, capsys, make_image, name, is_mask):
    """Left out of a folder with a line; named as a file, taken with a line."""
    path = tmp_path / name
    write_volume(make_image(np.arange(60, dtype=np.int16).reshape(3, 4, 5)), path)
    line = f"{path.parent}: 1 mask(s) left out, by name or folder, such as {path}\n"
    if is_mask:
        with pytest.raises(DataError, match="no image there .*, only masks, by name or folder"):
            sources([path.parent])
    else:
        assert list(sources([path.parent]).values()) == [path]
    assert capsys.readouterr().out == line * is_mask
    assert list(sources([path]).values()) == [path]
    line = f"{path}: a mask by its name; segmented because it was given as input\n"
    assert capsys.readouterr().out == line * is_mask


def test_a_mask_beside_dicom_is_no_image(tmp_path):
    study = write_study(tmp_path / "P1")
    touch(study, "prostate.nii.gz")
    assert list(sources([study])) == ["P1"]
    (study / "scan.nii.gz").touch()
    with pytest.raises(DataError, match=r"holds images \(.*scan.nii.gz\) and DICOM files"):
        sources([study])


def test_other_contrasts_by_name_are_not_taken_for_t2(tmp_path, capsys):
    """As PI-CAI lays them out; alone in a folder they are refused, named as files taken."""
    folder = tmp_path / "10000"
    touch(folder, *(f"10000_1_{kind}.mha" for kind in ("t2w", "adc", "hbv", "sag")), "b_t1.nii")
    assert list(sources([folder])) == ["10000_1_t2w"]
    said = capsys.readouterr().out
    assert f"4 image(s) of another contrast or plane left out, by name, such as {folder}" in said
    assert list(sources([folder / "10000_1_adc.mha"])) == ["10000_1_adc"]
    assert "10000_1_adc.mha: no axial T2 by its name" in capsys.readouterr().out
    (folder / "10000_1_t2w.mha").unlink()
    with pytest.raises(DataError, match="only other contrasts or planes, by name, such as"):
        sources([folder])


@pytest.mark.parametrize("folder, are_channels", [("imagesTs", True), ("scans", False)])
def test_channels_of_nnunet_are_not_taken_for_cases(tmp_path, folder, are_channels):
    touch(tmp_path / folder, *(f"P_{k:03}_0000.nii.gz" for k in range(3)))
    assert len(sources([tmp_path / folder])) == 3
    touch(tmp_path / folder, "P_001_0001.nii.gz")
    if not are_channels:
        assert len(sources([tmp_path / folder])) == 4
        return
    message = "P_001_0000.nii.gz and P_001_0001.nii.gz are channels of one case; give"
    with pytest.raises(DataError, match=message):
        sources([tmp_path / folder])
    assert len(sources(sorted((tmp_path / folder).glob("*_0000.nii.gz")))) == 3


def test_images_in_folders_below_are_not_left_out_in_silence(data, tmp_path, capsys):
    with pytest.raises(
        DataError, match=r"data: no image there .*only in folders below.*Case0\.mhd"
    ):
        sources([data])
    (data / "Case9.mha").touch()
    assert list(sources([data])) == ["Case9"]
    said = capsys.readouterr().out
    assert f"{data}: 3 image(s) in folders below it left out; give these folders too" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image there \(\.mhd, .*\), nor DICOM"):
        sources([tmp_path / "empty"])
    (data / "study.zip").touch()
    sources([data])
    assert (
        f"{data}: 1 .zip file(s) left out, such as {data / 'study.zip'}" in capsys.readouterr().out
    )
    # Among others it is one of those that fail.
    found = sources([tmp_path / "empty", data / "Case9.mha"])
    assert isinstance(found["empty"], DataError) and found["Case9"] == data / "Case9.mha"


def test_our_own_results_are_no_images(tmp_path, write_case):
    """A prediction beside its image is not segmented in its turn."""
    image, _ = write_case(tmp_path, "Case0")
    mask = image.with_name("Case0_test.mhd")
    write_volume(sitk.ReadImage(str(image)), mask)
    assert list(sources([image.parent])) == ["Case0", "Case0_test"]
    mask.unlink()
    with register(image.parent, [mask.name]):
        write_volume(sitk.ReadImage(str(image)), mask)
    assert list(sources([image.parent])) == ["Case0"]
    with pytest.raises(DataError, match=f"{mask}: a result of this program, expected an image"):
        sources([mask])


def test_segmentations_beside_studies_are_no_study(tmp_path):
    """Results in a folder of the same tree must not keep it from being divided."""
    for name in ("P1", "P2"):
        write_study(tmp_path / "root" / name, patient=name)
    studies = sources([tmp_path / "root"])
    result = tmp_path / "root" / "out" / "P1" / "P1_test.dcm"
    with register(tmp_path / "root" / "out", ["P1/P1_test.dcm"]):
        result.parent.mkdir(parents=True)
        shutil.copy(next((tmp_path / "root" / "P1").rglob("IM*")), result)
    assert sources([tmp_path / "root"]) == studies and list(studies) == ["P1", "P2"]


def test_a_link__is_called_by_its_own_name(tmp_path, data):
    """Data stores keep files under their checksum and link to them."""
    link = tmp_path / "patient.nrrd"
    link.symlink_to(data / "img" / "Case2.nrrd")
    assert list(sources([link])) == ["patient"]
    study = write_study(tmp_path / "JOHN_DOE")
    (tmp_path / "anon01").symlink_to(study)
    assert list(sources([tmp_path / "anon01"])) == ["anon01"]


def test_folders_that_are_links_are_entered(tmp_path):
    """Data sets are often put together from links; one that leads back has no end."""
    study = write_study(tmp_path / "store" / "P2")
    write_study(tmp_path / "patients" / "P1")
    (tmp_path / "patients" / "P2").symlink_to(study)
    (tmp_path / "patients" / "P1" / "back").symlink_to(tmp_path / "patients")
    (study / "self").symlink_to(study)
    assert list(sources([tmp_path / "patients"])) == ["P1", "P2"]


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    name = b"Prost\xe4t".decode(errors="surrogateescape")
    path = tmp_path / f"{name}.mha"
    path.touch()
    assert list(sources([path])) == [printable(name)] == ["Prost\\xe4t"]


def test_two_images_of_one_name_are_refused(data):
    other = data / "Case0.nii.gz"
    other.touch()
    with pytest.raises(DataError) as error:
        sources([data / "img", other])
    assert str(error.value) == (
        f"{other}: also called Case0, like {data / 'img' / 'Case0.mhd'}; rename one"
    )
    with pytest.raises(DataError, match="also called Case1"):
        sources([data / "img" / "Case1.nii.gz", data / "img"])


def test_a_series_and_other_images_are_not_decided_in_silence(tmp_path, write_case, capsys):
    study = write_study(tmp_path / "study")
    image, mask = write_case(tmp_path, "Case0", ".mha")
    mask.rename(study / "S1" / mask.name)  # is no image
    assert sources([study]) == {"study": study}
    assert "1 mask(s) left out" in capsys.readouterr().out
    image.rename(study / "S1" / image.name)
    with pytest.raises(DataError) as error:
        sources([study])
    assert str(error.value) == (
        f"{study}: holds images ({study / 'S1' / image.name}) and DICOM files "
        f"({study / 'S1' / 'IM0000'}); give the ones that are meant by their own path"
    )


# Folders of several studies -----------------------------------------------------------------------


def test_each_study_in_a_folder_of_patients_is_an_image(tmp_path, capsys):
    write_study(tmp_path / "all" / "A", ("t2_tse_tra", "ep2d_diff"), patient="a")
    write_study(tmp_path / "all" / "B" / "DICOM", patient="b")
    for year in ("2023", "2024"):
        write_study(tmp_path / "all" / "C" / year, patient="c")
    images = find_images([tmp_path / "all"], "1")
    assert images == [
        ("A", tmp_path / "all" / "A", "1", True),
        ("B", tmp_path / "all" / "B", "1", True),
        ("C_2023", tmp_path / "all" / "C" / "2023", "1", True),
        ("C_2024", tmp_path / "all" / "C" / "2024", "1", True),
    ]
    assert "4 studies" in capsys.readouterr().out
    # Named themselves, they are what they were.
    given = sorted((tmp_path / "all").iterdir())[:2]
    assert find_images(given) == [(path.name, path, "", False) for path in given]


def test_a_patient_with_one_series_to_read_is_one_image(tmp_path, capsys):
    write_study(tmp_path / "P" / "first", ("t2_tse_tra",))
    write_study(tmp_path / "P" / "second", ("ep2d_diff_tra", "t2_tse_tra_later"))
    assert list(sources([tmp_path / "P"])) == ["first", "second"]
    assert sources([tmp_path / "P"], "*later") == {"P": tmp_path / "P"}
    write_study(tmp_path / "Q" / "first", ("t2_tse_tra",))
    write_study(tmp_path / "Q" / "second", ("ep2d_diff_tra",))
    capsys.readouterr()
    assert sources([tmp_path / "Q"]) == {"Q": tmp_path / "Q"}
    assert '2 studies with one PatientID are taken as one; only series 1 "t2_tse_tra" is read' in (
        capsys.readouterr().out
    )


def test_patients_without_an_id_are_not_one(tmp_path):
    for number, description in enumerate(("t2_tse_tra", "t2_tse_sag", "ep2d_diff_tra")):
        write_study(tmp_path / "r" / f"P{number}", (description,), patient="")
    assert list(sources([tmp_path / "r"])) == ["P0", "P1", "P2"]


def test_what_cannot_be_read_in_a_folder_is_told(tmp_path, capsys, write_case):
    """A patient whose files are all empty, images of other formats, a zip below."""
    for patient in ("P1", "P2", "P3"):
        write_study(tmp_path / "dicom" / patient, patient=patient)
    for path in (tmp_path / "dicom" / "P2" / "S1").iterdir():
        path.unlink()
    (tmp_path / "dicom" / "P2" / "S1" / "1.dcm").touch()
    (tmp_path / "dicom" / "P1" / "more.zip").touch()
    assert list(sources([tmp_path / "dicom"])) == ["P1", "P3"]
    out = capsys.readouterr().out
    assert "1 damaged or empty DICOM file(s) left out, such as" in out and "P2/S1/1.dcm" in out
    assert "1 .zip file(s) left out" in out
    write_case(tmp_path, "Case0")
    (tmp_path / "img" / "vol.mgz").touch()
    sources([tmp_path / "img"])
    assert "1 image(s) of formats that are not read, such as" in capsys.readouterr().out


def test_studies_that_folders_do_not_part_stay_one_image(tmp_path):
    """The files of a study in several folders, or of several in one: as before."""
    write_study(tmp_path / "A" / "first", patient="a")
    loose = write_study(tmp_path / "other", patient="b") / "S1" / "IM0000"
    loose.rename(tmp_path / "A" / "IM0000")
    assert sources([tmp_path / "A"]) == {"A": tmp_path / "A"}
    write_study(tmp_path / "B" / "first", ("t2_tse_tra", "t2_tse_cor"), patient="a")
    write_study(tmp_path / "B" / "second", patient="b")
    (tmp_path / "B" / "first" / "S2").rename(tmp_path / "B" / "third")
    assert sources([tmp_path / "B"]) == {"B": tmp_path / "B"}


def test_the_results_of_a_study_are_no_images(tmp_path, write_case):
    """In a folder of the study's own, listed in the folder above."""
    image, _ = write_case(tmp_path, "Case0", ".mha")
    with register(tmp_path / "masks", ["A/A_test.mha"]):
        write_volume(sitk.ReadImage(str(image)), tmp_path / "masks" / "A" / "A_test.mha")
    with pytest.raises(DataError, match="no image there"):
        sources([tmp_path / "masks" / "A"])
    with pytest.raises(DataError, match="no image there"):
        sources([tmp_path / "masks"])
