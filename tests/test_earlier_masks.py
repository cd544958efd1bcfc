"""Which masks of an earlier prediction stay: those that would be the same, and edited ones."""

import gzip
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from src.config import override_config
from src.ensemble import origin_of
from src.input_images import find_images
from src.prediction import Outputs, predict
from src.utils.errors import DataError
from src.utils.files import hash_file
from tests.dicom_study import write_study
from tests.helpers import rows_of, strict_json, tree
from tests.networks import bright, counting
from tests.volumes import read_array


@pytest.mark.parametrize(
    "change",
    [
        *("image", "geometry", "settings", "recentre", "precision"),
        *("PREPROCESSING", "POSTPROCESSING"),
        *("checkpoint", "mask", "probability", "nothing"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_only_what_would_come_out_the_same_is_kept(
    tmp_path, data, config, results, monkeypatch, change
):
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    path = data / "img" / "Case0.mhd"
    both = find_images([path, data / "img" / "Case1.nii.gz"])
    predict(bright, both, config, origin_of({checkpoint: hash_file(checkpoint)}))
    image = sitk.ReadImage(str(path))
    if change == "image":
        image[0, 0, 0] = 5
    elif change == "geometry":
        image.SetSpacing((1.25, 1.25, 2.6))
    elif change == "settings":
        config = override_config(config, ["threshold=0.4"])
    elif change == "recentre":
        config = override_config(config, ["recentre=true"])
    elif change == "precision":
        config = override_config(config, ["precision=float32"])
    elif change in ("PREPROCESSING", "POSTPROCESSING"):  # of another version of this program
        monkeypatch.setattr(f"src.predictor.{change}", 0)
    elif change == "checkpoint":
        checkpoint.write_bytes(b"other weights")
    elif change == "mask":
        mask = results / "Case0_test.zraw"
        mask.write_bytes(mask.read_bytes()[:-3])
    sitk.WriteImage(image, str(path))
    network, asked = counting()
    about = origin_of({checkpoint: hash_file(checkpoint)})
    if change not in ("image", "geometry", "mask", "probability", "nothing"):
        before = tree(results)
        with pytest.raises(DataError, match="its other masks are of another network or of other"):
            predict(network, both[:1], config, about, skip_existing=True)
        assert not asked and tree(results) == before
        predict(network, both, config, about, skip_existing=True)
        assert len(asked) == 2
        return
    if change == "mask":
        with pytest.raises(DataError, match=r"Case0_test\.zraw: edited or damaged since"):
            predict(network, both[:1], config, about, skip_existing=True)
        assert not asked
        return
    wanted = Outputs(probability=change == "probability")
    predict(network, both[:1], config, about, wanted, skip_existing=True)
    assert len(asked) == (change != "nothing")
    assert set(rows_of(results)) == {"Case0", "Case1"}  # the folder's other masks keep their rows
    assert read_array(results / "Case0_test.mhd").any()


@pytest.mark.usefixtures("undrawn")
def test_a_mask_with_the_header_that_its_image_had_is_made_again(data, config, results):
    """Of a qform beside the sform, by which the image is read and which did not change."""
    path, qoffset = data / "img" / "Case1.nii.gz", slice(268, 280)
    predict(bright, find_images([path]), config, {})
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[qoffset] = np.array([1, 2, 3], "<f4").tobytes()
    path.write_bytes(gzip.compress(content))
    for _ in range(2):
        network, asked = counting()
        predict(network, find_images([path]), config, {}, skip_existing=True)
        mask = gzip.decompress((results / "Case1_test.nii.gz").read_bytes())
        assert mask[qoffset] == content[qoffset]
    assert not asked  # the second time


@pytest.fixture
def edited(data, results, config):
    """Predictions of Case0 and Case1, whose mask was edited since; the images and that mask."""
    both = find_images([data / "img" / "Case0.mhd", data / "img" / "Case1.nii.gz"])
    predict(bright, both, config, {})
    mask = results / "Case1_test.nii.gz"
    volume = sitk.ReadImage(str(mask))
    volume[1, 1, 1] = 1
    sitk.WriteImage(volume, str(mask))
    return both, mask


@pytest.mark.usefixtures("undrawn")
def test_an_edited_mask_stays_and_is_told(edited, results, config):
    """Its volume in the lists would not be its own, and a new mask would be in its place."""
    both, mask = edited
    content = mask.read_bytes()
    for images in (both, both[1:], both):
        network, asked = counting()
        words = (
            "1 of 2 earlier masks could not be made anew"
            if len(images) > 1
            else f"{mask}: edited or damaged since this program wrote it"
        )
        with pytest.raises(DataError, match=words):
            predict(network, images, config, {}, skip_existing=True)
        assert not asked and mask.read_bytes() == content
    assert rows_of(results)["Case1"]["problem"].startswith(f"{mask}: edited or damaged since")
    mask.rename(results / "mine.nii.gz")
    predict(network, both, config, {}, skip_existing=True)
    assert len(asked) == 1 and rows_of(results)["Case1"]["problem"] == ""


@pytest.mark.usefixtures("undrawn")
def test_an_edited_mask_is_not_replaced(edited, results, config):
    both, mask = edited
    before = tree(results)
    network, asked = counting()
    for images in (both, both[1:]):
        with pytest.raises(DataError, match=rf"{mask}: edited .*, or choose another folder"):
            predict(network, images, config, {})
    for name in ("volumes.json", "volumes.csv"):
        (results / name).write_text("{}")
        for skip_existing in (False, True):
            with pytest.raises(DataError, match=f"({name}|{mask.name}): edited or damaged since"):
                predict(network, both, config, {}, skip_existing=skip_existing)
        (results / name).write_bytes(before[name])
    assert not asked and tree(results) == before
    predict(network, both[:1], config, {})
    assert len(asked) == 1 and list(rows_of(results)) == ["Case0"]
    for skip_existing in (False, True):  # it has no row any more
        with pytest.raises(DataError, match=rf"{mask}: edited"):
            predict(network, both[1:], config, {}, skip_existing=skip_existing)
    assert mask.read_bytes() == before[mask.name]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("edited_mask", [False, True])
def test_foreign_files_are_told_before_the_network_runs(edited, results, config, edited_mask):
    """Also of an image with an earlier mask, and one of which a part is gone."""
    both, mask = edited
    if not edited_mask:
        mask.unlink()
        predict(bright, both[1:], config, {}, skip_existing=True)
    (results / "Case0_probability.mhd").write_text("mine")
    network, asked = counting()
    with pytest.raises(DataError, match=r"Case0_probability\.mhd: there already, and not written"):
        predict(network, both, config, {}, Outputs(probability=True), skip_existing=True)
    assert not asked


@pytest.mark.usefixtures("undrawn")
def test_a_mask_of_another_image_of_the_same_name_stays(data, results, config, tmp_path):
    """In the folders of two sites, say."""
    first, other = data / "img" / "Case1.nii.gz", tmp_path / "other" / "Case1.nii.gz"
    other.parent.mkdir()
    predict(bright, find_images([first]), config, {})
    shutil.copy(first, other)
    network, asked = counting()
    predict(network, find_images([other]), config, {}, skip_existing=True)  # the same image, moved
    (row,) = strict_json(results / "volumes.json")["cases"]
    assert not asked and row["image"] == str(other)
    before = tree(results)
    image = sitk.ReadImage(str(first))
    image[0, 0, 0] = 5
    sitk.WriteImage(image, str(first))
    with pytest.raises(DataError, match=rf"Case1_test\.nii\.gz: of {other}; rename one"):
        predict(network, find_images([first]), config, {}, skip_existing=True)
    assert not asked and tree(results) == before
    same = tmp_path / "other" / ".." / "other" / "Case1.nii.gz"
    settings = override_config(config, ["threshold=0.4"])
    predict(network, find_images([same]), settings, {}, skip_existing=True)
    assert len(asked) == 1


@pytest.mark.usefixtures("undrawn")
def test_an_earlier_mask_of_an_image_that_cannot_be_read_is_told(data, results, config):
    images = find_images([data / "img"])
    predict(bright, images, config, {})
    path = images[1].source
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(DataError, match="1 of 3 images could not be segmented"):
        predict(bright, images, config, {})
    problem = rows_of(results)["Case1"]["problem"]
    assert problem.endswith(f"; {results / 'Case1_test.nii.gz'} is of an earlier prediction")
    path.write_bytes(content)
    predict(bright, images, config, {})
    row = rows_of(results)["Case1"]
    path.write_bytes(content[:100])
    with pytest.raises(DataError, match="1 of 3 earlier masks could not be made anew"):
        predict(bright, images, config, {}, skip_existing=True)
    kept = rows_of(results)["Case1"]
    assert kept.pop("problem").endswith("; its earlier mask stays")
    assert kept.items() <= row.items()


@pytest.mark.usefixtures("undrawn")
def test_a_segmentation_of_a_study_that_was_anonymised_is_made_again(tmp_path, config, results):
    pytest.importorskip("highdicom")
    study = write_study(tmp_path / "study")
    images, wanted = find_images([study]), Outputs(["dicom_seg"])
    predict(bright, images, config, {}, wanted)
    for path in study.rglob("IM*"):
        header = pydicom.dcmread(path)
        header.PatientID = "anonymous"
        header.save_as(path)
    predict(bright, images, config, {}, wanted, skip_existing=True)
    assert pydicom.dcmread(results / "study_test.dcm").PatientID == "anonymous"
