"""Patterns of `--image_pattern` and `--mask_pattern`."""

import pytest

from src.promise12.layouts.patterns import match_case
from src.utils.errors import UsageError


@pytest.mark.parametrize(
    "pattern, path, case",
    [
        ("{case}/t2.nii", "A 1/t2.nii", "A 1"),
        ("{case}/t2.nii", "x/A/t2.nii", None),
        ("**/{case}/t2*.nii.gz", "x/y/A/t2_tse.nii.gz", "A"),
        ("**/{case}/t2.nii", "A/t2.nii", "A"),
        ("{case}/{case}_t2.nii", "A/A_t2.nii", "A"),
        ("{case}/{case}_t2.nii", "A/B_t2.nii", None),
        ("{case}_000?.nii", "a_b_0001.nii", "a_b"),
        ("{case}.nii", "a+nii", None),
        ("./img/{case}.nii", "img/a(1).nii", "a(1)"),
    ],
)
def test_patterns(pattern, path, case):
    assert match_case(pattern, path) == case


def test_pattern_without_a_case():
    with pytest.raises(UsageError, match=r"\*.nii: no \{case\} in it"):
        match_case("*.nii", "a.nii")
