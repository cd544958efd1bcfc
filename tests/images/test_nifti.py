"""NIfTI files made byte by byte: geometry in closed form and by nibabel's numbers, voxels, damage.

Fields are packed with struct at the offsets of nifti1.h and nifti2.h, not through `src`.
"""

import gzip
import itertools
import math
import struct
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.linalg import polar

from src.images.nifti import read_nifti, write_nifti
from src.images.writing import write_volume
from src.utils.errors import DataError
from tests.volumes import geometry_error, geometry_of

FIELDS = {
    1: {
        "sizeof_hdr": (0, "i"), "dim_info": (39, "B"), "dim": (40, "8h"), "intent_p": (56, "3f"),
        "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
        "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"), "cal_max": (124, "f"), "cal_min": (128, "f"),
        "toffset": (136, "f"), "descrip": (148, "80s"), "aux_file": (228, "24s"),
        "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"),
        "qoffset": (268, "3f"), "srow": (280, "12f"), "intent_name": (328, "16s"),
        "magic": (344, "4s"), "extension": (348, "4s"),
    },
    2: {
        "sizeof_hdr": (0, "i"), "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"),
        "dim": (16, "8q"), "intent_p": (80, "3d"), "pixdim": (104, "8d"), "vox_offset": (168, "q"),
        "scl_slope": (176, "d"), "scl_inter": (184, "d"), "cal_max": (192, "d"),
        "cal_min": (200, "d"), "toffset": (216, "d"), "descrip": (240, "80s"),
        "aux_file": (320, "24s"), "qform_code": (344, "i"), "sform_code": (348, "i"),
        "quatern": (352, "3d"), "qoffset": (376, "3d"), "srow": (400, "12d"),
        "xyzt_units": (500, "i"), "intent_code": (504, "i"), "intent_name": (508, "16s"),
        "dim_info": (524, "B"), "extension": (540, "4s"),
    },
}  # fmt: skip
MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
FIRST_VOXEL = {1: 352, 2: 544}
CODES = {
    "u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024,
    "u8": 1280,
}  # fmt: skip
VOXELS = np.arange(1, 61, dtype="i2").reshape(3, 4, 5)  # z, y, x
CORNERS = list(itertools.product((0, 4), (0, 3), (0, 2)))  # x, y, z
SROW = (-0.5, 0, 0, 91.5, 0, -0.5, 0, 64.25, 0, 0, 3, -17)
TURNED = (-0.4, -0.3, 0, 91.5, 0.3, -0.4, 0, 64.25, 0, 0, -3, -17)  # 0.5 x 0.5 x 3 mm
QFORM = {
    "quatern": (0, 0, 1),
    "qoffset": (91.5, 64.25, -17),
    "pixdim": (1, 0.5, 0.5, 3, 1, 1, 1, 1),
}


def packed(content, version, order, fields):
    for name, value in fields.items():
        offset, form = FIELDS[version][name]
        value = value if isinstance(value, tuple | list) else (value,)
        struct.pack_into(order + form, content, offset, *value)
    return content


def unpacked(content, version, order, name):
    offset, form = FIELDS[version][name]
    value = struct.unpack_from(order + form, content, offset)
    return value if len(value) > 1 else value[0]


def nifti(values=VOXELS, version=1, order="<", between=b"", **fields):
    """The bytes of a file: `SROW` with code 1 unless told otherwise."""
    sides = values.shape[::-1]
    first = FIRST_VOXEL[version] + len(between)
    standard = {
        "sizeof_hdr": FIRST_VOXEL[version] - 4,
        "magic": MAGIC[version],
        "dim": [len(sides), *sides] + [1] * (7 - len(sides)),
        "datatype": CODES[values.dtype.str[1:]],
        "bitpix": 8 * values.dtype.itemsize,
        "vox_offset": first,
        "scl_slope": 1,
        "xyzt_units": 2,
        "sform_code": 1,
        "srow": SROW,
        **QFORM,
    }
    if "srow" in fields:
        steps = np.linalg.norm(np.reshape(fields["srow"], (3, 4))[:, :3], axis=0)
        if np.isfinite(steps).all() and steps.all():
            standard["pixdim"] = (1, *steps, 1, 1, 1, 1)
    header = packed(bytearray(first), version, order, standard | fields)
    header[FIRST_VOXEL[version] : first] = between
    return bytes(header) + values.astype(values.dtype.newbyteorder(order)).tobytes()


@pytest.fixture
def read(tmp_path):
    """Function content -> image read from a file of these bytes."""

    def read_bytes(content, name="a.nii", channel=None):
        (tmp_path / name).write_bytes(content)
        return read_nifti(tmp_path / name, channel)

    return read_bytes


def lps(rows, index, unit_mm=1.0):
    """Where an affine of 12 numbers (RAS+) puts a voxel index, in LPS mm."""
    place = np.reshape(rows, (3, 4)) @ (*index, 1) * unit_mm
    return place * (-1, -1, 1)


def assert_lies_at(image, rows, unit_mm=1.0, tolerance_mm=2e-5):
    for index in CORNERS:
        place = image.TransformContinuousIndexToPhysicalPoint([float(side) for side in index])
        assert place == pytest.approx(lps(rows, index, unit_mm), abs=tolerance_mm)


# Geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [SROW, TURNED], ids=["flipped", "turned"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2])
def test_the_sform_places_the_voxels(read, version, order, rows):
    image = read(nifti(version=version, order=order, srow=rows))
    assert_lies_at(image, rows)
    assert image.GetSpacing() == pytest.approx((0.5, 0.5, 3), abs=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(image), VOXELS)
    assert image.GetPixelID() == sitk.sitkInt16


# Of nibabel 5.4.2, get_qform() of these quaternions (b, c, d), pixdim[0:4] and offsets.
NIBABEL_QFORMS = [
    (
        (0.1, -0.2, 0.3),
        (1, 0.5, 0.625, 3.6),
        (-91.5, 42.25, -17),
        [0.3699999917, -0.3727607064, -1.1194010350, -91.5]
        + [0.2582085639, 0.4999999907, -1.0997005327, 42.25]
        + [0.2154723734, 0.0409202282, 3.2399999034, -17],
    ),
    (
        (0.1, -0.2, 0.3),
        (-1, 0.5, 0.625, 3.6),
        (-91.5, 42.25, -17),
        [0.3699999917, -0.3727607064, 1.1194010350, -91.5]
        + [0.2582085639, 0.4999999907, 1.0997005327, 42.25]
        + [0.2154723734, 0.0409202282, -3.2399999034, -17],
    ),
    (  # b^2 + c^2 + d^2 = 1 - 1e-7: what is left for w is rounding
        (0.0005, 0.0001, 0.9999998),
        (1, 0.5, 0.5, 3),
        (80, -100, 10),
        [-0.4999997500, 5.0000006e-08, 0.0029999999, 80]
        + [5.0000006e-08, -0.4999999900, 0.0005999999, -100]
        + [0.0004999999, 0.0000999999, 2.9999984400, 10],
    ),
    (  # 1 + 2.4e-7
        (0.6, 0.0000003, 0.80000013),
        (1, 1, 1, 2),
        (0, 0, 0),
        [-0.2800001144, 3.599999e-07, 1.9199999332, 0]
        + [3.599999e-07, -1, 9.5999996e-07, 0]
        + [0.9599999666, 4.7999998e-07, 0.5600002289, 0],
    ),
]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("quatern", "pixdim", "qoffset", "rows"), NIBABEL_QFORMS)
def test_the_qform_places_the_voxels_as_in_nibabel(read, quatern, pixdim, qoffset, rows, order):
    fields = {"quatern": quatern, "pixdim": (*pixdim, 1, 1, 1, 1), "qoffset": qoffset}
    assert_lies_at(read(nifti(order=order, sform_code=0, qform_code=1, **fields)), rows)


@pytest.mark.parametrize(("qfac", "along_z"), [(1, 3), (0, 3), (-1, -3)])
def test_qfac_turns_the_third_axis(read, qfac, along_z):
    pixdim = (qfac, 0.5, 0.5, 3, 1, 1, 1, 1)
    image = read(nifti(sform_code=0, qform_code=1, **QFORM | {"pixdim": pixdim}))
    assert_lies_at(image, (*SROW[:10], along_z, -17))


def test_nifti_2_keeps_small_rotations_near_a_half_turn(read):
    w = 2e-4  # float32 does not tell it from 0; a rotation about z by 180 - 0.023 degrees
    fields = {"quatern": (0, 0, math.sqrt(1 - w * w)), "qoffset": (0, 0, 0)}
    cosine, sine = 2 * w * w - 1, 2 * w * math.sqrt(1 - w * w)
    rows = 0.5 * np.array([cosine, -sine, 0, 0, sine, cosine, 0, 0, 0, 0, 6, 0])
    image = read(nifti(version=2, sform_code=0, qform_code=1, **fields))
    assert_lies_at(image, rows, tolerance_mm=1e-9)


@pytest.mark.parametrize(
    ("codes", "shift_mm", "taken_shift_mm", "said"),
    [
        ((1, 1), 0, 0, ""),
        ((1, 1), 0.4, 0, ""),  # sform_code, qform_code; the qform is shifted
        ((1, 1), 0.6, 0, "its sform and qform are up to 0.6 mm apart; the sform is taken"),
        ((2, 1), 10, 0, "its sform and qform are up to 10.0 mm apart; the sform is taken"),
        ((1, 4), 10, 0, "its sform and qform are up to 10.0 mm apart; the sform is taken"),
        ((1, 0), 10, 0, ""),
        ((0, 1), 10, 10, ""),
    ],
)
def test_sform_first_and_a_line_where_the_qform_differs(
    read, capfd, codes, shift_mm, taken_shift_mm, said
):
    content = nifti(sform_code=codes[0], qform_code=codes[1], qoffset=(91.5 + shift_mm, 64.25, -17))
    rows = np.reshape(SROW, (3, 4)).copy()
    rows[0, 3] += taken_shift_mm
    for _ in range(2):
        assert_lies_at(read(content), rows)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == bool(said) and err.strip().endswith(said)  # once, not twice


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("units", "unit_mm"), [(0, 1), (2, 1), (1, 1000), (3, 0.001), (2 + 8, 1), (1 + 16, 1000)]
)
def test_units_are_converted_to_mm(read, version, units, unit_mm):
    rows = np.divide(SROW, unit_mm)
    pixdim = np.divide(QFORM["pixdim"], unit_mm)
    sform = read(nifti(version=version, xyzt_units=units, srow=rows.tolist()))
    assert_lies_at(sform, rows, unit_mm)
    fields = {"pixdim": [1, *pixdim[1:]], "qoffset": rows.reshape(3, 4)[:, 3].tolist()}
    fields |= {"sform_code": 0, "qform_code": 1, "quatern": (0, 0, 1)}
    assert_lies_at(read(nifti(version=version, xyzt_units=units, **fields)), SROW)


def sheared(degrees, moved=(10, -20, 30)):
    """Unit axes, but the second leans towards the first by an angle; then 12 numbers."""
    lean = math.radians(degrees)
    axes = np.array([[1, math.sin(lean), 0], [0, math.cos(lean), 0], [0, 0, 1]])
    return np.column_stack((axes * (0.5, 0.75, 3), moved)).ravel()


def test_a_slightly_sheared_sform_gives_the_nearest_rotation_around_the_centre(read):
    rows = sheared(0.25)
    image = read(nifti(srow=rows.tolist()))
    assert image.GetSpacing() == pytest.approx((0.5, 0.75, 3), abs=1e-6)
    direction = np.reshape(image.GetDirection(), (3, 3))
    assert direction.T @ direction == pytest.approx(np.eye(3), abs=1e-12)
    half = math.radians(0.25 / 2)  # each of the two axes gives way by half
    ras = [[math.cos(half), math.sin(half), 0], [-math.sin(half), math.cos(half), 0], [0, 0, 1]]
    assert direction == pytest.approx(np.diag([-1, -1, 1]) @ ras, abs=1e-6)
    centre = image.TransformContinuousIndexToPhysicalPoint((2, 1.5, 1))
    assert centre == pytest.approx(lps(rows, (2, 1.5, 1)), abs=1e-5)


@pytest.mark.parametrize("qform_code", [0, 1])
def test_a_sheared_sform_is_refused_even_beside_a_good_qform(read, qform_code):
    with pytest.raises(DataError, match=r"0\.95 degrees off perpendicular") as refusal:
        # Rounded or sheared: slices 3 mm apart that slide by 0.05 mm each
        read(nifti(qform_code=qform_code, srow=(-1, 0, 0.05, 0, 0, -1, 0, 0, 0, 0, 3, 0)))
    assert ("setsformcode 0" in str(refusal.value)) == bool(qform_code)
    with pytest.raises(DataError, match=r"0\.35 degrees"):
        read(nifti(srow=sheared(0.35).tolist()))


def test_volumes_of_simpleitk_are_read_as_it_wrote_them(tmp_path, make_image, oblique):
    for number, columns in enumerate(itertools.permutations(range(3))):
        flip = np.diag([1, -1 if number % 2 else 1, 1])
        image = make_image(VOXELS.astype("f4"), direction=(oblique @ flip)[:, columns])
        for suffix in (".nii", ".nii.gz"):
            path = tmp_path / f"{number}{suffix}"
            sitk.WriteImage(image, str(path))
            found = read_nifti(path)
            assert geometry_error(found, image) <= 1e-5
            assert np.array_equal(sitk.GetArrayFromImage(found), VOXELS)


def test_axes_along_the_patients_are_exact(read):
    for columns in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            axes = (np.eye(3) * signs)[:, columns]
            rows = np.column_stack((axes * (0.5, 0.75, 3), (8, -16, 32))).ravel()
            image = read(nifti(srow=rows.tolist()))
            assert image.GetDirection() == tuple((np.diag([-1, -1, 1]) @ axes).ravel())
            assert (image.GetSpacing(), image.GetOrigin()) == ((0.5, 0.75, 3), (-8, 16, 32))


def test_without_standard_error_the_line_goes_nowhere(read, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    read(nifti(qform_code=1, qoffset=(0, 0, 0)))
    assert capfd.readouterr() == ("", "")


# Voxels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("parts", [0, 1, 2])
def test_gzip_is_told_by_the_bytes(read, name, parts):
    """Plain, one gzip member, two members (as bgzip writes), whatever the name."""
    content = nifti()
    pieces = [content[:400], content[400:]] if parts == 2 else [content]
    stored = b"".join(map(gzip.compress, pieces)) if parts else content
    assert np.array_equal(sitk.GetArrayFromImage(read(stored, name)), VOXELS)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", CODES)
def test_voxels_keep_their_type(read, code, order):
    dtype = np.dtype(code)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    values = np.zeros((2, 3, 4), dtype)
    values[0, 0, :3] = limits.min, limits.max, limits.max // 3
    found = sitk.GetArrayFromImage(read(nifti(values, order=order)))
    assert found.dtype == dtype and np.array_equal(found, values)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("slope", "inter", "scaled"),
    [(0, 7, 0), (math.nan, 7, 0), (math.inf, 7, 0), (1, 0, 0)]
    + [(1, -0.5, 1), (-2, 0, 1), (0.375, 1024, 1)],
)
@pytest.mark.parametrize("code", ["u1", "i2", "f4", "f8"])
def test_scaling(read, version, slope, inter, scaled, code):
    values = VOXELS.astype(code)
    content = nifti(values, version=version, scl_slope=slope, scl_inter=inter)
    found = sitk.GetArrayFromImage(read(content))
    assert found.dtype == ("f8" if scaled else code)
    assert np.array_equal(found, VOXELS * slope + inter if scaled else values)


def test_nan_and_infinity_are_kept(read):
    values = VOXELS.astype("f4")
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    for slope in (1, 2):
        found = sitk.GetArrayFromImage(read(nifti(values, scl_slope=slope)))
        assert np.array_equal(found, values * slope, equal_nan=True)


@pytest.mark.parametrize("gzipped", [False, True])
def test_channels_of_a_4_d_file(read, gzipped):
    volumes = np.stack([VOXELS, VOXELS + 100, VOXELS + 200])
    content = gzip.compress(nifti(volumes)) if gzipped else nifti(volumes)
    for channel in range(3):
        image = read(content, channel=channel)
        assert np.array_equal(sitk.GetArrayFromImage(image), volumes[channel])
        assert_lies_at(image, SROW)
    for channel, reason in ((None, "3 volumes .*--channel N"), (3, "3 volume"), (-1, "3 volume")):
        with pytest.raises(DataError, match=reason):
            read(content, channel=channel)


def test_axes_of_length_one_are_no_channels(read):
    for sides in ([4, 5, 4, 3, 1, 1, 1, 1], [7, 5, 4, 3, 1, 1, 1, 1], [3, 5, 4, 3, 9, 9, 9, 9]):
        for channel in (None, 0):
            image = read(nifti(dim=sides), channel=channel)
            assert np.array_equal(sitk.GetArrayFromImage(image), VOXELS)
    with pytest.raises(DataError, match="1 volume"):
        read(nifti(), channel=1)


@pytest.mark.parametrize("version", [1, 2])
def test_extensions_are_passed_over(read, version):
    between = struct.pack("<2i", 32, 6) + b"a comment".ljust(24, b"\0")
    content = nifti(version=version, between=between, extension=b"\1\0\0\0")
    for stored in (content, gzip.compress(content)):
        assert np.array_equal(sitk.GetArrayFromImage(read(stored)), VOXELS)


# Bad files --------------------------------------------------------------------------------------


NAN, INF = math.nan, math.inf
BAD_FIELDS = [
    ({"magic": b"ni1\0"}, "half of a NIfTI pair"),
    ({"magic": b"\0\0\0\0"}, "Analyze"),
    ({"sizeof_hdr": 349}, "no NIfTI-1 or NIfTI-2 header"),
    ({"sizeof_hdr": 540}, "its header has 540: get the file again"),
    ({"datatype": 0}, r"data type 0 \(unknown\)"),
    ({"datatype": 32}, r"data type 32 \(complex64\)"),
    ({"datatype": 128}, r"data type 128 \(RGB\)"),
    ({"datatype": 1536}, r"data type 1536 \(float128\)"),
    ({"datatype": 1792}, "complex128"),
    ({"datatype": 2304}, "RGBA"),
    ({"datatype": 8}, "truncated, 472 bytes of 592"),
    ({"datatype": 2}, "more bytes than the 412"),
    ({"dim": (0, 5, 4, 3, 1, 1, 1, 1)}, "expected 3, then"),
    ({"dim": (8, 5, 4, 3, 1, 1, 1, 1)}, "expected 3, then"),
    ({"dim": (-3, 5, 4, 3, 1, 1, 1, 1)}, "expected 3, then"),
    ({"dim": (3, 5, 0, 3, 1, 1, 1, 1)}, "three positive sizes"),
    ({"dim": (3, -5, -4, 3, 1, 1, 1, 1)}, "three positive sizes"),
    ({"dim": (2, 5, 4, 3, 1, 1, 1, 1)}, r"2-D \(5 x 4\)"),
    ({"dim": (5, 5, 4, 1, 1, 3, 1, 1)}, "vector or matrix .*; save the wanted"),
    ({"dim": (3, 5, 4, 2, 1, 1, 1, 1)}, "more bytes than the 432"),
    ({"dim": (3, 5, 4, 4, 1, 1, 1, 1)}, "truncated, 472 bytes of 512"),
    ({"dim": (3, 999, 999, 999, 1, 1, 1, 1)}, "truncated, 472 bytes of 1994006350"),
    ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "expected at most 4294967296"),
    ({"vox_offset": 0}, "vox_offset 0, .* from 352"),
    ({"vox_offset": 348}, "vox_offset 348"),
    ({"vox_offset": 352.5}, "vox_offset 352.5"),
    ({"vox_offset": NAN}, "vox_offset nan"),
    ({"vox_offset": 1e30}, "truncated"),
    ({"vox_offset": 368}, "truncated, 472 bytes of 488"),
    ({"scl_inter": NAN}, "scl_inter nan"),
    ({"xyzt_units": 4}, "unit 4"),
    ({"sform_code": 0}, "sform_code and qform_code are 0"),
    ({"sform_code": -1}, "sform_code -1, .*; its header is damaged, get the file"),
    ({"qform_code": 6}, "qform_code 6, expected 0 to 5"),
    ({"pixdim": (1, 0, 0.5, 3, 1, 1, 1, 1)}, r"pixdim\) \(0, 0.5, 3\)"),
    ({"pixdim": (1, 0.5, -0.5, 3, 1, 1, 1, 1)}, r"\(0.5, -0.5, 3\)"),
    ({"pixdim": (1, 0.5, 0.5, NAN, 1, 1, 1, 1)}, r"\(0.5, 0.5, nan\)"),
    ({"pixdim": (1, INF, 0.5, 3, 1, 1, 1, 1)}, r"\(inf, 0.5, 3\)"),
    ({"qform_code": 1, "pixdim": (2, 0.5, 0.5, 3, 1, 1, 1, 1)}, r"pixdim\[0\]\) 2,"),
    ({"qform_code": 1, "quatern": (0, 0, 1.0001)}, r"quaternion \(0, 0, 1.0001\) .* longer than 1"),
    ({"qform_code": 1, "quatern": (NAN, 0, 1)}, "quaternion"),
    ({"qform_code": 1, "qoffset": (NAN, 0, 1)}, "its qform puts"),
    ({"qform_code": 1, "qoffset": (0, 1e9, 1)}, "its qform puts"),
    ({"srow": (NAN, *SROW[1:])}, "its sform has voxels"),
    ({"srow": (*SROW[:3], INF, *SROW[4:])}, "its sform puts"),
    ({"srow": (0,) * 12}, "voxels of .0, 0, 0. mm"),
    ({"pixdim": (1, 0.5, 0.5, 2.9, 1, 1, 1, 1)}, r"\(0.5, 0.5, 3\) mm by its sform, .*, 2.9\) by"),
    ({"pixdim": (1, 0.5, 0.5, 3.06, 1, 1, 1, 1)}, r"0.5, 3\) mm by its sform, .*, 3.06\) by"),
    (
        {"qform_code": 1, "pixdim": (1, 0.6, 0.5, 3, 1, 1, 1, 1)},
        r"\(0.5, 0.5, 3\) mm by its sform, \(0.6, 0.5, 3\) by its pixdim",
    ),
    ({"srow": (1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 3, 0)}, "90.00 degrees off"),
    ({"xyzt_units": 1}, r"voxels of \(500, 500, 3000\) mm, .*unit"),
    ({"xyzt_units": 3}, r"voxels of \(0.0005, 0.0005, 0.003\) mm, .*unit"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD_FIELDS)
def test_bad_headers_are_refused_in_one_line(read, capfd, fields, reason):
    for gzipped in (False, True):
        content = nifti(**fields)
        with pytest.raises(DataError, match=reason) as refusal:
            read(gzip.compress(content) if gzipped else content)
        assert "a.nii: " in str(refusal.value) and "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


GOOD, GZIPPED = nifti(), gzip.compress(nifti())
BAD_BYTES = [
    (b"", "first 0 bytes"),
    (b"\x1f\x8b", "first 0 bytes"),
    (b"\x1f\x8bno gzip stream", "gzip data is damaged"),
    (b"DICM" * 200, "no NIfTI"),
    (GOOD[:3], "first 3 bytes"),
    (GOOD[:347], "truncated, 347 bytes; its header has 348: get"),
    (GOOD[:352], "truncated, 352 bytes of 472"),
    (GOOD[:-1], "truncated, 471 bytes of 472"),
    (GOOD + b"\0", "more bytes than the 472"),
    (gzip.compress(GOOD[:-1]), "truncated, 471 bytes of 472"),
    (gzip.compress(GOOD + b"\0"), "more bytes than the 472"),
    (GZIPPED[:-9], "gzip data is damaged|truncated"),
    (GZIPPED[:-1], "gzip data is damaged"),
    (GZIPPED[:60], "truncated"),
    (GZIPPED + b"appended", "gzip data is damaged"),
    (GZIPPED[:-6] + bytes([GZIPPED[-6] ^ 1]) + GZIPPED[-5:], "gzip data is damaged .CRC"),
]


@pytest.mark.parametrize(
    ("content", "reason"),
    BAD_BYTES,
    ids=lambda part: part if isinstance(part, str) else f"{len(part)} bytes",
)
def test_damaged_files_are_refused_in_one_line(read, content, reason):
    with pytest.raises(DataError, match=reason) as refusal:
        read(content)
    assert "\n" not in str(refusal.value)


def test_zeros_behind_a_gzip_stream_are_padding(read):
    """As gzip itself takes them: tapes and some archives fill up blocks."""
    assert np.array_equal(sitk.GetArrayFromImage(read(GZIPPED + bytes(512))), VOXELS)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.nii", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            read_nifti(path)


@pytest.mark.parametrize(
    "content",
    [
        nifti(dim=(3, 999, 999, 999, 1, 1, 1, 1)),
        gzip.compress(nifti(dim=(3, 999, 999, 999, 1, 1, 1, 1))),
        gzip.compress(nifti() + bytes(2**26)),  # 64 MiB in 64 KiB
        nifti(version=2, dim=(4, 5, 4, 3, 2**60, 1, 1, 1)),
        nifti(version=2, vox_offset=2**60),
    ],
    ids=["size", "packed size", "bomb", "volumes", "offset"],
)
def test_claims_of_a_header_take_no_memory(read, content):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read(content, channel=0)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


# Writing ----------------------------------------------------------------------------------------

WRITTEN = {"dim", "datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min", "extension"}
WRITTEN |= {"intent_code", "intent_p", "intent_name", "vox_offset"}  # of 4-D: what is in a voxel
SHIFTED = {"qoffset": (81.5, 64.25, -17)}
LIKE = {
    "both equal": {"sform_code": 1, "qform_code": 1},
    "both differ": {"sform_code": 2, "qform_code": 1, **SHIFTED},
    "sform": {"sform_code": 4, "qform_code": 0, **SHIFTED},
    "sheared a little": {"srow": sheared(0.2).tolist()},
    "qform": {"sform_code": 0, "qform_code": 3, "srow": sheared(40).tolist()},
    "qfac": {
        "sform_code": 0,
        "qform_code": 1,
        "quatern": (0.1, -0.2, 0.3),
        "pixdim": (-1, 0.5, 0.625, 3.6, 2, 7, 7, 7),
    },
    "metre": {"xyzt_units": 1 + 8, "srow": np.divide(SROW, 1000).tolist()},
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", LIKE)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_carries_the_header_of_its_image(tmp_path, kind, version, order, suffix):
    """All bytes but those that describe voxels are the image's own, so every reader agrees."""
    texts = {"descrip": b"a scan", "aux_file": b"none", "intent_name": b"what", "dim_info": 57}
    voxels = {"scl_slope": 2, "scl_inter": 3, "cal_max": 90, "cal_min": 9, "intent_code": 1007}
    between = struct.pack("<2i", 16, 6) + b"comment\0"
    volumes = np.stack([VOXELS, VOXELS])
    fields = {**texts, **voxels, **LIKE[kind], "intent_p": (1, 2, 3), "toffset": 5}
    content = nifti(volumes, version, order, between, extension=b"\1\0\0\0", **fields)
    (tmp_path / "image.nii").write_bytes(content)
    image = read_nifti(tmp_path / "image.nii", channel=1)
    mask = sitk.Cast(image > 60, sitk.sitkUInt8)

    path = tmp_path / f"mask{suffix}"
    write_nifti(mask, path, like=tmp_path / "image.nii")
    written = path.read_bytes()
    assert (written[:2] == b"\x1f\x8b") == (suffix == ".nii.gz")
    written = gzip.decompress(written) if suffix == ".nii.gz" else written
    header, expected = bytearray(written[: FIRST_VOXEL[version]]), bytearray(content)
    described = {name: unpacked(header, version, order, name) for name in WRITTEN}
    for name in WRITTEN:  # alike, whatever they are, so that the rest can be compared
        offset, form = FIELDS[version][name]
        size = struct.calcsize(order + form)
        header[offset : offset + size] = expected[offset : offset + size] = bytes(size)
    assert header == expected[: FIRST_VOXEL[version]]
    assert described == {
        "dim": (3, 5, 4, 3, 1, 1, 1, 1), "datatype": 2, "bitpix": 8, "scl_slope": 1, "scl_inter": 0,
        "cal_max": 0, "cal_min": 0, "extension": bytes(4), "intent_code": 0,
        "intent_p": (0, 0, 0), "intent_name": bytes(16), "vox_offset": FIRST_VOXEL[version],
    }  # fmt: skip
    assert written[FIRST_VOXEL[version] :] == sitk.GetArrayFromImage(mask).tobytes()

    found = read_nifti(path)
    assert geometry_of(found) == geometry_of(image)
    if version == 1 and kind in ("both equal", "qform", "qfac"):  # where SimpleITK reads alike
        seen = sitk.ReadImage(str(path))
        assert geometry_error(seen, image) <= 1e-5
        assert np.array_equal(sitk.GetArrayFromImage(seen), sitk.GetArrayFromImage(mask))


def test_writing_a_mask_does_not_repeat_the_warning_about_its_image(tmp_path, capfd):
    (tmp_path / "image.nii").write_bytes(nifti(qform_code=1, qoffset=(101.5, 64.25, -17)))
    image = read_nifti(tmp_path / "image.nii")
    assert "10.0 mm apart; the sform is taken" in capfd.readouterr().err
    write_volume(image > 60, tmp_path / "mask.nii", like=tmp_path / "image.nii")
    assert capfd.readouterr().err == ""
    read_nifti(tmp_path / "mask.nii")  # which another program wrote, for all it knows
    assert f"{tmp_path / 'mask.nii'}: its sform and qform" in capfd.readouterr().err


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", CODES)
def test_voxels_are_written_in_their_type_and_the_headers_byte_order(tmp_path, code, order):
    (tmp_path / "like.nii").write_bytes(nifti(order=order))
    write_nifti(
        sitk.GetImageFromArray(VOXELS.astype(code)), tmp_path / "a.nii", tmp_path / "like.nii"
    )
    assert (tmp_path / "a.nii").read_bytes() == nifti(VOXELS.astype(code), order=order)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_new_header_holds_the_geometry_in_both_forms(tmp_path, make_image, oblique, suffix):
    for number, columns in enumerate(itertools.permutations(range(3))):
        direction = (oblique @ np.diag([1, -1 if number > 2 else 1, 1]))[:, columns]
        image = make_image(VOXELS.astype("f4") / 7, direction=direction)
        path = tmp_path / f"{number}{suffix}"
        write_nifti(image, path)
        content = path.read_bytes()
        content = bytearray(gzip.decompress(content) if suffix == ".nii.gz" else content)
        assert [unpacked(content, 1, "<", f"{form}form_code") for form in "qs"] == [1, 1]
        assert unpacked(content, 1, "<", "xyzt_units") == 2
        readers = [sitk.ReadImage(str(path)), read_nifti(path)]
        for code in ({"qform_code": 0}, {"sform_code": 0}):  # each form by itself
            (tmp_path / "one.nii").write_bytes(packed(content[:], 1, "<", code))
            readers.append(read_nifti(tmp_path / "one.nii"))
        for found in readers:
            assert geometry_error(found, image) <= 1e-5
            assert np.array_equal(sitk.GetArrayFromImage(found), VOXELS.astype("f4") / 7)
        write_nifti(image, tmp_path / f"again{suffix}")
        assert (tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()


def test_directions_that_a_header_rounds_are_written_as_unit_vectors(tmp_path):
    image = sitk.GetImageFromArray(VOXELS)
    image.SetDirection((1.004, 0, 0, 0, 0.997, 0.003, 0, -0.001, 1))
    write_nifti(image, tmp_path / "scan.nii")
    direction = np.reshape(read_nifti(tmp_path / "scan.nii").GetDirection(), (3, 3))
    np.testing.assert_allclose(np.linalg.norm(direction, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(direction, np.reshape(image.GetDirection(), (3, 3)), atol=0.005)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "like.nii").write_bytes(nifti())
    (tmp_path / "text.nii").write_text("no header")
    volume = sitk.Image([5, 4, 3], sitk.sitkUInt8)
    leaning = sitk.Image(volume)
    leaning.SetDirection((1, 0.1, 0, 0, 1, 0, 0, 0, 1))
    cases = [
        (leaning, None, ValueError, "not perpendicular"),
        (sitk.Image([5, 4, 4], sitk.sitkUInt8), "like.nii", ValueError, r"\(5, 4, 3\)"),
        (sitk.Image([4, 5, 3], sitk.sitkUInt8), "like.nii", ValueError, r"\(4, 5, 3\)"),
        (sitk.Image([5, 4], sitk.sitkUInt8), None, ValueError, "not 3-D"),
        (sitk.Image([5, 4, 3], sitk.sitkVectorUInt8, 2), None, ValueError, "vector"),
        (sitk.Image([5, 4, 3], sitk.sitkComplexFloat32), None, ValueError, "complex"),
        (sitk.Image([40000, 1, 1], sitk.sitkUInt8), None, ValueError, "32767"),
        (volume, "text.nii", DataError, "no NIfTI"),
    ]
    for image, like, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            write_nifti(image, tmp_path / "out.nii", like and tmp_path / like)
        assert not (tmp_path / "out.nii").exists()


# Mutations --------------------------------------------------------------------------------------

GEOMETRY_FIELDS = ["sform_code", "qform_code", "srow", "quatern", "qoffset", "pixdim", "xyzt_units"]
VOXEL_FIELDS = ["dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter"]
HARMLESS = ["dim_info", "intent_p", "intent_code", "cal_max", "toffset", "descrip", "aux_file"]
ODD_NUMBERS = [0, 1, 2, 3, -1, 4, 5, 16, 64, 512, 32767, -32768, 0.5, 1e9, 1e-9]
ODD_NUMBERS += [math.nan, math.inf, -math.inf]


def reference(content, version, order):
    """`(affine to LPS (3, 4), values (z, y, x))` by the stated rules; for files that are read."""

    def field(name):
        return unpacked(content, version, order, name)

    if field("sform_code") > 0:
        affine = np.reshape(field("srow"), (3, 4)).astype(float)
    else:
        b, c, d = field("quatern")
        square = 1 - b * b - c * c - d * d
        a = math.sqrt(square) if square > (4e-7 if version == 1 else 1e-15) else 0.0
        pixdim = field("pixdim")
        turn = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ])  # fmt: skip
        turn = turn * (pixdim[1], pixdim[2], math.copysign(pixdim[3], pixdim[0] or 1))
        affine = np.column_stack((turn, field("qoffset")))
    affine = affine * {0: 1, 1: 1000, 2: 1, 3: 0.001}[field("xyzt_units") & 7]
    size = field("dim")[1:4]
    spacing = np.sqrt((affine[:, :3] ** 2).sum(0))
    middle = [*((side - 1) / 2 for side in size), 1]
    rotation, _ = polar(affine[:, :3] / spacing)
    grid = np.column_stack((rotation * spacing, np.zeros(3)))
    grid[:, 3] = affine @ middle - grid @ middle
    code = {number: name for name, number in CODES.items()}[field("datatype")]
    first = int(field("vox_offset"))
    count = math.prod(size)
    values = np.frombuffer(content, order + code, count, first).reshape(size[::-1])
    slope, inter = field("scl_slope"), field("scl_inter")
    if slope and math.isfinite(slope) and (slope, inter) != (1, 0):
        with np.errstate(all="ignore"):
            values = values.astype(float) * slope + inter
    return grid * [[-1], [-1], [1]], values


def mutate(rng, content, version, order):
    """A damaged copy of a file's bytes, and which kind of damage it is."""
    content = bytearray(content)
    kind = rng.choice(["geometry", "voxels", "harmless", "header byte", "bit", "cut", "append"])
    names = {"geometry": GEOMETRY_FIELDS, "voxels": VOXEL_FIELDS, "harmless": HARMLESS}.get(kind)
    if names:
        offset, form = FIELDS[version][names[rng.integers(len(names))]]
        step = struct.calcsize(order + form[-1])
        places = struct.calcsize(order + form) // step
        place = offset + step * int(rng.integers(places))
        if form[-1] in "fd":
            number = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
        else:
            number = int(ODD_NUMBERS[rng.integers(12)]) % 256 ** struct.calcsize(order + form[-1])
        form = {"h": "H", "i": "I", "q": "Q", "s": "B"}.get(form[-1], form[-1])
        struct.pack_into(order + form, content, place, number % 256 if form == "B" else number)
    elif kind == "header byte":
        content[rng.integers(FIRST_VOXEL[version])] = rng.integers(256)
    elif kind == "bit":
        content[rng.integers(FIRST_VOXEL[version])] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    else:
        content += rng.bytes(rng.integers(1, 40))
    return bytes(content), str(kind)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_damaged_files_are_read_as_an_independent_reader_does_or_refused(read, count):
    rng = np.random.default_rng(20)
    outcomes = Counter()
    bases = [
        {},
        {"srow": TURNED, "qform_code": 1, **SHIFTED},
        {"sform_code": 0, "qform_code": 1, "quatern": (0.1, -0.2, 0.3)},
    ]
    for number in range(count):
        version, order = int(rng.integers(1, 3)), "<>"[rng.integers(2)]
        volume = VOXELS.astype(list(CODES)[rng.integers(len(CODES))])
        good = nifti(volume, version, order, **bases[number % len(bases)])
        content, kind = mutate(rng, good, version, order)
        stored = content
        if rng.random() < 0.5:
            stored = bytearray(gzip.compress(content, mtime=0))
            if rng.random() < 0.2:
                stored[rng.integers(10, len(stored))] ^= 1 << int(rng.integers(8))
                kind = "gzip"
        tracemalloc.start()
        try:
            image = read(bytes(stored))
        except DataError as refusal:
            assert "\n" not in str(refusal) and "a.nii: " in str(refusal), (number, kind)
            assert kind != "harmless", (number, refusal)
            outcomes["refused"] += 1
            continue
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**23, (number, kind)
        grid, values = reference(content, version, order)
        assert image.GetSize() == values.shape[::-1], (number, kind)
        for index in itertools.product(*((0, side - 1) for side in image.GetSize())):
            found = image.TransformContinuousIndexToPhysicalPoint([float(side) for side in index])
            assert found == pytest.approx(grid @ (*index, 1), abs=1e-4), (number, kind)
        assert np.array_equal(sitk.GetArrayFromImage(image), values, equal_nan=True), (number, kind)
        outcomes["read"] += 1
    assert min(outcomes["read"], outcomes["refused"]) >= count // 5, outcomes
