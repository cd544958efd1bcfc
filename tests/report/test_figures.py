"""Training curves and box plots: what the panels hold, and the colours in the picture."""

import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import imread
from matplotlib.text import Text

from src.report import figures
from src.report.figures import plot_progress
from tests.helpers import ROOT
from tests.report.made import history, near


@pytest.mark.parametrize(
    ("epochs", "validated", "panels"),
    [(1, (), 2), (1, (1,), 3), (12, (5, 10), 3), (500, range(1, 501), 3), (500, (), 2)],
)
def test_progress_shows_what_the_history_holds(tmp_path, epochs, validated, panels):
    table = history(epochs, validated)
    figure = figures.progress_figure(table)
    assert [panel.get_ylabel() for panel in figure.axes] == (
        ["training loss", "validation Dice", "learning rate"]
        if panels == 3
        else ["training loss", "learning rate"]
    )
    columns = ["train_loss", "val_dice", "learning_rate"]
    for panel in figure.axes:
        column = columns[
            ["training", "validation", "learning"].index(panel.get_ylabel().split()[0])
        ]
        x, y = panel.lines[0].get_data()
        expected = table[table[column].notna()]
        assert list(x) == list(expected["epoch"])
        assert list(y) == list(expected[column])
        assert epochs > 1 or panel.lines[0].get_marker() == "o"  # one point has no line
    if panels == 3:
        best = table.loc[table["val_dice"].idxmax()]
        star = figure.axes[1].lines[1]
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (best["epoch"], best["val_dice"])
        assert f"{best['val_dice']:.4f} in epoch {best['epoch']:.0f}" in star.get_label()

    plot_progress(table, tmp_path / "progress.png")
    picture = imread(tmp_path / "progress.png")[..., :3]
    assert picture.shape[1] == 880
    assert picture.shape[0] == pytest.approx(110 * 1.1 * (7.6 if panels == 3 else 4.6), abs=1)
    for colour in (figures.LOSS_COLOUR, figures.RATE_COLOUR):
        assert near(picture, colour).any()
    assert near(picture, figures.REFERENCE_COLOUR).any() == (panels == 3)  # the star


@pytest.mark.parametrize(("losses", "scale"), [((0.9, 0.7, 0.5), "linear"), ((0.9, 0.1), "log")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(losses, scale):
    table = history(len(losses)).assign(train_loss=losses)
    assert figures.progress_figure(table).axes[0].get_yscale() == scale


def test_a_box_plot_shows_every_case_and_the_quartiles():
    groups = [[0.9, 0.7, 0.8, 0.2, 0.85], [0.5], []]
    (panel,) = figures.box_plot_figure(groups).axes
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert [sorted(line.get_ydata()) for line in dots] == [sorted(values) for values in groups]
    for position, line in enumerate(dots, 1):
        assert (np.abs(line.get_xdata() - position) < 0.25).all()
    box = panel.patches[0].get_path().vertices[:, 1]
    assert (box.min(), box.max()) == pytest.approx(np.percentile(groups[0], (25, 75)))
    # The page writes the names below thirds of the panel.
    assert (*panel.get_xlim(), panel.get_position().x0, panel.get_position().x1) == pytest.approx(
        (0.5, 3.5, *figures.BOX_PLOT_SIDES)
    )


@pytest.mark.parametrize(
    "values", [(0.88061, 0.88063), (10, 150000), (12, 1.3e6), (150000, 150010), (-100, 2), (0, 0)]
)
def test_ticks_of_a_box_plot_are_true_numbers_of_few_digits(values):
    figure = figures.box_plot_figure([list(values), []])
    figure.draw_without_rendering()
    (panel,) = figure.axes
    labels = panel.get_yticklabels()
    assert panel.yaxis.get_offset_text().get_text() == ""
    assert min(label.get_window_extent().x0 for label in labels) >= 0
    shown = [float(label.get_text().replace("−", "-")) for label in labels]
    assert shown == pytest.approx(panel.get_yticks(), rel=1e-9, abs=1e-9)


def words(figure):
    """The texts in a figure other than numbers."""
    texts = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return {text for text in texts if re.search("[a-z]", text)}


def test_the_pictures_of_the_report_need_no_language():
    table = history(12, (5, 10))
    assert words(figures.progress_figure(table)) > {"training loss", "epoch"}
    unlabelled = figures.progress_figure(table, labelled=False)
    assert not words(unlabelled) and len(unlabelled.axes) == 3
    assert not words(figures.box_plot_figure([[0.9, 0.7], [0.5], []]))


def test_names_in_chinese_are_drawn_or_boxes_without_a_warning(capfd):
    def png(name):
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return figures.figure_png(figure)

    different = png("病例") != png("影像")
    assert different == bool(figures._chinese_fonts())
    assert png("\U0010fffd")  # no font has it
    assert capfd.readouterr() == ("", "")


def test_a_font_that_was_installed_after_the_first_start_is_found(monkeypatch):
    found = SimpleNamespace(ttflist=[SimpleNamespace(name="SimHei")])
    monkeypatch.setattr(figures, "FontManager", lambda: found)
    monkeypatch.setattr(fontManager, "ttflist", [])
    assert figures._chinese_fonts.__wrapped__() == ["SimHei"]


def test_drawing_leaves_the_global_state_of_pyplot_alone():
    code = "import sys, src.report.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    root = ROOT
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
