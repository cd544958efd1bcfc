"""The gallery shows what `src.augment` does: every transform, with its parameters, in its place."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from src import augment
from src.config import AUGMENT_KEYS
from src.data_manager import TrainingVolume
from src.report import gallery
from src.utils.command_line import run
from tools import augment_gallery

VOXEL_MM = [1.0, 1.25, 2.0]


def made_volume(config, index):
    """An ellipsoid in a gradient instead of a phantom, on the grid of the configuration."""
    grids = np.ogrid[tuple(slice(n) for n in config.VolSize)]
    shares = (0.15 + 0.02 * index, 0.12, 0.2)
    distance = sum(
        ((i - 0.46 * n) / (share * n)) ** 2
        for i, n, share in zip(grids, config.VolSize, shares, strict=True)
    )
    tissue = 0.2 + 0.3 * grids[0] / config.VolSize[0] + 0.4 * np.exp(-distance) ** (1 + index)
    return TrainingVolume(tissue.astype(np.float32), distance < 1, "axial")


@pytest.fixture(scope="module")
def volumes(small_config):
    config = small_config(
        *("VolSize=48,48,16", f"dstRes={','.join(map(str, VOXEL_MM))}"),
        *(f"{key}=1" for key in AUGMENT_KEYS),
    )
    return [made_volume(config, index) for index in range(3)], config


@pytest.fixture(scope="module")
def shown(volumes):
    """The panels of these volumes."""
    return gallery.gallery_panels(*volumes)


def drawn_panel(panel, original):
    axes = Figure().add_subplot()
    gallery.draw_panel(axes, panel, original, VOXEL_MM)
    return axes


def vertices(contour):
    return np.concatenate([path.vertices for path in contour.get_paths() if len(path.vertices)])


# Panels ------------------------------------------------------------------------------------------


def test_every_transform_has_its_panel(shown):
    names = [panel.name for panel in shown]
    transforms = [name.replace("_", " ") for name in augment.TRANSFORMS]
    assert names == ["original", *transforms, *["all"] * gallery.SAMPLES]


def test_panels_show_what_training_would_get(volumes, shown):
    cases, config = volumes
    assert np.array_equal(shown[0].intensity, cases[0].intensity)
    params = augment.draw(config, 0, 0, 3)
    strong = gallery.strong_parameters(params, 3)
    for name, panel in zip(augment.TRANSFORMS, shown[1:], strict=False):
        intensity, mask = augment.apply({name: strong[name]}, cases, 0, VOXEL_MM)
        assert np.array_equal(panel.intensity, intensity), name
        assert np.array_equal(panel.mask, mask), name
        assert (panel.positions is not None) == (name in augment.SPATIAL)
        assert not np.array_equal(intensity, cases[0].intensity), name
    for epoch, panel in enumerate(shown[-gallery.SAMPLES :]):
        intensity, mask = augment.augment_case(cases, 0, epoch, config)
        assert np.array_equal(panel.intensity, intensity)
        assert np.array_equal(panel.mask, mask)


def test_strong_is_within_what_may_be_drawn(volumes):
    params = augment.draw(volumes[1], 0, 0, 3)
    strong = gallery.strong_parameters(params, 3)
    assert list(strong) == list(augment.TRANSFORMS)
    for name, (low, high) in (
        ("rotate", (-augment.ROTATION_DEGREES, augment.ROTATION_DEGREES)),
        ("scale", augment.SCALE),
        ("shift", (-augment.SHIFT_MM, augment.SHIFT_MM)),
        ("gamma", augment.GAMMA),
        ("blur", augment.BLUR_SIGMA_MM),
    ):
        assert low <= np.min(strong[name]) <= np.max(strong[name]) <= high
    assert np.abs(strong["bias"]).max() < 3 * augment.BIAS_SIGMA
    for name in strong:
        assert np.shape(strong[name]) == np.shape(params[name]), name
    assert strong["histogram"] in (1, 2) and strong["transplant"]["case"] in (1, 2)
    low, high = augment.TRANSPLANT_MARGIN_MM
    assert low <= strong["transplant"]["margin_mm"] <= high


def test_words_have_the_parameters(shown):
    words = {panel.name: panel.caption for panel in shown}
    for name, numbers in (
        ("rotate", ["10"]),
        ("scale", ["1.4"]),
        ("shift", ["8", "8"]),
        ("deform", ["2", "2", "2"]),
        ("gamma", ["1.5"]),
        ("low resolution", ["3"]),
        ("blur", ["1.5"]),
        ("noise", ["25"]),
    ):
        assert re.findall(r"[\d.]+", words[name]) == numbers


# Drawing -----------------------------------------------------------------------------------------


def test_a_panel_shows_the_middle_slice_and_its_outline_in_mm(shown):
    original = shown[0]
    axes = drawn_panel(original, original)
    z = round(np.argwhere(original.mask)[:, 2].mean())
    assert np.array_equal(axes.images[0].get_array(), original.intensity[..., z].T)
    (outline,) = axes.collections  # nothing moved: no grid, no second outline
    at_mm = np.argwhere(original.mask[..., z]) * VOXEL_MM[:2]
    found = vertices(outline)
    np.testing.assert_allclose(found.min(axis=0), at_mm.min(axis=0), atol=1)
    np.testing.assert_allclose(found.max(axis=0), at_mm.max(axis=0), atol=1)
    assert axes.yaxis_inverted()  # the patient's front is up


def test_outline_and_grid_move_with_the_content(shown):
    shift = next(panel for panel in shown if panel.name == "shift")
    columns, rows, before, after = drawn_panel(shift, shown[0]).collections
    moved_mm = vertices(after).mean(axis=0) - vertices(before).mean(axis=0)
    expected_mm = np.array([augment.SHIFT_MM, -augment.SHIFT_MM])
    np.testing.assert_allclose(moved_mm, expected_mm, atol=VOXEL_MM[1] / 2)
    # A line of the original's middle is drawn, and is found where the middle has gone.
    for axis, lines in enumerate((columns, rows)):
        middle_mm = (shift.mask.shape[axis] - 1) * VOXEL_MM[axis] / 2
        places = np.unique(vertices(lines)[:, axis].round(3))
        assert np.abs(places - middle_mm - expected_mm[axis]).min() < 0.01
        assert np.diff(places).min() == pytest.approx(gallery.GRID_MM, abs=0.01)


def test_names_and_words_are_written_below_and_overlap_nothing(shown):
    figure = gallery.gallery_figure(shown, VOXEL_MM)
    assert len(figure.axes) == len(shown)
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in figure.texts}
    written = [text.get_text() for text in boxes]
    for panel in shown:
        assert panel.name in written
        assert panel.caption in written
    boxes = [*boxes.values(), *(axes.get_window_extent() for axes in figure.axes)]
    for number, box in enumerate(boxes):
        assert figure.bbox.containsx(box.x1)
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


# File and command line ---------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Function arguments -> runs augment_gallery.py in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["augment_gallery.py", *map(str, arguments)])
        run(augment_gallery.main)

    return call


def test_command_line_draws_the_phantom(call, tmp_path, capsys, monkeypatch, small_config):
    """Not on the default grid, on which each transform takes eight times as long."""
    monkeypatch.setattr(gallery, "vnet_cfg", small_config("VolSize=64,64,32", "dstRes=2,2,3"))
    path = tmp_path / "augmentation.png"
    call("--out_path", path)
    assert "augmentation.png: written" in capsys.readouterr().out
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert path.stat().st_size <= 1_000_000
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert (pixels[0] == 255).all()
    for colour in ((0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)):  # outlines keep theirs
        assert (pixels == colour).all(axis=-1).any()


@pytest.fixture
def quick(monkeypatch, small_config):
    """Small made-up volumes in place of the phantom."""
    monkeypatch.setattr(gallery, "vnet_cfg", small_config("VolSize=32,32,16"))
    monkeypatch.setattr(gallery, "_phantom_volume", made_volume)


def test_same_seed_same_picture(call, tmp_path, quick):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        call("--seed", seed, "--out_path", f"{name}.png")
    one, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--seed", "-1"], 2, "error: seed is -1, expected at least 0"),
        (["--seed", "many"], 2, "invalid int value"),
        (["--out_path", "taken/a.png"], 1, "error: taken/a.png: cannot be written"),
        (["--out_path", "taken"], 1, "error: taken: exists already; remove it, or choose another"),
    ],
)
def test_command_line_errors(call, tmp_path, quick, capsys, arguments, code, message):
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
