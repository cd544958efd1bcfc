"""3D Slicer's segmentation files: fields as in its developer guide, and the image's own grid."""

import re

import numpy as np
import pytest
import SimpleITK as sitk

from src.images.reading import read_volume
from src.images.seg_nrrd import save_seg_nrrd
from tests.volumes import geometry_error, image_of

OBLIQUE = [[0.8, -0.6, 0.0], [0.36, 0.48, -0.8], [0.48, 0.64, 0.6]]


def fields_of(path):
    """The fields `name:=value` of an NRRD file."""
    header = path.read_bytes().split(b"\n\n", 1)[0].decode()
    return dict(re.findall(r"^(\w+):=(.*)$", header, re.MULTILINE))


def saved(tmp_path, voxels, direction=OBLIQUE):
    mask = image_of(voxels, (0.4, 0.4, 3.3), direction=direction)
    path = tmp_path / "case_test.seg.nrrd"
    save_seg_nrrd(mask, path)
    return mask, path


@pytest.mark.parametrize("direction", [OBLIQUE, np.diag([-1.0, 1.0, -1.0]), np.eye(3)[[2, 0, 1]]])
def test_voxels_and_geometry_come_back(tmp_path, direction):
    mask, path = saved(tmp_path, np.random.default_rng(0).random((4, 5, 6)) > 0.5, direction)
    for written in (sitk.ReadImage(str(path)), read_volume(path)):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(mask))
        assert written.GetPixelID() == sitk.sitkUInt8
        assert geometry_error(written, mask) <= 1e-12


def test_the_segment_is_described(tmp_path):
    voxels = np.zeros((4, 5, 6), bool)
    voxels[1:3, 0:4, 2] = True
    fields = fields_of(saved(tmp_path, voxels)[1])
    assert fields["Segment0_Name"] == "Prostate" and fields["Segment0_ID"]
    assert fields["Segment0_LabelValue"] == "1" and fields["Segment0_Layer"] == "0"
    assert fields["Segment0_Extent"] == "2 2 0 3 1 2"
    assert fields["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    assert fields["Segmentation_SourceRepresentation"] == "Binary labelmap"
    color = np.array(fields["Segment0_Color"].split(), float) * 255
    np.testing.assert_allclose(color, [230, 158, 140], atol=1e-3)
    key, _, terms = fields["Segment0_Tags"].rstrip("|").partition(":")
    parts = terms.split("~")
    assert key == "TerminologyEntry" and len(parts) == 7
    assert parts[1:4] == ["SCT^123037004^Anatomical Structure", "SCT^41216001^Prostate", "^^"]


def test_an_empty_mask_has_an_empty_extent(tmp_path):
    mask, path = saved(tmp_path, np.zeros((4, 5, 6), bool))
    assert fields_of(path)["Segment0_Extent"] == "0 -1 0 -1 0 -1"
    assert read_volume(path).GetSize() == mask.GetSize()
