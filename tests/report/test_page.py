"""The report: its text by the standard library's parser, its looks and its sorting in a headless
Chromium."""

import base64
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from src.metrics import case_metrics
from src.report import page as report_page
from src.report import pictures, planes
from src.report.album import draw_case
from src.report.figures import PREDICTION_COLOUR, REFERENCE_COLOUR
from src.report.painter import Painter
from src.report.planes import OverlayCase
from tests.report.made import write_page
from tests.volumes import image_of

SHAPE_ZYX = (20, 40, 44)
SPACING_XYZ_MM = (1.2, 1.2, 3.0)
ODD = '病例 <b>07</b> & "x\'"</script><img src=http://example.com/a.png>'
LONG = "a_name_without_a_place_to_break_it_" * 5

on_grid = partial(image_of, spacing_mm=SPACING_XYZ_MM)


def gland(radius, shift=0):
    """An ellipsoid mask around the middle."""
    z, y, x = np.ogrid[tuple(slice(side) for side in SHAPE_ZYX)]
    scaled = ((z - 10) / 0.45) ** 2 + (y - 20) ** 2 + (x - 22 - shift) ** 2
    return (scaled <= radius**2).astype(np.uint8)


def scan(seed):
    noise = np.random.default_rng(seed).normal(300, 40, SHAPE_ZYX)
    return on_grid((noise + 200 * gland(12)).astype(np.float32))


REFERENCE = gland(13)
UPPER_HALF = gland(13) * (np.arange(20) >= 12)[:, None, None]
PREDICTIONS = {
    "Case10": gland(12),
    "Case2": gland(12, shift=4),
    ODD: gland(13, shift=2),
    "missed": 0 * REFERENCE,
    "half": UPPER_HALF.astype(np.uint8),
    LONG: gland(13),
}
FOUND = {
    "missed": ["Dice below 0.8", "empty prediction"],
    "half": ["Dice below 0.8", "nothing predicted at apex"],
    "Case2": ["Dice below 0.8"],
}
ROWS = [
    {
        "case": name,
        **case_metrics(on_grid(REFERENCE), on_grid(mask)),
        "findings_text": FOUND.get(name, []),
    }
    for name, mask in PREDICTIONS.items()
]
NOT_READ = "<other>/image.mha: truncated"
PLANE = "sagittal slices, trained on axial ones"
VOLUMES = [
    {
        "case": name,
        "prostate_ml": float(mask.sum() * 4.32 / 1000),
        "findings_text": {"Case2": ["sagittal stack"], "missed": ["the mask is empty"]}.get(
            name, []
        ),
        "problem": None,
    }
    for name, mask in PREDICTIONS.items()
]
VOLUMES.append({"case": "bad", "prostate_ml": None, "findings_text": [], "problem": NOT_READ})
SEGMENTED = VOLUMES[:-1]
COUNTED_ML = [row["prostate_ml"] for row in SEGMENTED if row["case"] != "missed"]
METADATA = {
    "checkpoint": Path("run", "ckpt", "best.ckpt"),
    "configuration": {
        "VolSize": [128, 128, 64],
        "task": "<i>&",
        "flip_average": False,
        "added": 7,
    },
    "written": "2031-05-06 07:08",
}
HISTORY = pd.DataFrame(
    {
        "epoch": range(1, 41),
        "learning_rate": np.linspace(1e-3, 0, 40),
        "train_loss": np.geomspace(0.9, 0.05, 40),
        "val_dice": [0.02 * epoch if epoch % 5 == 0 else np.nan for epoch in range(1, 41)],
    }
)


def overlay_cases(reference=True):
    for seed, (name, mask) in enumerate(PREDICTIONS.items()):
        yield OverlayCase(
            name, scan(seed), on_grid(mask), on_grid(REFERENCE) if reference else None
        )


def pictures_of(cases):
    return {case.case: draw_case(case, Painter()).pictures.result() for case in cases}


@pytest.fixture(scope="module")
def drawn():
    """The pictures of each case."""
    return pictures_of(overlay_cases())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, drawn):
    """The report of an evaluation with all that one can have."""
    path = tmp_path_factory.mktemp("报告 of #1?") / "report.html"
    write_page(path, ROWS, drawn, METADATA, HISTORY)
    return path


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    path = tmp_path_factory.mktemp("predicted") / "report.html"
    write_page(path, VOLUMES, pictures_of(overlay_cases(reference=False)), METADATA)
    return path


@pytest.fixture
def quick_report(tmp_path, monkeypatch):
    """Function rows, ... -> the page of a report with blank box plots, which take longest."""
    monkeypatch.setattr(pictures, "box_plot_figure", lambda *_: Figure((0.1, 0.1)))

    def quick(rows, drawn=None, history=None, metadata=METADATA, language="en"):
        path = tmp_path / "report.html"
        write_page(path, rows, drawn or {}, metadata, history, language)
        return parsed(path)

    return quick


# --- the words ----------------------------------------------------------------------------------

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page as a list of its elements; fails at a tag that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {tag}"
        element = {
            "tag": tag,
            "text": "",
            "within": [e["tag"] for e in self.open],
            **dict(attributes),
        }
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data.replace("\xa0", " ")

    def all(self, tag, within=""):
        return [
            e for e in self.elements if e["tag"] == tag and (not within or within in e["within"])
        ]

    def section(self, name):
        """Its elements: all up to the next section."""
        (start,) = [i for i, e in enumerate(self.elements) if e.get("id") == name]
        ends = [i for i, e in enumerate(self.elements) if e["tag"] == "section" and i > start]
        return self.elements[start : ends[0] if ends else None]


def parsed(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    return Page(text)


def number(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_the_page_is_whole_and_refers_to_nothing_but_itself(which, request):
    path = request.getfixturevalue(which)
    page = parsed(path)
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"][0] == "#" and link["href"][1:] in ids
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    (style,), (script,) = page.all("style"), page.all("script")
    assert not re.search(r"url\(|@import|https?:", style["text"] + script["text"])
    assert not {"iframe", "object", "video", "b", "i"} & {e["tag"] for e in page.elements}
    assert not any(key.startswith("on") or key == "style" for e in page.elements for key in e)
    (policy,) = [e["content"] for e in page.all("meta") if "http-equiv" in e]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_sections_come_in_their_order(which, request):
    names = ["Failures", "Summary", "Distribution", "Cases", "Pictures"]
    names += ["Training"] * (which == "evaluated") + ["Configuration", "Origin"]
    page = parsed(request.getfixturevalue(which))
    assert [heading["text"] for heading in page.all("h2")] == names
    assert [link["text"] for link in page.all("a", "nav")] == names


def test_a_page_in_chinese(tmp_path):
    """Of a prediction, whose findings come with their codes from a table in English."""
    rows = [
        {**SEGMENTED[0], "findings": ["plane", "new"], "findings_text": [PLANE, "a later rule"]},
        {**SEGMENTED[1], "findings": ["small"], "findings_text": ["less than 10 ml"]},
        {**VOLUMES[-1], "findings": []},
    ]
    case = next(overlay_cases(reference=False))
    path = tmp_path / "report.html"
    write_page(path, rows, pictures_of([case]), METADATA, HISTORY, language="zh")
    page = parsed(path)
    assert page.all("html")[0]["lang"] == "zh-CN"
    assert [heading["text"] for heading in page.all("h2")] == [
        *("不合格", "汇总", "分布", "病例", "图像", "训练", "配置", "来源")
    ]
    assert [item.partition(" ")[2].partition(" ml，")[2] for item in items(page)] == [
        "矢状位扫描，训练数据为轴位；a later rule",
        "小于 10 ml",
        "",
    ]
    assert page.all("footer")[0]["text"] == "不是医疗器械，仅供研究。"
    assert list(facts(page.section("origin"))) == ["检查点", "写出时间"]
    # English are names, units, letters, and what comes from files.
    tags = {"h2", "h3", "p", "li", "th", "td", "figcaption", "summary"}
    texts = " ".join(e["text"] for e in page.elements if e["tag"] in tags)
    words = set(re.findall("[A-Za-z]{3,}", texts))
    words -= set(re.findall("[A-Za-z]+", f"{NOT_READ} {METADATA} a later rule volumes csv bad"))
    assert words == {"Case", "Dice", "Net"}
    assert {image["alt"].partition("，")[0] for image in page.all("img", "article")} == {"Case10"}


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_the_footer_says_what_it_is_not_for(which, request):
    (footer,) = parsed(request.getfixturevalue(which)).all("footer")
    assert footer["text"] == "Not a medical device; for research."


def test_the_verdict(evaluated, predicted):
    dice = [row["dice"] for row in ROWS]
    (heading,) = parsed(evaluated).all("h1")
    assert heading["text"] == f"Dice {np.mean(dice):.3f} ± {np.std(dice):.3f}"
    (verdict,) = [e for e in parsed(evaluated).all("p") if e.get("class") == "verdict"]
    assert verdict["text"] == "mean ± standard deviation of 6 cases · 3 failures"
    (heading,) = parsed(predicted).all("h1")
    assert heading["text"] == f"{np.mean(COUNTED_ML):.1f} ± {np.std(COUNTED_ML):.1f} ml"
    (verdict,) = [e for e in parsed(predicted).all("p") if e.get("class") == "verdict"]
    assert (
        "of 5 of 7 images, without failures, empty and earlier masks · 3 failures"
        in verdict["text"]
    )


def test_the_summary_holds_all_metrics_of_gland_base_and_apex(evaluated):
    page = parsed(evaluated)
    cells = [number(e["text"]) for e in page.section("summary") if e["tag"] == "td" and e["text"]]
    table = pd.DataFrame(ROWS)
    expected = []
    for part in ("", "base_", "apex_"):
        for key, digits in (
            ("dice", 3),
            ("volume_difference_percent", 1),
            ("absolute_volume_difference_percent", 1),
            ("hausdorff_mm", 2),
            ("hausdorff95_mm", 2),
            ("boundary_distance_mm", 2),
        ):
            column = table[part + key]
            worst = column.min() if key == "dice" else column[column.abs().idxmax()]
            numbers = (column.mean(), column.std(ddof=0), column.median(), worst)
            expected += [pytest.approx(value, abs=0.501 * 10**-digits) for value in numbers]
    assert cells == expected
    heads = [e["text"] for e in page.section("summary") if e.get("scope") == "rowgroup"]
    assert heads == ["Whole gland", "Base", "Apex"]
    # Of "missed", and of the apex of "half".
    notes = [e["text"] for e in page.section("summary") if e.get("class") == "note"]
    assert notes[1:] == ["Distances of empty masks count as the image's diagonal (2 cases)."]


def test_the_summary_of_volumes(predicted):
    page = parsed(predicted)
    cells = [number(e["text"]) for e in page.section("summary") if e["tag"] == "td" and e["text"]]
    ml = pd.Series(COUNTED_ML)
    statistics = (ml.mean(), ml.std(ddof=0), ml.median(), ml.min(), ml.max())
    assert cells == [pytest.approx(value, abs=0.0501) for value in statistics]


def test_the_table_holds_every_case_from_the_worst_on(evaluated):
    page = parsed(evaluated)
    worst_first = sorted(ROWS, key=lambda row: row["dice"])
    body = [e for e in page.section("cases") if "tbody" in e["within"]]
    assert [e["text"] for e in body if e["tag"] == "th"] == [row["case"] for row in worst_first]
    cells = [e for e in body if e["tag"] == "td"]
    columns = report_page.REFERENCE_COLUMNS * len(ROWS)
    expected = [row[column.key] for row in worst_first for column in report_page.REFERENCE_COLUMNS]
    for cell, column, value in zip(cells, columns, expected, strict=True):
        assert number(cell["text"]) == pytest.approx(value, abs=0.0501)
        assert float(cell["data-value"]) == (abs(value) if column.signed else value)
    sorted_by = [e["text"] for e in page.section("cases") if "aria-sort" in e]
    assert sorted_by == ["Dice"]


def test_measures_get_columns_where_the_results_have_them(quick_report):
    measures = {
        "ellipsoid_ml": 31.25,
        "left_right_mm": 48.04,
        "front_back_mm": 30.0,
        "head_foot_mm": 41.26,
        "mean_probability": 0.9375,
    }
    none = dict.fromkeys(measures)
    page = quick_report([{**SEGMENTED[0], **measures}, {**SEGMENTED[1], **none}])
    texts = [e["text"] for e in page.section("cases") if e["tag"] == "td"]
    assert texts[7:] == ["31.2", "48.0", "30.0", "41.3", "0.938"]
    assert texts[1:6] == ["–"] * 5
    heads = [e["text"] for e in page.section("cases") if e["tag"] == "button"]
    assert heads[3:] == ["Left–right mm", "Front–back mm", "Head–foot mm", "Mean probability"]


@pytest.mark.parametrize(
    ("language", "verdict", "lines", "column", "of_case", "network"),
    [
        (
            "en",
            "mean ± standard deviation of 3 cases in 2 folds",
            ["Dice of fold 0, 2 cases", "Dice of fold 1, 1 case"],
            "Fold",
            "fold 1",
            "network {} of 2",
        ),
        (
            "zh",
            "3 例（2 折）的平均值 ± 标准差",
            ["第 0 折的 Dice 系数，2 例", "第 1 折的 Dice 系数，1 例"],
            "折",
            "第 1 折",
            "第 {} 个网络（共 2 个）",
        ),
    ],
)
def test_a_cross_validation(
    quick_report, drawn, language, verdict, lines, column, of_case, network
):
    rows = [{"fold": fold, **ROWS[i]} for i, fold in enumerate((0, 1, 0))]
    metadata = {
        "checkpoints": {"a/last.ckpt": "12ab", "b/last.ckpt": "34cd"},
        "folds": {"0": {}, "1": {}},
    }
    page = quick_report(rows, drawn, metadata=metadata, language=language)
    assert page.all("p")[1]["text"].partition(" · ")[0] == verdict
    (start,) = [i for i, e in enumerate(page.elements) if e["text"] == lines[0]]
    cells = [e["text"] for e in page.elements[start:] if e["tag"] in ("th", "td")][:10]
    own = [rows[0]["dice"], rows[2]["dice"]]
    assert cells[:3] == [lines[0], f"{np.mean(own):.3f}", f"{np.std(own):.3f}"]
    # Of a single case there is no deviation.
    assert cells[5:] == [
        lines[1],
        *(f"{rows[1]['dice']:.3f}", "–", *[f"{rows[1]['dice']:.3f}"] * 2),
    ]
    heads = [e["text"] for e in page.section("cases") if e["tag"] == "button"]
    assert heads[1] == column and heads[2].startswith("Dice")
    table = [e["text"] for e in page.section("cases") if e["tag"] in ("th", "td")]
    of_cases = dict(zip(table[11::11], table[12::11], strict=True))
    assert of_cases == {row["case"]: str(row["fold"]) for row in rows}
    (article,) = [e["text"] for e in page.all("article") if rows[1]["case"] + "\n" in e["text"]]
    assert f" · {of_case}" in article
    assert facts(page.section("origin")) == {
        network.format(1): "a/last.ckpt (SHA-256 12ab)",
        network.format(2): "b/last.ckpt (SHA-256 34cd)",
    }


def test_pictures_run_from_the_worst_case_and_links_lead_to_them(evaluated):
    page = parsed(evaluated)
    worst_first = sorted(ROWS, key=lambda row: row["dice"])
    assert [heading["text"] for heading in page.all("h3")] == [row["case"] for row in worst_first]
    places = {f"#{e['id']}": i for i, e in enumerate(page.elements) if e["tag"] == "article"}
    links = page.all("a", "section")
    assert len(links) == len(ROWS) + 3
    for link in links:
        heading = next(e for e in page.elements[places[link["href"]] :] if e["tag"] == "h3")
        assert heading["text"] == link["text"]
    for article, row in zip(page.all("article"), worst_first, strict=True):
        assert f"Dice {row['dice']:.3f}" in article["text"]
        assert f"prediction {row['prediction_ml']:.1f} ml" in article["text"]
    names = [image["alt"] for image in page.all("img", "article")]
    # The montage: slices 10 +- 5 hold the gland, all of them fewer than twelve.
    views = [f"{plane} plane with outlines" for plane in ("axial", "sagittal", "coronal")]
    slices = [f"axial slice {z + 1}/20" for z in range(5, 16)]
    sides = ["front", "patient's left", "back", "patient's right"]
    surfaces = [f"surface from the {side}" for side in sides]
    assert names == [
        f"{row['case']}, {view}"
        for row in worst_first
        for view in [*views, *(surfaces if row["prediction_ml"] else []), *slices]
    ]


def test_configuration_and_origin_are_told(evaluated):
    page = parsed(evaluated)
    origin = {"checkpoint": str(METADATA["checkpoint"]), "written": "2031-05-06 07:08"}
    assert facts(page.section("origin")) == origin
    # Only what differs from the defaults is open to see.
    elements = page.section("configuration")
    folded = [e for e in elements if "details" in e["within"]]
    assert facts(folded) == {"VolSize": "128, 128, 64", "flip_average": "False"}
    assert facts([e for e in elements if e not in folded]) == {"task": "<i>&", "added": "7"}
    assert [e["text"] for e in folded if e["tag"] == "summary"] == ["2 keys with their default"]


def facts(elements):
    keys, values = ([e["text"] for e in elements if e["tag"] == tag] for tag in ("th", "td"))
    return dict(zip(keys, values, strict=True))


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_the_pictures_are_small(which, request):
    """About 160 kB a case with its share of the rest."""
    assert request.getfixturevalue(which).stat().st_size < 160_000 * len(ROWS) + 400_000


# --- the failures -------------------------------------------------------------------------------


def items(page, section="failures"):
    return [e["text"] for e in page.section(section) if e["tag"] == "li"]


def test_failures_are_listed_from_the_worst(evaluated, predicted):
    score = {row["case"]: f"{row['case']} Dice {row['dice']:.3f}" for row in ROWS}
    assert items(parsed(evaluated)) == [
        f"{score['missed']}, Dice below 0.8; empty prediction",
        f"{score['half']}, Dice below 0.8; nothing predicted at apex",
        f"{score['Case2']}, Dice below 0.8",
    ]
    page = parsed(predicted)
    assert [item.partition(" ")[::2] for item in items(page)] == [
        ("Case2", f"{SEGMENTED[1]['prostate_ml']:.1f} ml, sagittal stack"),
        ("missed", "0.0 ml, the mask is empty"),
        ("bad", f"not segmented, {NOT_READ}"),
    ]
    assert [heading["text"] for heading in page.all("h3")][:2] == ["Case2", "missed"]
    rows = [e.get("class") for e in page.section("cases") if e["tag"] == "tr"]
    assert [row == "failed" for row in rows] == [False] + [True] * 3 + [False] * 4


def test_an_image_without_a_mask_has_a_row_and_no_pictures(predicted):
    page = parsed(predicted)
    cells = {}
    for element in page.section("cases"):
        if element["tag"] == "th":
            case = element["text"]
        if element["tag"] == "td":
            cells[case] = (element["text"], element["data-value"])
    assert cells["bad"] == ("–", "-1") and len(cells) == len(VOLUMES)
    assert len(page.all("article")) == len(SEGMENTED)


def test_where_nothing_was_segmented_the_reasons_are_told(quick_report):
    earlier = {**VOLUMES[0], "problem": "edited"}
    page = quick_report([VOLUMES[-1], earlier])
    assert page.all("h1")[0]["text"] == "No volume"
    assert items(page) == [
        f"bad not segmented, {NOT_READ}",
        f"{earlier['case']} earlier mask, edited",
    ]
    assert [heading["text"] for heading in page.all("h2")] == [
        *("Failures", "Cases", "Configuration", "Origin")
    ]


def test_without_failures_the_lowest_are_named(quick_report):
    good = [
        {**ROWS[0], "findings_text": [], "case": f"c{n}", "dice": 0.8 + 0.01 * (n * 3 % 7)}
        for n in range(7)
    ]
    page = quick_report(good)
    assert items(page) == ["c0 Dice 0.800", "c5 Dice 0.810", "c3 Dice 0.820"]
    page = quick_report([{**VOLUMES[0], "prostate_ml": 50.0}])
    assert items(page) == []
    assert "None." in [e["text"] for e in page.section("failures") if e["tag"] == "p"]
    assert "failure" not in page.all("title")[0]["text"]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        *((0.79962, "", "0.7996"), (0.7999999999, "", "0.800"), (0.8, "", "0.800")),
        *(
            (9.96, "ml", "9.96"),
            (250.04, "ml", "250.04"),
            (0.007, "ml", "<0.1"),
            (0.0, "ml", "0.0"),
        ),
        *((-0.03, "%", "0.0"), (0.03, "%", "0.0"), (-0.06, "%", "−0.1"), (0.06, "%", "+0.1")),
    ],
)
def test_a_rounded_number_does_not_contradict_what_stands_beside_it(value, unit, expected):
    assert report_page.format_number(value, unit, signed=unit == "%") == expected


# --- odd cases ----------------------------------------------------------------------------------


def test_of_many_cases_the_worst_are_drawn(quick_report, drawn, monkeypatch):
    monkeypatch.setattr(report_page, "PICTURED_CASES", 2)
    page = quick_report(ROWS, drawn)
    pictured = {image["alt"].split(",")[0] for image in page.all("img", "article")}
    assert pictured == {"missed", "half"}
    assert len(page.all("article")) == 2
    assert {link["text"] for link in page.all("a", "table")} == pictured
    assert len([e for e in page.section("cases") if e.get("scope") == "row"]) == len(ROWS)
    assert any("Shown are 2 of 6 cases." in e["text"] for e in page.section("pictures"))


def test_the_number_of_drawn_cases_is_that_of_the_pictures(quick_report, drawn, monkeypatch):
    """Of the cases with a mask, fewer than may be drawn."""
    monkeypatch.setattr(report_page, "PICTURED_CASES", 2)
    failed = [{**VOLUMES[-1], "case": f"bad{n}"} for n in range(3)]
    page = quick_report([*failed, VOLUMES[0]], drawn)
    assert len(page.all("article")) == 1
    assert any("Shown are 1 of 4 cases." in e["text"] for e in page.section("pictures"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("prediction", "reference"),
    [(0 * REFERENCE, REFERENCE), (REFERENCE, 0 * REFERENCE), (0 * REFERENCE, 0 * REFERENCE)],
)
def test_a_single_case_with_an_empty_mask(tmp_path, prediction, reference):
    case = OverlayCase("only", scan(0), on_grid(prediction), on_grid(reference))
    metrics = case_metrics(case.reference, case.prediction)
    row = {"case": "only", **metrics, "findings_text": ["empty prediction"]}
    write_page(tmp_path / "report.html", [row], pictures_of([case]), METADATA)
    page = parsed(tmp_path / "report.html")
    assert "1 case · 1 failure" in page.all("header")[0]["text"]
    shown = 11 if (prediction.any() or reference.any()) else planes.AXIAL_SLICES
    assert len(page.all("img", "article")) == 3 + 4 * prediction.any() + shown


def test_a_single_case_has_no_deviation(quick_report):
    page = quick_report([ROWS[0]])
    assert page.all("h1")[0]["text"] == f"Dice {ROWS[0]['dice']:.3f}"
    assert [e["text"] for e in page.section("summary") if e.get("scope") == "col"] == ["Value"]
    cells = [e["text"] for e in page.section("summary") if e["tag"] == "td" and e["text"]]
    assert len(cells) == 18 and cells[0] == f"{ROWS[0]['dice']:.3f}"
    assert "Distribution" not in [heading["text"] for heading in page.all("h2")]
    page = quick_report([SEGMENTED[0]])
    assert page.all("h1")[0]["text"] == f"{SEGMENTED[0]['prostate_ml']:.1f} ml"
    assert "sort" not in page.all("main")[0]["text"] and "first" not in page.all("main")[0]["text"]
    headings = [heading["text"] for heading in page.all("h2")]
    assert headings == ["Failures", "Cases", "Pictures", "Configuration", "Origin"]
    about = "of which more than 5 % was cut off as no part of the gland, or whose volume"
    assert about in page.all("main")[0]["text"]
    assert not any(word in page.all("main")[0]["text"] for word in ("deviation", "nan", "±"))


def test_without_a_training_its_section_is_left_out(quick_report):
    page = quick_report(ROWS, history=None)
    assert "Training" not in [heading["text"] for heading in page.all("h2")]


def test_a_name_that_is_no_text(quick_report):
    """Such as a file name of another encoding."""
    name = b"Case\xe9".decode(errors="surrogateescape")
    page = quick_report([{**ROWS[0], "case": name}])
    assert page.all("h3")[0]["text"] == "Case?"


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=programs[1])
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(20)
        yield driver


@pytest.fixture
def opened(browser):
    """Function path -> the browser with the page of this file."""

    def open_page(path):
        for log in ("browser", "performance"):
            browser.get_log(log)  # what earlier pages left
        browser.get(path.as_uri())
        return browser

    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    return open_page


def network_events(browser):
    """(method, parameters) of all that the network layer did."""
    messages = (json.loads(e["message"])["message"] for e in browser.get_log("performance"))
    return [(m["method"], m["params"]) for m in messages if m["method"].startswith("Network.")]


def screen(browser, width, media="screen"):
    """Makes the window as wide as a phone or a sheet of paper."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_opening_it_needs_no_network_and_makes_no_error(which, request, opened):
    path = request.getfixturevalue(which)
    browser = opened(path)
    assert browser.title.startswith({"e": "Evaluation", "p": "Prediction"}[which[0]])
    events = network_events(browser)
    asked = [p["request"]["url"] for method, p in events if method == "Network.requestWillBeSent"]
    assert asked.count(path.as_uri()) == 1
    assert {url.split(":")[0] for url in asked if url != path.as_uri()} <= {"data"}
    assert browser.get_log("browser") == []


def test_the_policy_holds_even_against_the_page_itself(predicted, opened):
    browser = opened(predicted)
    failed = browser.execute_async_script(
        """
        const image = new Image();
        image.onerror = () => arguments[0](true);
        image.onload = () => arguments[0](false);
        image.src = "http://127.0.0.1:9/a.png";
        """
    )
    assert failed
    assert any(
        "Content Security Policy" in entry["message"] for entry in browser.get_log("browser")
    )


PICTURES = """
const done = arguments[0];
Promise.all([...document.images].map((image) => image.decode().catch(() => null))).then(() =>
  done([...document.images].map((image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let [sum, squares, count] = [0, 0, pixels.length / 4];
    const seen = [0, 0];
    for (let i = 0; i < pixels.length; i += 4) {
      sum += pixels[i];
      squares += pixels[i] ** 2;
      [[230, 159, 0], [86, 180, 233]].forEach((colour, k) => {
        seen[k] += colour.every((value, c) => Math.abs(pixels[i + c] - value) < 32);
      });
    }
    const sharp = canvas.width / image.getBoundingClientRect().width;
    const deviation = Math.sqrt(squares / count - (sum / count) ** 2);
    return [image.alt, canvas.width, deviation, ...seen, sharp];
  })));
"""


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_every_picture_is_there_and_shows_something(which, request, opened):
    browser = opened(request.getfixturevalue(which))
    pictures = browser.execute_async_script(PICTURES)
    assert len(pictures) > 12 * len(PREDICTIONS)
    for alt, width, deviation, orange, blue, sharpness in pictures:
        assert width > 100 and deviation > 10, alt
        assert sharpness > 0.8, alt
        case, _, view = alt.rpartition(", ")
        if case not in PREDICTIONS or "surface" in view:
            continue  # a drawing
        # The last slices of the larger mask are empty in the smaller one.
        if "slice" not in view or "11/" in view:
            assert (orange > 10) == (which == "evaluated"), alt
            above = case == "half" and which == "evaluated" and "axial" in view
            assert (blue > 10) == (PREDICTIONS[case].any() and not above), alt


def test_both_outlines_are_seen_on_the_screen(evaluated, opened):
    browser = opened(evaluated)
    (views,) = browser.find_elements("css selector", "article:nth-of-type(3) .views")
    shown = imread(BytesIO(views.screenshot_as_png))[..., :3]
    for colour in (REFERENCE_COLOUR, PREDICTION_COLOUR):
        assert (np.abs(shown - to_rgb(colour)).max(axis=-1) < 0.12).sum() > 200
    assert shown.std() > 0.1


def column(browser, number):
    return browser.execute_script(
        """
        return [...document.querySelectorAll("table.sortable tbody tr")].map(
          (row) => row.cells[arguments[0]].textContent);
        """,
        number,
    )


def heading(browser, number):
    return browser.find_elements("css selector", "table.sortable thead button")[number]


def sorting(browser):
    return browser.execute_script(
        """
        return [...document.querySelectorAll("table.sortable thead th")].map(
          (header) => header.getAttribute("aria-sort"));
        """
    )


def test_a_press_on_a_heading_sorts_the_table(evaluated, opened):
    browser = opened(evaluated)
    worst_first = sorted(ROWS, key=lambda row: row["dice"])
    assert column(browser, 0) == [row["case"] for row in worst_first]
    assert [order for order in sorting(browser) if order] == ["ascending"]
    # 'Volume difference' has a sign and 'Hausdorff' takes one to three digits.
    for number, (key, *_) in list(enumerate(report_page.REFERENCE_COLUMNS, 1))[::3]:
        orders = ("ascending", "descending", "ascending")
        for order in orders[key == "dice" :]:  # it is sorted by its Dice already
            heading(browser, number).click()
            values = {row["case"]: abs(row[key]) for row in ROWS}
            shown = [values[case] for case in column(browser, 0)]
            assert shown == sorted(shown, reverse=order == "descending"), key
            assert sorting(browser)[number] == order
            assert sum(map(bool, sorting(browser))) == 1
        dice = [
            f"{row['dice']:.3f}"
            for case in column(browser, 0)
            for row in ROWS
            if row["case"] == case
        ]
        assert column(browser, 1) == dice  # rows move as a whole
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("key", ["\ue007", " "], ids=["enter", "space"])
def test_the_keyboard_sorts_too(evaluated, opened, key):
    browser = opened(evaluated)
    heading(browser, 1).send_keys(key)
    scores = [float(text) for text in column(browser, 1)]
    assert scores == sorted(scores)[::-1] and sorting(browser)[1] == "descending"


def test_names_sort_by_their_numbers(evaluated, opened):
    browser = opened(evaluated)
    for order in (1, -1):
        heading(browser, 0).click()
        names = column(browser, 0)
        assert sorted(names[::order]) != names[::order]
        assert names[::order].index("Case2") < names[::order].index("Case10")


def test_a_link_leads_from_the_table_to_the_pictures(evaluated, opened):
    browser = opened(evaluated)
    browser.find_element("link text", "Case10").click()
    top = browser.execute_script(
        "return document.querySelector('article:target').getBoundingClientRect().top"
    )
    assert browser.find_element("css selector", "article:target h3").text == "Case10"
    assert 0 <= top < 10


WIDTHS = """
return [...document.querySelectorAll(arguments[0])].map((e) => [e.scrollWidth, e.clientWidth]);
"""


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_the_page_never_scrolls_sideways(which, request, opened):
    browser = opened(request.getfixturevalue(which))
    for width in (360, 768, 1280):
        screen(browser, width)
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
        boxes = browser.execute_script(WIDTHS, ".scroll")
        # Where the wide table is too wide it moves within its own box.
        is_too_wide = which == "evaluated" and width < 1280
        assert any(inner > outer for inner, outer in boxes) == is_too_wide, width


def contrast(one, other):
    """The contrast of two colours by the WCAG."""
    lights = []
    for colour in (one, other):
        parts = np.array(to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
    return max(lights) / min(lights)


CASCADED = """
const style = getComputedStyle(document.documentElement);
return arguments[0].map((name) => style.getPropertyValue("--" + name).trim());
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_legend_are_readable_in_both_colour_schemes(evaluated, opened, scheme):
    browser = opened(evaluated)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    names = ["paper", "ink", "quiet", "blue", "alarm", "hover"]
    paper, *inks, hover = browser.execute_script(CASCADED, names)
    assert (contrast(paper, "black") > 15) == (scheme == "light")
    for ink in inks:
        assert contrast(ink, paper) > 4.5 and contrast(ink, hover) > 4.5
    body = browser.find_element("css selector", "body").screenshot_as_png
    background = imread(BytesIO(body))[2, 2, :3]
    assert background == pytest.approx(to_rgb(paper), abs=0.01)
    # The keys have the colours of the outlines, on black as in the pictures.
    key = browser.find_element("css selector", ".key.reference").screenshot_as_png
    shown = imread(BytesIO(key))[..., :3]
    middle = len(shown) // 2
    assert shown[middle, 12] == pytest.approx(to_rgb(REFERENCE_COLOUR), abs=0.02)
    assert shown[middle - 6, 12] == pytest.approx((0, 0, 0), abs=0.02)
    assert min(contrast(c, "black") for c in (REFERENCE_COLOUR, PREDICTION_COLOUR)) > 3
    # Drawings have the page's background, too.
    plot = browser.find_element("css selector", ".plots img").screenshot_as_png
    assert imread(BytesIO(plot))[5, 5, :3] == pytest.approx(to_rgb(paper), abs=0.02)


SIZES = """
return [...document.querySelectorAll(arguments[0])].map((element) => {
  const box = element.getBoundingClientRect();
  return [element.textContent, box.width, box.height];
});
"""


def test_on_a_phone_a_thumb_hits_every_link_and_wide_tables_say_so(evaluated, opened):
    browser = opened(evaluated)
    screen(browser, 390)
    for name, width, height in browser.execute_script(SIZES, "a, button, summary"):
        assert width >= 44 and height >= 44, name
    hints = """return [...document.querySelectorAll(".scroll")].map((box) =>
      [box.scrollWidth > box.clientWidth, box.previousElementSibling.offsetHeight > 0]);"""
    shown = browser.execute_script(hints)
    assert {wide == hint for wide, hint in shown} == {True} and any(wide for wide, _ in shown)
    screen(browser, 1280)
    assert not any(map(any, browser.execute_script(hints)))


@pytest.mark.parametrize("which", ["evaluated", "predicted"])
def test_it_prints_on_paper(which, request, opened):
    browser = opened(request.getfixturevalue(which))
    papers_mm = {"A4": (210, 297), "letter": (216, 279)}
    for name, (width_mm, height_mm) in papers_mm.items():
        command = {"paperWidth": width_mm / 25.4, "paperHeight": height_mm / 25.4}
        paper = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", command)["data"])
        assert paper.startswith(b"%PDF"), name
        pages = len(re.findall(rb"/Type /Page\b", paper))
        assert pages <= (8 if which == "evaluated" else 5), name  # two cases on each
    for name, (width_mm, _) in papers_mm.items():
        screen(browser, round((width_mm - 2 * 14) / 25.4 * 96), "print")
        for inner, outer in browser.execute_script(WIDTHS, "html, .scroll"):
            assert inner <= outer, name  # nothing is cut off
        check_breaks(browser)


def check_breaks(browser):
    """What belongs together is on one page, and a name on one line."""
    broken = browser.execute_script(
        """
        return [...document.querySelectorAll("article, tr, img")].filter(
          (element) => getComputedStyle(element).breakInside !== "avoid").length;
        """
    )
    assert broken == 0
    words = browser.find_element("css selector", "body").text
    assert "first." in words and "sort" not in words  # there is nothing to click on
    (note,) = browser.find_elements("css selector", "#pictures > .note")
    assert note.value_of_css_property("break-after") == "avoid"  # the pictures follow
    # Of the names only one that is very long is broken; the head, repeated on each page, would be
    # blank with buttons in it.
    lines = """return [...document.querySelectorAll(".sortable .name")].map((name) =>
      [name.textContent, new Set([...name.getClientRects()].map((box) => box.top)).size
        * name.getBoundingClientRect().height / parseFloat(getComputedStyle(name).lineHeight)]);"""
    assert {name for name, count in browser.execute_script(lines) if count > 1.5} <= {ODD, LONG}
    shown = "return getComputedStyle(document.querySelector('thead button')).display"
    assert browser.execute_script(shown) == "contents"
