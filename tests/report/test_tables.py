"""metrics.csv and .json, volumes.csv and .json: what is written comes back."""

import json
import math
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from easydict import EasyDict

from src.images.formats import OUTPUT_TYPES
from src.metrics import summarize
from src.report.tables import (
    CSV_COLUMNS,
    JSON_KEYS,
    VolumesTable,
    volumes_text,
    write_metrics,
    zoo_lines,
)
from src.utils.output_folder import register
from tests.helpers import ROOT, strict_json
from tests.report.made import ROWS


def test_metrics_csv_comes_back_as_written(tmp_path):
    last = [{**{k: v for k, v in row.items() if k != "case"}, "case": row["case"]} for row in ROWS]
    write_metrics(last, tmp_path / "new" / "folder")
    table = pd.read_csv(tmp_path / "new" / "folder" / "metrics.csv")
    assert list(table.columns) == list(ROWS[0])
    assert table["case"].tolist() == [row["case"] for row in ROWS]
    for key in table.columns[1:]:
        assert table[key].tolist() == pytest.approx([row[key] for row in ROWS], abs=1e-6), key


def test_metrics_json_holds_cases_summary_flags_and_extra(tmp_path):
    extra = {"checkpoint": Path("ckpt", "best.ckpt"), "config": EasyDict(VolSize=[64, 64, 32])}
    rows = [*ROWS, {**ROWS[0], "case": "no apex", "apex_empty": 1.0}]
    write_metrics(rows, tmp_path, extra)
    content = strict_json(tmp_path / "metrics.json")
    assert content == {
        "checkpoint": str(Path("ckpt", "best.ckpt")),
        "config": {"VolSize": [64, 64, 32]},
        "summary": summarize(rows),
        "flagged": ["missed"],
        "cases": rows,
    }


def test_a_path_that_is_not_utf8_is_kept_as_an_escape(tmp_path):
    path = os.fsdecode(b"r\xfcn/best.ckpt")
    write_metrics(ROWS, tmp_path, {"checkpoint": path})
    assert json.loads((tmp_path / "metrics.json").read_bytes())["checkpoint"] == path


@pytest.mark.parametrize(
    ("value", "error"), [(math.nan, ValueError), (math.inf, ValueError), ({1}, TypeError)]
)
def test_what_json_cannot_hold_leaves_no_file(tmp_path, value, error):
    with pytest.raises(error):
        write_metrics(ROWS, tmp_path, {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_zoo_lines():
    rows = [
        {**ROWS[0], "dice": d, "hausdorff_mm": h} for d, h in ((0.75, 10.5), (0.5, 2), (0.25, 1))
    ]
    assert zoo_lines(rows) == ["avg_Hausdorff_distance: 4.5", "avg_dice: 0.5"]


# volumes.csv and volumes.json --------------------------------------------------------------------


def volume_row(case, **fields):
    empty = dict.fromkeys(JSON_KEYS) | {"findings": [], "findings_text": [], "outputs": {}}
    return {**empty, "case": case, "prostate_ml": 40.0, "mask": f"{case}_test.nrrd", **fields}


@pytest.fixture
def table(tmp_path):
    table = VolumesTable(tmp_path, {"checkpoint": "best.ckpt"})
    table.start(alone=True, cases=[], keep=False)
    return table


def test_rows_are_in_both_files_after_each_image(table, tmp_path):
    rows = [volume_row("a", findings=["small", "border"]), volume_row("b", problem="no image")]
    for count, row in enumerate(rows, 1):
        table.add(row)
        csv = pd.read_csv(tmp_path / "volumes.csv")
        assert csv.columns.tolist() == CSV_COLUMNS and csv["case"].tolist() == list("ab")[:count]
    assert csv["findings"][0] == "small;border" and csv["problem"][1] == "no image"
    content = strict_json(tmp_path / "volumes.json")
    metadata = {"schema": 1, "checkpoint": "best.ckpt"}
    assert content == {**metadata, "flagged": ["a", "b"], "cases": rows}
    assert table.rows() == rows


@pytest.mark.parametrize("page", ["docs/evaluation.md", "docs/zh/evaluation.md"])
def test_the_documents_name_every_column_and_key(page):
    lines = (ROOT / page).read_text("utf-8").splitlines()
    (columns,) = [line for line in lines if line.startswith("| `volumes.csv` |")]
    assert re.findall(r"`(\w+)`", columns) == CSV_COLUMNS
    start = lines.index("### volumes.json")
    end = next(number for number, line in enumerate(lines) if number > start and line[:3] == "## ")
    table = [line.split("|")[1] for line in lines[start:end] if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(table))) == JSON_KEYS
    kinds = [line for line in lines[:start] if re.match(r"\| `\w+` \| `NAME_test", line)]
    assert re.findall(r"^\| `(\w+)`", "\n".join(kinds), re.MULTILINE) == list(OUTPUT_TYPES)


def test_the_printed_table_is_aligned_and_has_no_empty_columns():
    rows = [volume_row("a", prostate_ml=7.0625), volume_row("long name")]
    assert volumes_text(rows) == (
        "     case prostate_ml                mask\n"
        "        a       7.062         a_test.nrrd\n"
        "long name      40.000 long name_test.nrrd"
    )
    rows.append(volume_row("b", mask=None, prostate_ml=None, problem="no image"))
    assert volumes_text([*rows, volume_row("c", findings=["small", "border"])]) == (
        "     case prostate_ml                mask     findings  problem\n"
        "        a       7.062         a_test.nrrd            -        -\n"
        "long name      40.000 long name_test.nrrd            -        -\n"
        "        b           -                   -            - no image\n"
        "        c      40.000         c_test.nrrd small;border        -"
    )


def test_the_csv_files_are_pandas_own(tmp_path, table):
    """Character by character, quotes and numbers included."""
    rows = [volume_row('odd, "name"', findings=["small", "border"]), volume_row("b", mask=None)]
    for row in [*rows, volume_row("c", prostate_ml=None, problem="one, two")]:
        table.add(row)
    frame = pd.DataFrame(table.rows(), columns=CSV_COLUMNS)
    frame["findings"] = frame["findings"].map(";".join)
    assert (tmp_path / "volumes.csv").read_text() == frame.to_csv(index=False)
    extreme = {**ROWS[0], "dice": 1e-7, "hausdorff_mm": 123456789.123456789}
    rows = [
        {**row, "findings": ["low_dice"], "findings_text": ["Dice below 0.8"]}
        for row in [*ROWS, extreme]
    ]
    write_metrics(rows, tmp_path)
    frame = pd.DataFrame(rows).drop(columns="findings_text")
    frame["findings"] = frame["findings"].map(";".join)
    flags = [key for key in frame.columns if key.endswith("empty")]
    expected = frame.astype(dict.fromkeys(flags, int)).to_csv(index=False, float_format="%.6f")
    assert (tmp_path / "metrics.csv").read_text() == expected


def test_a_case_has_one_row(table):
    for row in (volume_row("a"), volume_row("b"), volume_row("a", prostate_ml=7.0)):
        table.add(row)
    assert [(row["case"], row["prostate_ml"]) for row in table.rows()] == [("b", 40), ("a", 7)]


@pytest.mark.parametrize(
    ("alone", "keep", "earlier", "left"),
    [
        (True, False, [], []),
        (True, True, ["ours"], ["ours"]),  # a row is kept where its mask is there and ours
        (False, False, [], ["ours", "foreign"]),
        (False, True, ["ours"], ["ours", "foreign"]),
    ],
)
def test_which_rows_of_an_earlier_prediction_stay(table, tmp_path, alone, keep, earlier, left):
    for name in ("ours", "foreign"):
        table.add(volume_row(name))
    with register(tmp_path, ["ours_test.nrrd"]):
        (tmp_path / "ours_test.nrrd").touch()
    (tmp_path / "foreign_test.nrrd").touch()
    assert list(table.start(alone, [], keep)) == earlier
    assert [row["case"] for row in table.rows()] == left


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"case": "a"}]}', '{"cases": 1}'])
def test_a_table_of_another_version_has_no_rows(table, tmp_path, text):
    (tmp_path / "volumes.json").write_text(text)
    assert table.rows() == []
