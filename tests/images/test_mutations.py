"""Damaged MetaImage and NRRD files: read as a small reader of this file does, or refused in a line.

`tests/images/test_nifti.py` and `test_dicom.py` do the same for theirs.
"""

import re

import numpy as np
import pytest
import SimpleITK as sitk

from src.images.reading import read_volume
from src.utils.errors import DataError

SIZE_XYZ = (7, 6, 5)
SPACES = {"left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1)}
SPACES["left-anterior-superior"] = (1, -1, 1)


def numbers(text):
    return np.array([float(part) for part in re.split(r"[\s,()]+", text) if part])


def meta_geometry(text):
    """Size, spacing, origin, direction (3, 3) of a MetaImage header, by its specification."""
    header = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    spacing = header.get("ElementSpacing", header.get("ElementSize", "1 1 1"))
    return (
        numbers(header["DimSize"]),
        numbers(spacing),
        numbers(header.get("Offset", "0 0 0")),
        numbers(header.get("TransformMatrix", "1 0 0 0 1 0 0 0 1")).reshape(3, 3).T,
    )


def nrrd_geometry(text):
    """The same of an NRRD header."""
    fields = re.findall(r"^([\w ]+): (.*?)\s*$", text, re.MULTILINE)
    header = {name.lower(): value for name, value in fields}
    signs = np.array(SPACES[header["space"]])
    vectors = numbers(header["space directions"]).reshape(3, 3) * signs
    spacing = np.linalg.norm(vectors, axis=1)
    origin = numbers(header["space origin"]) * signs
    return numbers(header["sizes"]), spacing, origin, (vectors / spacing[:, None]).T


READERS = {".mha": meta_geometry, ".mhd": meta_geometry, ".nrrd": nrrd_geometry}


def damaged(content, header_bytes, rng):
    """One fault: in most cases of the header, as a slip of an editor or of a disk leaves it."""
    header, voxels = bytearray(content[:header_bytes]), content[header_bytes:]
    kind = rng.integers(8)
    digits = [i for i, byte in enumerate(header) if 48 <= byte <= 57]
    lines = bytes(header).splitlines(keepends=True)
    line = int(rng.integers(len(lines)))
    if kind <= 2:  # another digit, sign or letter in the place of a digit
        header[rng.choice(digits)] = rng.choice(bytearray(b"0123456789-x. "))
    elif kind == 3:
        header[rng.integers(len(header))] ^= 1 << rng.integers(8)
    elif kind == 4:
        header = b"".join(lines[:line] + lines[line + 1 :])
    elif kind == 5:
        header = b"".join(lines[: line + 1] + lines[line:])
    elif kind == 6:
        return content[: rng.integers(len(content))]
    else:
        position = rng.integers(len(voxels))
        return bytes(header) + voxels[:position] + voxels[position + rng.integers(1, 9) :]
    return bytes(header) + voxels


def check_mutations(folder, make_image, direction, count, seed):
    """Damages good files; returns how many were read and how many refused."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 900, SIZE_XYZ[::-1]).astype(np.int16)
    outcomes = {"read": 0, "refused": 0}
    for number in range(count):
        suffix = (".mha", ".nrrd", ".mhd")[number % 3]
        image = make_image(values, (0.625, 0.75, 3.6), (-31.7, 12.9, 101.3), direction)
        path = folder / f"scan{suffix}"
        sitk.WriteImage(image, str(path), bool(rng.integers(2)))
        content = path.read_bytes()
        end = {".mhd": len(content), ".nrrd": content.find(b"\n\n") + 2}.get(
            suffix, content.find(b"LOCAL\n") + 6
        )
        if suffix == ".mhd":
            content += b"\n"
        broken = damaged(content, end, rng)
        path.write_bytes(broken)
        try:
            found = read_volume(path)
        except DataError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) and str(folder / "scan") in str(error)
            continue
        outcomes["read"] += 1
        text = broken.partition(b"\n\n")[0] if suffix == ".nrrd" else broken
        size, spacing, origin, axes = READERS[suffix](text.decode("latin-1"))
        said = f"{number} {suffix}\n{text.decode('latin-1')}"
        np.testing.assert_array_equal(found.GetSize(), size, said)
        np.testing.assert_allclose(found.GetSpacing(), spacing, atol=1e-9, err_msg=said)
        np.testing.assert_allclose(found.GetOrigin(), origin, atol=1e-9, err_msg=said)
        np.testing.assert_allclose(
            np.reshape(found.GetDirection(), (3, 3)), axes, atol=6e-3, err_msg=said
        )
    return outcomes


def test_damaged_files_are_read_right_or_refused(tmp_path, make_image, oblique):
    outcomes = check_mutations(tmp_path, make_image, oblique, 60, 0)
    assert outcomes["read"] > 5 and outcomes["refused"] > 20


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_damaged_files_are_read_right_or_refused(tmp_path, make_image, oblique, seed):
    check_mutations(tmp_path, make_image, oblique, 200, seed)
