"""Tables of results for programs and people: metrics.csv and .json, volumes.csv and .json."""

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..images.writing import volume_files
from ..measurements import MEASURES
from ..metrics import summarize
from ..utils import output_folder
from ..utils.errors import DataError
from ..utils.files import write_files

METRICS_CSV, METRICS_JSON = "metrics.csv", "metrics.json"
VOLUMES_CSV, VOLUMES_JSON = "volumes.csv", "volumes.json"
TEXT_COLUMNS = ["case", "prostate_ml", "mask", "findings", "problem"]  # of the printed table
CSV_COLUMNS = [*TEXT_COLUMNS, *(key for key in MEASURES if key != "prostate_ml")]  # of volumes.csv
VOLUMES_SCHEMA = 1  # of volumes.json; a larger number where a key changes or goes
# Keys that tables of earlier versions do not have.
LATER_KEYS = ("image_sha256", "study_sha256")
# Keys of each case in volumes.json; docs/evaluation.md says what they are.
JSON_KEYS = {
    *CSV_COLUMNS,
    *("image", "series", "channel", "outputs", "findings_text"),
    *("fingerprint", *LATER_KEYS),
}

NO_TABLE: dict[str, Any] = {"cases": []}


def write_metrics(rows: list[dict], directory: str | Path, metadata: dict | None = None) -> None:
    """Writes `metrics.csv` (a row per case) and `metrics.json`.

    Args:
        rows: {"case": id, **case_metrics(...)} of each case; also "findings", a list of codes, and
            "findings_text", which is for the JSON only.
        directory: created if absent.
        metadata: first keys of the JSON, such as checkpoint and configuration. `summary`,
            `flagged` (cases with an empty mask) and `cases` follow.

    Raises:
        DataError: the files cannot be written.
        ValueError: a number is NaN or infinite, which strict JSON cannot hold.
    """
    columns = ["case", *(key for key in rows[0] if key not in ("case", "findings_text"))]
    table = _csv(columns, ([_metric_text(key, row[key]) for key in columns] for row in rows))
    content = {
        **(metadata or {}),
        "summary": summarize(rows),
        "flagged": [row["case"] for row in rows if row["empty"]],
        "cases": rows,
    }
    _write(Path(directory, METRICS_CSV), table, Path(directory, METRICS_JSON), content)


def _metric_text(key: str, value: Any) -> object:
    """A value in metrics.csv: flags as 0 or 1, other numbers with six decimals."""
    if key == "findings":
        return _codes(value)
    if key.endswith("empty"):
        return int(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def _codes(findings: Iterable[str]) -> str:
    return ";".join(findings)


def _csv(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _write(csv_path, table, json_path, content):
    """Writes both files, or neither."""
    text = json.dumps(content, indent=2, allow_nan=False, default=os.fspath, ensure_ascii=False)
    # Bytes of a file name that are not UTF-8 become JSON escapes.
    json_bytes = f"{text}\n".encode(errors="backslashreplace")
    write_files({csv_path: table.encode(), json_path: json_bytes})


def zoo_lines(rows: list[dict]) -> list[str]:
    """Returns the last two lines of the zoo's evaluation: mean Hausdorff distance (mm), mean Dice.

    The zoo measures the distance between masks (SimpleITK), this project the one between surfaces:
    they are equal for convex shapes, and the latter is larger where one mask fills a concavity of
    the other.
    """
    statistics = summarize(rows)
    return [
        f"avg_Hausdorff_distance: {statistics['hausdorff_mm']['mean']}",
        f"avg_dice: {statistics['dice']['mean']}",
    ]


def volumes_text(rows: list[dict]) -> str:
    """Returns the rows of a prediction as an aligned table, without columns that are empty."""
    shown = [(key, [_volume_text(key, row[key]) for row in rows]) for key in TEXT_COLUMNS]
    columns = [
        [key, *texts]
        for key, texts in shown
        if key not in ("findings", "problem") or any(text != "-" for text in texts)
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        " ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def _volume_text(key: str, value: Any) -> str:
    if key == "findings":
        value = _codes(value)
    return f"{value:.3f}" if isinstance(value, float) else value or "-"


class VolumesTable:
    """volumes.csv and volumes.json of a folder; several processes may add rows.

    Args:
        folder: of the results.
        metadata: first keys of the JSON, such as checkpoint and configuration.
    """

    def __init__(self, folder: Path, metadata: dict) -> None:
        self.folder, self.metadata = folder, metadata
        self.paths = folder / VOLUMES_CSV, folder / VOLUMES_JSON
        self.before: dict[Path, bytes] | None = None  # content that `start` has replaced
        self.started: list[dict] = []  # rows after it

    def start(self, alone: bool, cases: Collection[str], keep: bool) -> dict[str, dict]:
        """Begins a prediction, with an empty table unless rows are to be kept.

        Args:
            alone: whether no other process is adding rows; otherwise the table is not changed.
            cases: of the prediction.
            keep: whether to keep the rows of masks that an earlier prediction wrote.

        Returns:
            {case: row} of these earlier masks if `keep`, otherwise nothing.

        Raises:
            DataError: rows of other cases, which stay, are of another network or other settings; or
                the table that is there cannot be read.
        """
        with output_folder.lock(self.folder):
            ours = output_folder.list_outputs(self.folder)
            content = self._content()
            if content is None and VOLUMES_JSON in ours:
                raise DataError(
                    f"{self.paths[1]}: of another version of this program; choose another folder, "
                    "or move it away"
                )
            content = content or NO_TABLE
            rows = content["cases"]
            earlier = {row["case"]: row for row in rows if row["mask"] in ours} if keep else {}
            is_shared = bool(earlier.keys() - set(cases)) if alone else "network_id" in content
            if is_shared and content.get("network_id") != self.metadata.get("network_id"):
                raise DataError(
                    f"{self.paths[1]}: its other masks are of another network or of other settings "
                    "(threshold, flip_average, recentre, grid), a table has those of one; choose "
                    "another folder"
                )
            if alone:
                self.before = {path: path.read_bytes() for path in self.paths if path.is_file()}
                self._write(list(earlier.values()))
        self.started = list(earlier.values())
        return earlier

    def restore(self, cases: Collection[str]) -> None:
        """Puts back the files that `start` has replaced, and withdraws from the folder.

        Nothing changes if there is a row since, or other processes write there.

        Args:
            cases: that this process writes.
        """
        with output_folder.lock(self.folder):
            if self.before is None or self.rows() != self.started:
                return
            if not output_folder.withdraw(self.folder, cases):
                return
            with output_folder.rewriting(self.folder, (VOLUMES_CSV, VOLUMES_JSON)):
                write_files(self.before)
                for path in set(self.paths).difference(self.before):
                    path.unlink(missing_ok=True)

    def add(self, row: dict) -> None:
        """Appends a row, and removes an earlier one of the same case."""
        with output_folder.lock(self.folder):
            others = [other for other in self.rows() if other["case"] != row["case"]]
            self._write([*others, row])

    def rows(self) -> list[dict]:
        """Reads the rows; none if there is no table, or one of another version."""
        return (self._content() or NO_TABLE)["cases"]

    def files(self) -> set[str]:
        """Returns the names of the masks and probabilities of rows whose mask is there."""
        ours = output_folder.list_outputs(self.folder)
        rows = [row for row in self.rows() if row["mask"] in ours]
        return {file for row in rows for file in volume_files(row["outputs"].values())}

    def _content(self) -> dict[str, Any] | None:
        """Reads the JSON; None if it is absent, damaged or of another version."""
        try:
            content = json.loads(Path(self.folder, VOLUMES_JSON).read_text("utf-8"))
            later = dict.fromkeys(LATER_KEYS)
            rows = [{**later, **row} for row in content["cases"]]
            if all(row.keys() >= JSON_KEYS for row in rows):
                return {**content, "cases": rows}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
        return None

    def _write(self, rows: list[dict]) -> None:
        values = ({**row, "findings": _codes(row["findings"])} for row in rows)
        table = _csv(CSV_COLUMNS, ([row[key] for key in CSV_COLUMNS] for row in values))
        content = {
            "schema": VOLUMES_SCHEMA,
            **self.metadata,
            "flagged": [row["case"] for row in rows if row["findings"] or row["problem"]],
            "cases": rows,
        }
        csv_path, json_path = self.paths
        with output_folder.rewriting(self.folder, (VOLUMES_CSV, VOLUMES_JSON)):
            _write(csv_path, table, json_path, content)
