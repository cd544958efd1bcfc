"""The report of an evaluation or a prediction: a single HTML file that works offline.

`page.html`, `page.css` and `page.js` are the page, `texts.py` has its words; this module prepares
what it shows. Pictures are data URIs. A content security policy forbids everything else, so that no
case name, whatever it contains, can make a browser load or run something.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..config import KEYS
from ..measurements import DIAMETERS
from ..metrics import METRICS, Metric, summarize
from .findings import LARGE_CUT, LOW_DICE, PLAUSIBLE_ML
from .planes import (
    DISTANCE_COLOURS,
    DISTANCE_LIMIT_MM,
    GREY_PERCENTILES,
    SURFACE_BAR_MM,
    SURFACE_LETTERS,
    CasePictures,
    Picture,
)
from .tables import METRICS_CSV, VOLUMES_CSV
from .texts import ORIGIN, Texts

FOLDER = Path(__file__).parent
LOWEST_CASES = 3  # listed if no case failed
PICTURED_CASES = 60  # of more cases, the worst are pictured; each takes some 150 kB

PARTS = {"": "whole_gland", "base_": "base", "apex_": "apex"}  # prefix of the metrics' keys -> name
GLAND_METRICS = [metric for metric in METRICS if not metric.key.startswith(("apex_", "base_"))]
# Of the metadata: shown in other places, or for programs.
NOT_ORIGIN = ("configuration", "checkpoints", "folds", "network_id", "processing", "trained_on")
DIGITS = {"": 3, "%": 1, "mm": 2, "ml": 1}  # unit -> decimals
LIMITS = {"": (LOW_DICE,), "ml": PLAUSIBLE_ML}  # unit -> what no other value may be rounded to


class Column(NamedTuple):
    """A column of the table of cases; a signed one is sorted by its size."""

    key: str
    unit: str
    signed: bool = False
    digits: int | None = None


REFERENCE_COLUMNS = (
    Column("dice", ""),
    Column("base_dice", ""),
    Column("apex_dice", ""),
    Column("hausdorff95_mm", "mm"),
    Column("hausdorff_mm", "mm"),
    Column("boundary_distance_mm", "mm"),
    Column("volume_difference_percent", "%", signed=True),
    Column("reference_ml", "ml"),
    Column("prediction_ml", "ml"),
)
VOLUME_COLUMNS = (Column("prostate_ml", "ml"),)
# Where the results have them.
MEASURE_COLUMNS = (
    Column("ellipsoid_ml", "ml"),
    *(Column(key, "mm", digits=1) for key in DIAMETERS),
    Column("mean_probability", ""),
)
FOLD_COLUMN = Column("fold", "")  # of a cross-validation


class ReportCase(NamedTuple):
    """A row of the results, why it counts as failed, and the id of its pictures ("": none)."""

    row: dict
    failures: list[str]
    anchor: str


class TrainingCurves(NamedTuple):
    """The curves of a training, its last loss, and its best validation: epoch and Dice."""

    picture: Picture
    epochs: int
    loss: float
    best: tuple[int, float] | None


def render_page(
    rows: list[dict],
    pictures: Mapping[str, CasePictures],
    metadata: dict,
    box_plots: Sequence[Picture],
    training: TrainingCurves | None,
    language: str,
) -> bytes:
    """Renders the report as HTML.

    Args:
        rows: a dict per case. Of an evaluation {"case": id, **case_metrics(...)}, of a prediction
            {"case": id, "prostate_ml": volume, "problem": why there is no mask, or that it was
            edited, or None}; both with "findings" and "findings_text", the codes and texts of
            `src.report.findings`.
        pictures: of these cases, from `case_pictures`; those of more than `PICTURED_CASES`, the
            worst, are not shown.
        metadata: origin of the results, such as the checkpoint; dicts under "configuration" and,
            path and SHA-256 of each network of an ensemble, under "checkpoints".
        box_plots: pictures of `metric_groups`.
        training: the training curves.
        language: one of `src.report.texts.LANGUAGES`.

    Returns:
        The page in UTF-8, complete in itself.
    """
    is_evaluation = "dice" in rows[0]
    text = Texts(language)
    cases = _table_rows(worst_first(rows), text)
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    changed, defaults = _split_configuration(metadata.get("configuration", {}))
    has_surfaces = any(drawn.surfaces for drawn in pictures.values())
    statistics = _evaluation_statistics if is_evaluation else _prediction_statistics
    page = (
        _environment()
        .get_template("page.html")
        .render(
            t=text,
            is_evaluation=is_evaluation,
            **statistics(rows, text),
            cases=cases,
            failed=[case for case in cases if case.failures],
            pictured=[case for case in cases if case.anchor],
            pictures=pictures,
            has_surfaces=has_surfaces,
            has_distances=has_surfaces and is_evaluation,
            box_plots=list(zip(metric_groups(rows), box_plots, strict=False)),
            training=training,
            changed=changed,
            defaults=defaults,
            origin=_origin(metadata, text),
            columns=_columns(rows, is_evaluation),
            diameters=DIAMETERS,
            sides=SURFACE_LETTERS,
            csv_name=METRICS_CSV if is_evaluation else VOLUMES_CSV,
            lowest_cases=LOWEST_CASES,
            pictured_cases=PICTURED_CASES,
            low_dice=LOW_DICE,
            plausible_ml=PLAUSIBLE_ML,
            large_cut=LARGE_CUT,
            grey_percentiles=GREY_PERCENTILES,
            bar_mm=SURFACE_BAR_MM,
            distance_limit_mm=DISTANCE_LIMIT_MM,
            distance_colours=DISTANCE_COLOURS,
            style=style,
            script=script,
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
        )
    )
    return page.encode(errors="replace")  # bytes of a file name that are not UTF-8


def _columns(rows: list[dict], is_evaluation: bool) -> list[Column]:
    """The columns of the table of cases, those of folds and measures only if a case has one."""
    folds = [FOLD_COLUMN] if "fold" in rows[0] else []
    measured = [
        column for column in MEASURE_COLUMNS if any(row.get(column.key) is not None for row in rows)
    ]
    return [*folds, *(REFERENCE_COLUMNS if is_evaluation else VOLUME_COLUMNS), *measured]


def _split_configuration(configuration: dict) -> tuple[dict, dict]:
    """Splits a configuration into the keys that differ from their default, and the others."""
    changed = {
        key: value
        for key, value in configuration.items()
        if key not in KEYS or value != KEYS[key].default
    }
    return changed, {key: value for key, value in configuration.items() if key not in changed}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "as_text": _as_text, "medians": _medians}
    return environment


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def format_number(value: float, unit: str, signed: bool = False, digits: int | None = None) -> str:
    """Writes a number with a typographic minus, by default with the decimals of its unit.

    An int is written as it is. A value close to one of `LIMITS` gets the decimals that tell it
    apart, and a very small volume is not written as 0.
    """
    if isinstance(value, int):
        return str(value)
    if unit == "ml" and 0 < value < 0.05:
        return "<0.1"
    decimals = DIGITS[unit] if digits is None else digits
    while any(round(value, 6) != limit == round(value, decimals) for limit in LIMITS.get(unit, ())):
        decimals += 1
    rounded = round(value, decimals) or 0.0  # not -0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}".replace("-", "−")


def _medians(metric: "MetricGroups", text: Texts) -> str:
    """The median of each group of a box plot, for those who cannot see it."""
    return text.comma.join(
        f"{text(part)} {format_number(float(np.median(values)), metric.unit)}"
        for part, values in metric.groups.items()
        if values
    )


def _origin(metadata: dict, text: Texts) -> dict[str, Any]:
    """The origin of the results by the names that the page shows; a row for each network."""
    networks = metadata.get("checkpoints", {}).items()
    rows: dict[str, Any] = {
        text("network", n=number, count=len(networks)): f"{path} (SHA-256 {digest})"
        for number, (path, digest) in enumerate(networks, 1)
    }
    others = {key: value for key, value in metadata.items() if key not in NOT_ORIGIN}
    return rows | {text(key) if key in ORIGIN else key: value for key, value in others.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


# --- cases ---------------------------------------------------------------------------------------


def worst_first(rows: list[dict]) -> list[dict]:
    """Sorts the rows of the results: by Dice, or of a prediction the failed ones first."""
    return sorted(
        rows, key=lambda row: row.get("dice", not (row.get("problem") or row["findings_text"]))
    )


def report_cases(rows: list[dict]) -> list[str]:
    """Names the cases with pictures in report.html: `PICTURED_CASES` with a mask, the worst first.

    Args:
        rows: of the results, see `render_page`.
    """
    segmented = [row for row in rows if not row.get("problem")]
    return [row["case"] for row in worst_first(segmented)[:PICTURED_CASES]]


def _failures(row: dict, text: Texts) -> list[str]:
    """Why a case counts as failed; the reasons of errors stay English."""
    if row.get("problem"):
        return [row["problem"]]
    codes = row.get("findings", [""] * len(row["findings_text"]))
    return [text.finding(*found) for found in zip(codes, row["findings_text"], strict=True)]


def _table_rows(rows: list[dict], text: Texts) -> list[ReportCase]:
    """The cases in the order of the rows."""
    pictured = report_cases(rows)
    return [
        ReportCase(row, _failures(row, text), f"case-{i}" if row["case"] in pictured else "")
        for i, row in enumerate(rows, 1)
    ]


# --- statistics ----------------------------------------------------------------------------------

StatisticsLine = tuple[str, str, list[float | None]]  # label, unit, values


def _evaluation_statistics(rows: list[dict], text: Texts) -> dict:
    """Heading and table of statistics, by the template's names."""
    summary, cases = summarize(rows), text.count(len(rows), "case")
    dice, by_fold = summary["dice"], _dice_by_fold(rows, text)
    if by_fold:
        cases = text("cases_in_folds", cases=cases, n=len(by_fold))
    heading, subheading, names = (
        (f"Dice {format_number(dice['mean'], '')}", cases, ["mean"])
        if len(rows) == 1
        else (
            f"Dice {format_number(dice['mean'], '')} ± {dice['std']:.3f}",
            text("mean_dice", cases=cases),
            [*dice],
        )
    )
    statistics: dict[str, list[StatisticsLine]] = {
        part: [
            (text(metric.key), metric.unit, [summary[prefix + metric.key][name] for name in names])
            for metric in GLAND_METRICS
        ]
        for prefix, part in PARTS.items()
    }
    if by_fold:
        statistics["folds"] = by_fold
    return {
        "heading": heading,
        "subheading": subheading,
        "statistic_names": ["value"] if len(rows) == 1 else names,
        "statistics": statistics,
        "diagonals": sum(map(_has_diagonal, rows)),
    }


def _has_diagonal(row: dict) -> bool:
    """Whether one mask of a case is empty, but not the other, in the gland or a part of it."""
    return any(row[f"{prefix}empty"] and not row[f"{prefix}dice"] for prefix in PARTS)


def _dice_by_fold(rows: list[dict], text: Texts) -> list[StatisticsLine]:
    """Lines of the table of statistics: the Dice of each fold of a cross-validation."""
    lines = []
    for fold in sorted({row["fold"] for row in rows if "fold" in row}):
        own = [row for row in rows if row["fold"] == fold]
        values = [
            None if name == "std" and len(own) == 1 else value
            for name, value in summarize(own)["dice"].items()
        ]
        label = text("dice_of_fold", fold=fold, cases=text.count(len(own), "case"))
        lines.append((label, "", values))
    return lines


def _prediction_statistics(rows: list[dict], text: Texts) -> dict:
    """Heading and table of statistics, by the template's names."""
    volumes_ml = np.array(_counted_ml(rows))
    cases = text.count(len(volumes_ml), "case")
    if len(volumes_ml) < len(rows):
        cases = text("some_cases", n=len(volumes_ml), count=len(rows))
    if len(volumes_ml) == 0:
        heading, subheading = text("no_volume"), text.count(len(rows), "image")
        return {"heading": heading, "subheading": subheading, "statistics": {}}
    if len(volumes_ml) == 1:
        heading = f"{format_number(volumes_ml[0], 'ml')} ml"
        return {"heading": heading, "subheading": cases, "statistics": {}}
    values = {
        "mean": float(volumes_ml.mean()),
        "std": float(volumes_ml.std()),
        "median": float(np.median(volumes_ml)),
        "least": float(volumes_ml.min()),
        "most": float(volumes_ml.max()),
    }
    return {
        "heading": f"{values['mean']:.1f} ± {values['std']:.1f} ml",
        "subheading": text("mean_volume", cases=cases),
        "statistic_names": list(values),
        "statistics": {"": [(text("prostate_ml"), "ml", list(values.values()))]},
    }


def _counted_ml(rows: list[dict]) -> list[float]:
    """The volumes of a prediction in the statistics: of masks that it made, if not empty."""
    return [row["prostate_ml"] for row in rows if row["prostate_ml"] and not row["problem"]]


class MetricGroups(NamedTuple):
    """The values that a box plot shows, {part of the gland: its values}."""

    key: str
    unit: str
    groups: dict[str, list[float]]


def metric_groups(rows: list[dict]) -> list[MetricGroups]:
    """Returns what the box plots show: each metric by part of the gland, or the volumes.

    Args:
        rows: see `render_page`; a single case has no distribution.
    """
    if "dice" in rows[0]:
        return [
            MetricGroups(
                metric.key,
                metric.unit,
                {part: _metric_values(rows, prefix, metric) for prefix, part in PARTS.items()},
            )
            for metric in GLAND_METRICS
            if len(rows) > 1
        ]
    volumes_ml = _counted_ml(rows)
    groups = MetricGroups("prostate_ml", "ml", {PARTS[""]: volumes_ml})
    return [groups] if len(volumes_ml) > 1 else []


def _metric_values(rows: list[dict], prefix: str, metric: Metric) -> list[float]:
    """Returns the values of a metric, without the distances of empty masks, a mere convention."""
    return [
        row[prefix + metric.key]
        for row in rows
        if not (metric.unit == "mm" and row[f"{prefix}empty"])
    ]
