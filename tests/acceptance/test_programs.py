"""Which programs are run on which machine."""

import pytest

from src.acceptance import programs
from src.acceptance.table import Table

ROW = "| 0     {chip}   | OK            | NA           45                0     / 0             |"
MEMORY = "| 0       0        | 0000:C1:00.0  | 0            3104 / 65536                          |"


@pytest.mark.parametrize(
    ("chip", "is_310"),
    [("310", True), ("310P3", True), ("Ascend310B4", True), ("910B3", False), ("9310", False)],
)
def test_the_program_of_the_310_runs_on_a_310_only(tmp_path, monkeypatch, chip, is_310):
    """Known by the chip's name in npu-smi's table; its memory may have such a number, too."""
    shown = f"{ROW.format(chip=chip)}\n{MEMORY}\n"
    monkeypatch.setattr(programs, "output_of", lambda *_: shown)
    table = Table(quiet=True)
    programs.check_310("Ascend", table, tmp_path)
    (row,) = table.rows
    assert (row["found"] != "no Ascend 310 here") == is_310
