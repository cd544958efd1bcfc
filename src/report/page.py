"""The report of an evaluation or a prediction: a single HTML file that works offline.

`page.html`, `page.css` and `page.js` are the page; this module prepares what it shows. Pictures
are data URIs. A content security policy forbids everything else, so that no case name, whatever it
contains, can make a browser load or run something.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..metrics import METRICS, Metric, summarize
from ..utils.files import write_files
from .findings import LOW_DICE, PLAUSIBLE_ML
from .planes import CasePictures, Picture
from .tables import METRICS_CSV, VOLUMES_CSV

FOLDER = Path(__file__).parent
LOWEST_CASES = 3  # listed if no case failed
PICTURED_CASES = 60  # of more cases, the worst are pictured; each takes some 130 kB

PARTS = {"": "whole gland", "base_": "base", "apex_": "apex"}  # prefix of the metrics' keys -> name
GLAND_METRICS = [metric for metric in METRICS if not metric.key.startswith(("apex_", "base_"))]
NOT_ORIGIN = (
    "configuration",
    "checkpoints",
    "folds",
)  # of the metadata: shown elsewhere or otherwise
DIGITS = {"": 3, "%": 1, "mm": 2, "ml": 1}  # unit -> decimals


class Column(NamedTuple):
    """A column of the table of cases."""

    key: str
    label: str
    unit: str
    signed: bool = False


REFERENCE_COLUMNS = (
    Column("dice", "Dice", ""),
    Column("base_dice", "Dice, base", ""),
    Column("apex_dice", "Dice, apex", ""),
    Column("hausdorff95_mm", "95 % Hausdorff", "mm"),
    Column("hausdorff_mm", "Hausdorff", "mm"),
    Column("boundary_distance_mm", "Boundary distance", "mm"),
    Column("volume_difference_percent", "Volume difference", "%", signed=True),
    Column("reference_ml", "Reference", "ml"),
    Column("prediction_ml", "Prediction", "ml"),
)
VOLUME_COLUMNS = (Column("prostate_ml", "Volume", "ml"),)
FOLD_COLUMN = Column("fold", "Fold", "")  # of a cross-validation


class ReportCase(NamedTuple):
    """A row of the results, why it counts as failed, and the id of its pictures ("": none)."""

    row: dict
    failures: list[str]
    anchor: str


def write_report(
    path: str | Path,
    rows: list[dict],
    pictures: Mapping[str, CasePictures],
    metadata: dict,
    box_plots: Sequence[Picture] = (),
    training: Picture | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: of the HTML file.
        rows: a dict per case. Of an evaluation {"case": id, **case_metrics(...)}, of a prediction
            {"case": id, "prostate_ml": volume, "problem": why there is no mask, or None}; both with
            "findings_text", a list of the texts of `src.report.findings`.
        pictures: of these cases, from `case_pictures`; those of more than `PICTURED_CASES`, the
            worst, are not shown.
        metadata: origin of the results, such as the checkpoint; dicts under "configuration" and,
            path and SHA-256 of each network of an ensemble, under "checkpoints".
        box_plots: pictures of `metric_groups`.
        training: picture of the training curves.

    Raises:
        DataError: the file cannot be written.
    """
    page = render_page(rows, pictures, metadata, box_plots, training)
    # Bytes of a file name that are not UTF-8 become question marks.
    write_files({Path(path): page.encode(errors="replace")})


def render_page(
    rows: list[dict],
    pictures: Mapping[str, CasePictures],
    metadata: dict,
    box_plots: Sequence[Picture],
    training: Picture | None,
) -> str:
    """Renders the report as HTML; for the arguments see `write_report`."""
    is_evaluation = "dice" in rows[0]
    cases = _report_cases(rows)
    case_of = {id(case.row): case for case in cases}
    ordered = [case_of[id(row)] for row in worst_first(rows)]
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    template = _environment().get_template("page.html")
    return template.render(
        is_evaluation=is_evaluation,
        **(_evaluation_statistics(rows) if is_evaluation else _prediction_statistics(rows)),
        cases=cases,
        worst_first=ordered,
        failed=[case for case in ordered if case.failures],
        pictured=[case for case in ordered if case.anchor],
        pictures=pictures,
        box_plots=box_plots,
        training=training,
        configuration=metadata.get("configuration", {}),
        origin=_origin(metadata),
        columns=_columns(rows),
        csv_name=METRICS_CSV if is_evaluation else VOLUMES_CSV,
        lowest_cases=LOWEST_CASES,
        pictured_cases=PICTURED_CASES,
        low_dice=LOW_DICE,
        plausible_ml=PLAUSIBLE_ML,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "as_text": _as_text}
    return environment


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def format_number(value: float, unit: str, signed: bool = False) -> str:
    """Writes a number with the decimals of its unit and a typographic minus; an int as it is."""
    if isinstance(value, int):
        return str(value)
    return f"{value:{'+' if signed else ''}.{DIGITS[unit]}f}".replace("-", "−")


def _columns(rows: list[dict]) -> tuple[Column, ...]:
    if "dice" not in rows[0]:
        return VOLUME_COLUMNS
    return (FOLD_COLUMN, *REFERENCE_COLUMNS) if "fold" in rows[0] else REFERENCE_COLUMNS


def _origin(metadata: dict) -> dict[str, Any]:
    """The origin of the results by the names that the page shows; a row for each network."""
    rows = {key: value for key, value in metadata.items() if key not in NOT_ORIGIN}
    networks = metadata.get("checkpoints", {}).items()
    for number, (path, digest) in enumerate(networks, 1):
        rows[f"network {number} of {len(networks)}"] = f"{path} (SHA-256 {digest})"
    return rows


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


# --- cases ---------------------------------------------------------------------------------------


def worst_first(rows: list[dict]) -> list[dict]:
    """Sorts the rows of the results: by Dice, or of a prediction the failed ones first."""
    return sorted(rows, key=lambda row: row.get("dice", not _failures(row)))


def report_cases(rows: list[dict]) -> list[str]:
    """Names the cases with pictures in report.html: `PICTURED_CASES` with a mask, the worst first.

    Args:
        rows: of the results, see `write_report`.
    """
    segmented = [row for row in rows if not row.get("problem")]
    return [row["case"] for row in worst_first(segmented)[:PICTURED_CASES]]


def _failures(row: dict) -> list[str]:
    return [row["problem"]] if row.get("problem") else row["findings_text"]


def _report_cases(rows: list[dict]) -> list[ReportCase]:
    """The cases in the order of the rows."""
    pictured = report_cases(rows)
    return [
        ReportCase(row, _failures(row), f"case-{i}" if row["case"] in pictured else "")
        for i, row in enumerate(rows, 1)
    ]


# --- statistics ----------------------------------------------------------------------------------


def _evaluation_statistics(rows: list[dict]) -> dict:
    """Heading and table of statistics, by the template's names."""
    statistics = summarize(rows)
    dice = statistics["dice"]
    by_fold = _dice_by_fold(rows)
    folds = f" in {len(by_fold)} folds" if by_fold else ""
    return {
        "heading": f"Dice {dice['mean']:.3f} ± {dice['std']:.3f}",
        "subheading": f"mean ± standard deviation of {_count(len(rows), 'case')}{folds}",
        "statistics": {
            part: [
                (metric.label, metric.unit, list(statistics[prefix + metric.key].values()))
                for metric in GLAND_METRICS
            ]
            for prefix, part in PARTS.items()
        }
        | ({"folds": by_fold} if by_fold else {}),
    }


def _dice_by_fold(rows: list[dict]) -> list[tuple[str, str, list[float]]]:
    """Lines of the table of statistics: the Dice of each fold of a cross-validation."""
    lines = []
    for fold in sorted({row["fold"] for row in rows if "fold" in row}):
        own = [row for row in rows if row["fold"] == fold]
        label = f"Dice of fold {fold}, {_count(len(own), 'case')}"
        lines.append((label, "", list(summarize(own)["dice"].values())))
    return lines


def _prediction_statistics(rows: list[dict]) -> dict:
    """Heading and table of statistics, by the template's names."""
    volumes_ml = np.array([row["prostate_ml"] for row in rows if not row["problem"]])
    if not len(volumes_ml):
        images = f"of {_count(len(rows), 'image')}"
        return {"heading": "No mask", "subheading": images, "statistics": {}}
    values = [f(volumes_ml) for f in (np.mean, np.std, np.median, np.min, np.max)]
    cases = _count(len(volumes_ml), "case")
    return {
        "heading": f"{values[0]:.1f} ± {values[1]:.1f} ml",
        "subheading": f"mean volume ± standard deviation of {cases}",
        "statistics": {"": [("Volume", "ml", values)]},
    }


class MetricGroups(NamedTuple):
    """The values that a box plot shows, {name of a group: its values}."""

    label: str
    unit: str
    groups: dict[str, list[float]]


def metric_groups(rows: list[dict]) -> list[MetricGroups]:
    """Returns what the box plots show: each metric by part of the gland, or the volumes.

    Args:
        rows: see `write_report`.
    """
    if "dice" in rows[0]:
        return [
            MetricGroups(
                metric.label,
                metric.unit,
                {part: _metric_values(rows, prefix, metric) for prefix, part in PARTS.items()},
            )
            for metric in GLAND_METRICS
        ]
    volumes_ml = [row["prostate_ml"] for row in rows if not row["problem"]]
    return [MetricGroups("Volume", "ml", {PARTS[""]: volumes_ml})] if volumes_ml else []


def _metric_values(rows: list[dict], prefix: str, metric: Metric) -> list[float]:
    """Returns the values of a metric, without the distances of empty masks, a mere convention."""
    return [
        row[prefix + metric.key]
        for row in rows
        if not (metric.unit == "mm" and row[f"{prefix}empty"])
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
