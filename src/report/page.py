"""The report of an evaluation or a prediction: one HTML file that needs nothing from anywhere.

Style and script lie beside this module and go into the file, pictures as data URIs. The content
security policy forbids all else, so that not even a case's name can make a browser fetch something.
"""

import base64
import hashlib
import os
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..metrics import METRICS, summary
from ..utils.files import write_files
from . import figures as report
from .findings import LOW_DICE, PLAUSIBLE_ML

LOWEST_CASES = 3  # named where no case failed
PICTURED_CASES = 60  # of more, the worst; a case takes some 130 kB
SLICES = 12  # of a case's montage

STANDARD_DEVIATION = '<abbr title="standard deviation">Std</abbr>'
PARTS = (("", "whole gland"), ("base_", "base"), ("apex_", "apex"))
MEASURES = [metric for metric in METRICS if not metric.key.startswith(("apex_", "base_"))]
DIGITS = {"": 3, "%": 1, "mm": 2, "ml": 1}
SIGNED = "volume_difference_percent"
REFERENCE_COLUMNS = (
    ("dice", "Dice", ""),
    ("base_dice", "Dice, base", ""),
    ("apex_dice", "Dice, apex", ""),
    ("hausdorff95_mm", "95 % Hausdorff", "mm"),
    ("hausdorff_mm", "Hausdorff", "mm"),
    ("boundary_distance_mm", "Boundary distance", "mm"),
    (SIGNED, "Volume difference", "%"),
    ("reference_ml", "Reference", "ml"),
    ("prediction_ml", "Prediction", "ml"),
)
VOLUME_COLUMNS = (("prostate_ml", "Volume", "ml"),)


class Look(NamedTuple):
    """How a plane is drawn; 3 inches wide as in overlays.png, so lines and letters are alike."""

    dpi: int
    jpeg_quality: int
    line_scale: float
    annotated: bool


VIEW = Look(110, 70, 1, True)
SLICE = Look(50, 60, 1.5, False)


def write_report(
    path: str | Path,
    rows: list[dict],
    drawn: Iterable[report.OverlayCase],
    about: dict,
    history: pd.DataFrame | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: of the HTML file.
        rows: of each case, of an evaluation {"case": id, **case_metrics(...)}, and of a prediction
            {"case": id, "prostate_ml": volume, "problem": why there is no mask, or ""}; both with
            "findings_text", a list of the words of `src.report.findings`.
        drawn: these cases in any order; may be a generator: of each only its pictures are kept.
        about: what the results come from, such as the checkpoint; under "configuration" a dict.
        history: of the training, as `src.report.figures.plot_progress` takes it.

    Raises:
        DataError: the file cannot be written.
    """
    page = _page(rows, drawn, about, history)
    # File names need not be text; what is not shows as a question mark.
    write_files({Path(path): page.encode(errors="replace")})


class _Case(NamedTuple):
    row: dict
    anchor: str  # of its pictures; empty without

    @property
    def failures(self):
        """Why it is on the list of failures, in words to put after its Dice or its volume."""
        problem = self.row.get("problem")
        return [escape(text) for text in ([problem] if problem else self.row["findings_text"])]

    @property
    def name(self):
        return escape(self.row["case"])

    @property
    def link(self):
        return f'<a href="#{self.anchor}">{self.name}</a>' if self.anchor else self.name

    @property
    def score(self):
        if "dice" in self.row:
            return f"Dice {self.row['dice']:.3f}"
        if self.row["problem"]:
            return "not segmented"
        return f"{self.row['prostate_ml']:.1f}&nbsp;ml"


def _cases(rows):
    """The cases in their order, and from the worst: by Dice, or what is listed as failed first."""
    cases = [_Case(row, "") for row in rows]
    order = sorted(range(len(rows)), key=lambda i: rows[i].get("dice", not cases[i].failures))
    pictured = [i for i in order if not rows[i].get("problem")][:PICTURED_CASES]
    for i in pictured:
        cases[i] = cases[i]._replace(anchor=f"case-{i + 1}")
    return cases, [cases[i] for i in order]


def _page(rows, drawn, about, history):
    evaluated = "dice" in rows[0]
    kind = "Evaluation" if evaluated else "Prediction"
    tables = _evaluation_tables if evaluated else _prediction_tables
    verdict, statistics, plots, columns = tables(rows)
    cases, worst_first = _cases(rows)
    failed = sum(bool(case.failures) for case in cases)
    sections = {
        "Failures": _failures(worst_first, evaluated),
        **({"Summary": statistics, "Distribution": plots} if statistics else {}),
        "Cases": _case_table(cases, columns, evaluated),
    }
    if any(case.anchor for case in cases):
        sections["Pictures"] = _pictures(worst_first, drawn, evaluated)
    if history is not None and len(history):
        sections["Training"] = _training(history)
    about = dict(about)
    configuration = about.pop("configuration", {})
    if configuration:
        sections["Configuration"] = _facts(configuration)
    sections["Origin"] = _facts(about)

    style, script = (
        Path(__file__).with_suffix(suffix).read_text("utf-8") for suffix in (".css", ".js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    alarm = f' · <a class="alarm" href="#failures">{_count(failed, "failure")}</a>' * bool(failed)
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{kind}: {verdict[0]}, {verdict[1]}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kind">V-Net prostate segmentation · {kind.lower()}</p>
<h1>{verdict[0]}</h1>
<p class="verdict">{verdict[1]}{alarm}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>{body}</main>
<script>{script}</script>
</body>
</html>
"""


def _hash(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _count(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


def _evaluation_tables(rows):
    """Verdict, summary, box plots, and the columns of the table of cases."""
    statistics = summary(rows)
    dice = statistics["dice"]
    verdict = (
        f"Dice {dice['mean']:.3f} ± {dice['std']:.3f}",
        f"mean ± standard deviation of {_count(len(rows), 'case')}",
    )
    groups = []
    for prefix, part in PARTS:
        lines = [
            (measure.label, measure.unit, list(statistics[prefix + measure.key].values()))
            for measure in MEASURES
        ]
        groups.append((part, lines))
    head = ("Mean", STANDARD_DEVIATION, "Median", "Worst")
    note = "Worst is the lowest Dice, and of all else what is farthest from 0."
    plots = [
        _box_plot(measure.label, measure.unit, {p: _measured(rows, k, measure) for k, p in PARTS})
        for measure in MEASURES
    ]
    gaps = "Distances of an empty mask, which are a convention, are left out."
    return verdict, _summary(head, groups, note), _plots(plots, gaps), REFERENCE_COLUMNS


def _prediction_tables(rows):
    volumes_ml = np.array([row["prostate_ml"] for row in rows if not row["problem"]])
    if not len(volumes_ml):
        return ("No mask", f"of {_count(len(rows), 'image')}"), "", "", VOLUME_COLUMNS
    numbers = [f(volumes_ml) for f in (np.mean, np.std, np.median, np.min, np.max)]
    verdict = (
        f"{numbers[0]:.1f} ± {numbers[1]:.1f} ml",
        f"mean volume ± standard deviation of {_count(len(volumes_ml), 'case')}",
    )
    head = ("Mean", STANDARD_DEVIATION, "Median", "Least", "Most")
    statistics = _summary(head, [("", [("Volume", "ml", numbers)])], "")
    plot = _box_plot("Volume", "ml", {"whole gland": list(volumes_ml)})
    return verdict, statistics, _plots([plot], ""), VOLUME_COLUMNS


def _measured(rows, part, measure):
    """A measure of all cases but distances that no mask was there to measure."""
    return [
        row[part + measure.key]
        for row in rows
        if not (measure.unit == "mm" and row[f"{part}empty"])
    ]


def _number(value, unit, key=""):
    """A number as people read it, with its unit's digits."""
    return f"{value:{'+' * (key == SIGNED)}.{DIGITS[unit]}f}".replace("-", "−")


def _with_unit(label, unit):
    return f'{label} <span class="unit">{unit}</span>' if unit else label


def _scroll(content, label):
    """A box that scrolls sideways by itself, also with the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def _summary(head, groups, note):
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    bodies = []
    for part, lines in groups:
        body = ""
        if part:
            body = (
                f'<tr><th scope="rowgroup" colspan="{len(head) + 1}">{part.capitalize()}</th></tr>'
            )
        for label, unit, numbers in lines:
            cells = "".join(f"<td>{_number(number, unit)}</td>" for number in numbers)
            body += f'<tr><th scope="row">{_with_unit(label, unit)}</th>{cells}</tr>'
        bodies.append(f"<tbody>{body}</tbody>")
    table = f'<table class="summary"><thead><tr><td></td>{columns}</tr></thead>{"".join(bodies)}'
    return f'{_scroll(f"{table}</table>", "Summary")}<p class="note">{note}</p>'


def _failures(worst_first, evaluated):
    plane = "of another plane than the training's"
    if evaluated:
        rule = (
            "Listed is a case with an empty mask, with nothing predicted at base or apex, with a "
            f"Dice below {LOW_DICE}, or {plane}."
        )
    else:
        least, most = PLAUSIBLE_ML
        rule = (
            f"Listed is an image that could not be segmented or is {plane}, and a mask that is "
            "empty, touches the border of the image within its slices or of the network grid (the "
            f"gland may go on beyond it), or holds less than {least} or more than {most} ml, as "
            "few glands do."
        )
    shown = failed = [case for case in worst_first if case.failures]
    intro = ""
    if not failed:
        shown = worst_first[: LOWEST_CASES * evaluated]
        intro = f"<p>None.{' The lowest Dice:' * evaluated}</p>"
    items = "".join(
        f"<li>{case.link} {', '.join([case.score, *case.failures])}</li>" for case in shown
    )
    colour = ' class="failed"' * bool(failed)
    return f'{intro}{items and f"<ul{colour}>{items}</ul>"}<p class="note">{rule}</p>'


def _case_table(cases, columns, evaluated):
    def header(label):
        return f'<th scope="col"><button type="button">{label}</button></th>'

    head = header("Case") + "".join(header(_with_unit(label, unit)) for _, label, unit in columns)
    body = []
    for case in cases:
        cells = "".join(_cell(case.row, key, unit) for key, _, unit in columns)
        colour = ' class="failed"' * bool(case.failures)
        body.append(f'<tr{colour}><th scope="row">{case.link}</th>{cells}</tr>')
    table = (
        f'<table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
    source = "metrics.csv" if evaluated else "volumes.csv"
    return (
        f'{_scroll(table, "Cases")}<p class="note">Press a heading to sort. '
        f"{source} beside this file holds the same numbers and more.</p>"
    )


def _cell(row, key, unit):
    if row.get("problem"):
        return '<td data-value="-1">–</td>'  # sorts before every volume
    return f'<td data-value="{row[key]!r}">{_number(row[key], unit, key)}</td>'


def _pictures(worst_first, drawn, evaluated):
    pictured = {case.row["case"]: case for case in worst_first if case.anchor}
    pictures = {case.case: _case_pictures(case) for case in drawn if case.case in pictured}
    articles = []
    for name, case in pictured.items():
        words = [f"<strong>{reason}</strong>" for reason in case.failures]
        facts = " · ".join([case.score, *words, *(_details(case.row) if evaluated else [])])
        articles.append(
            f'<article id="{case.anchor}"><h3>{case.name}</h3>'
            f"<p>{facts}</p>{pictures.get(name, '')}</article>"
        )
    return _legend(evaluated, len(worst_first)) + "".join(articles)


def _details(row):
    return (
        f"base {row['base_dice']:.3f}, apex {row['apex_dice']:.3f}",
        f"95 % Hausdorff {row['hausdorff95_mm']:.1f}&nbsp;mm",
        f"reference {row['reference_ml']:.1f}&nbsp;ml",
        f"prediction {row['prediction_ml']:.1f}&nbsp;ml",
    )


def _legend(evaluated, count):
    keys = ["reference"] * evaluated + ["prediction"]
    lines = "".join(f'<span class="key {key}">{key}</span>' for key in keys)
    first = "the lowest Dice first" if evaluated else "failures first"
    fewer = f"; {PICTURED_CASES} of {count} cases" if count > PICTURED_CASES else ""
    return (
        f'<p class="legend">{lines}</p><p class="note">Planes through the centre of the '
        f"{keys[0]}, then axial slices from its lower to its upper end: R right, L left, A front, "
        f"P back, S head, I feet; {first}{fewer}.</p>"
    )


def _case_pictures(case):
    """The three planes and the montage of a case as HTML."""
    volumes = report.oriented(case)
    views = "".join(
        _plane_picture(plane, f"{case.case}, {plane.name} plane with outlines", VIEW)
        for plane in report.central_planes(volumes)
    )
    slices = "".join(
        f"<figure>{_plane_picture(plane, f'{case.case}, axial slice {plane.name}', SLICE)}"
        f"<figcaption>{plane.name}</figcaption></figure>"
        for plane in report.axial_planes(volumes, SLICES)
    )
    return f'<div class="views">{views}</div><div class="slices">{slices}</div>'


def _plane_picture(plane, alt, look):
    figure = Figure(figsize=(3, 3))
    panel = figure.add_axes((0, 0, 1, 1))
    report.draw_plane(panel, plane, look.line_scale)
    if look.annotated:
        report.annotate_plane(panel, plane)
    # Without subsampling of the colours, which would blend an outline with the one it runs over.
    compression = {"quality": look.jpeg_quality, "subsampling": 0, "optimize": True}
    return _picture(figure, alt, look.dpi, "jpeg", compression)


def _picture(figure, alt, dpi, kind="png", compression=None):
    content = BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, pil_kwargs=compression)
    width, height = (round(side * dpi) for side in figure.get_size_inches())
    code = base64.b64encode(content.getvalue()).decode()
    return (
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" '
        f'src="data:image/{kind};base64,{code}">'
    )


def _plots(pictures, note):
    return (
        f'<div class="plots">{"".join(pictures)}</div><p class="note">A dot is a case. The box '
        "spans the middle half of the cases, with a line at the median; its whiskers reach to the "
        f"last case within one and a half times its length. {note}</p>"
    )


def _box_plot(label, unit, groups):
    """A box over each group, with its single cases as dots."""
    figure = Figure(figsize=(3.4, 2.6), layout="constrained")
    panel = figure.subplots()
    names, values = list(groups), list(groups.values())
    line = {"color": report.DICE_COLOUR}
    panel.boxplot(
        values,
        widths=0.55,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#DCEBF5", "edgecolor": report.DICE_COLOUR},
        medianprops={**line, "linewidth": 2},
        whiskerprops=line,
        capprops=line,
    )
    dot = {"markersize": 3.6, "alpha": 0.75, "markeredgecolor": "white", "markeredgewidth": 0.4}
    for position, group in enumerate(values, 1):
        # Side by side in an order that has nothing to do with the values.
        aside = 0.18 * np.sin(2.4 * np.arange(len(group)))
        panel.plot(position + aside, group, "o", color=report.LOSS_COLOUR, **dot)
    panel.set_xticks(range(1, len(names) + 1), names)
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    title = f"{label} ({unit})" if unit else label
    panel.set_title(title, fontsize=10, loc="left")
    medians = (f"{name} {_number(np.median(g), unit)}" for name, g in groups.items() if g)
    return _picture(figure, f"Box plot of {title}, medians: {', '.join(medians)}", 160)


def _training(history):
    figure = report.progress_figure(history)
    last = history.iloc[-1]
    alt = (
        f"Training curves over {last['epoch']:.0f} epochs: loss {last['train_loss']:.4f} at the end"
    )
    return _scroll(_picture(figure, alt, 140), "Training curves")


def _facts(facts):
    """A table of keys and values."""
    lines = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_text(value))}</td></tr>'
        for key, value in facts.items()
    )
    return f'<table class="facts"><tbody>{lines}</tbody></table>'


def _text(value):
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
