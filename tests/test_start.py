"""What a start imports: MindSpore when a network is needed, what draws in other processes."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT

HEAVY = ("mindspore", "matplotlib", "pandas", "pydicom")


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("src.commands.predict, src.commands.eval", ""),
        ("src.api, src.prediction, src.evaluation, src.input_images", ""),
        ("src.report.pictures", "matplotlib pandas"),
    ],
)
def test_heavy_modules_are_imported_where_they_are_needed(modules, expected):
    code = f"import {modules}, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")
