"""The phantom: the same on every run, one patient on any grid, and no game for a threshold."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from src.promise12.phantom import (
    FIELDS,
    Ellipsoid,
    draw_anatomy,
    draw_grid,
    phantom_case,
    random_waves,
    render,
    rotation_matrix,
    sample_field,
    sample_points,
    write_phantom,
)
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from tests.volumes import geometry_of
from tools import create_phantom

TOUCHING = np.ones((3, 3, 3))  # 26 neighbours


@pytest.fixture(scope="module")
def cases():
    """Six cases of the default seed."""
    return [phantom_case(1, index) for index in range(6)]


@pytest.fixture
def made_once(cases, monkeypatch):
    """Phantoms of the default seed are not drawn again."""

    def made(seed, index):
        assert seed == 1
        return cases[index]

    monkeypatch.setattr("src.promise12.phantom.phantom_case", made)


def zyx(image):
    return sitk.GetArrayViewFromImage(image)


def volume_ml(mask):
    return zyx(mask).sum() * np.prod(mask.GetSpacing()) / 1000


def same(one, other):
    return geometry_of(one) == geometry_of(other) and np.array_equal(zyx(one), zyx(other))


def grid_of(size, spacing_mm, centre_mm, direction):
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing(spacing_mm)
    grid.SetDirection(np.ravel(direction).astype(float))
    half_mm = (np.array(size) - 1) / 2 * spacing_mm
    grid.SetOrigin(centre_mm - np.reshape(direction, (3, 3)) @ half_mm)
    return grid


# Cases ------------------------------------------------------------------------------------------


def test_same_numbers_give_the_same_case(cases):
    for made, again in zip(cases[2], phantom_case(1, 2), strict=True):
        assert same(made, again)
    for other in (phantom_case(2, 2), cases[3]):
        assert not same(cases[2][0], other[0])
        assert not same(cases[2][1], other[1])


def test_images_and_masks_are_as_in_the_challenge(cases):
    for image, mask in cases:
        assert image.GetPixelID() == sitk.sitkInt16
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert geometry_of(image) == geometry_of(mask)
        assert zyx(image).min() >= 0
        assert 100 < np.percentile(zyx(image), 99.9) < 2**15 - 1
        assert set(np.unique(zyx(mask))) == {0, 1}


def test_gland_is_one_piece_well_inside(cases):
    for _, mask in cases:
        assert ndimage.label(zyx(mask), TOUCHING)[1] == 1
        assert 15 <= volume_ml(mask) <= 110
        box = sitk.LabelShapeStatisticsImageFilter()
        box.Execute(mask)
        start, extent = np.split(np.array(box.GetBoundingBox(1)), 2)
        margin = np.minimum(start, np.array(mask.GetSize()) - start - extent)
        assert (margin * mask.GetSpacing() >= 5).all()


def test_cases_differ_in_size_and_position(cases):
    volumes = [volume_ml(mask) for _, mask in cases]
    assert max(volumes) > 1.5 * min(volumes)
    middles = [ndimage.center_of_mass(zyx(mask)) / np.array(zyx(mask).shape) for _, mask in cases]
    assert (np.ptp(middles, axis=0) > 0.02).all()


def test_scans_vary_within_their_limits():
    grids = []
    for index in range(60):
        rng = np.random.default_rng(index)
        grids.append(draw_grid(rng, draw_anatomy(rng)))
    sizes = np.array([grid.GetSize() for grid in grids])
    spacings = np.array([grid.GetSpacing() for grid in grids])
    directions = [np.reshape(grid.GetDirection(), (3, 3)) for grid in grids]
    assert ((sizes[:, :2] >= 128) & (sizes[:, :2] <= 320)).all()
    assert ((sizes[:, 2] >= 16) & (sizes[:, 2] <= 40)).all()
    assert spacings[:, 0].min() == 0.27
    assert spacings[:, 0].max() == 1
    assert ((spacings[:, 2] >= 2) & (spacings[:, 2] <= 4)).all()
    assert len({tuple(spacing) for spacing in spacings}) >= 5
    for direction in directions:
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(direction) > 0
    oblique = [not np.array_equal(direction, np.eye(3)) for direction in directions]
    assert 0.3 < np.mean(oblique) < 0.7


# Anatomy in patient space -----------------------------------------------------------------------


def test_a_turned_grid_samples_the_same_patient():
    """Axes exchanged by a turn, the voxels fall on the same points in another order."""
    anatomy = draw_anatomy(np.random.default_rng(3))
    exchange = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # the columns are the image's axes
    size = (45, 45, 45)
    straight, turned = (
        render(anatomy, grid_of(size, (2.0, 2.0, 2.0), anatomy.centre_mm, direction))
        for direction in (np.eye(3), exchange)
    )
    # Index axes i, j, k of the turned grid run along y, z, x; arrays are indexed [k, j, i].
    back = [np.transpose(part, (1, 2, 0)) for part in turned]
    assert (back[1] != straight[1]).sum() <= 3
    np.testing.assert_allclose(back[0], straight[0], atol=5e-3)


def test_an_oblique_grid_samples_the_same_gland(oblique):
    anatomy = draw_anatomy(np.random.default_rng(4))
    found = []
    for direction in (np.eye(3), oblique):
        grid = grid_of((90, 90, 60), (1.0, 1.0, 1.5), anatomy.centre_mm, direction)
        gland = render(anatomy, grid)[1].ravel()
        found.append((gland.sum(), *sample_points(grid)[:, gland].mean(axis=1)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0.01)
    np.testing.assert_allclose(found[0][1:], found[1][1:], atol=0.1)


def test_field_is_the_sum_of_its_waves(oblique):
    waves = random_waves(np.random.default_rng(0), 5, 40)
    grid = grid_of((5, 4, 3), (0.5, 0.7, 3.0), np.array([4.0, -7.0, 20.0]), oblique)
    values = sample_field(waves, grid)
    indices = [(i, j, k) for k in range(3) for j in range(4) for i in range(5)]
    points = np.array([grid.TransformIndexToPhysicalPoint(index) for index in indices])
    np.testing.assert_allclose(sample_points(grid).T, points, atol=1e-5)
    expected = np.cos(points @ waves[:, :3].T + waves[:, 3]).sum(axis=1) * np.sqrt(2 / 40)
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_field_has_its_covariance(name):
    length_mm, count = FIELDS[name]
    waves = random_waves(np.random.default_rng(1), length_mm, count)
    size = (60, 60, 60)
    grid = grid_of(size, (length_mm,) * 3, np.zeros(3), np.eye(3))
    values = sample_field(waves, grid).reshape(size)
    assert abs(values.mean()) < 0.1
    assert values.var() == pytest.approx(1, abs=0.1)
    neighbours = (values[:, :, 1:] * values[:, :, :-1]).mean()
    assert neighbours == pytest.approx(np.exp(-0.5), abs=0.12)


def test_ellipsoid_distance():
    at = np.random.default_rng(2).normal(0, 30, (3, 200)).astype(np.float32)
    ball = Ellipsoid("fat", (3, -4, 5), (10, 10, 10))
    expected = np.linalg.norm(at.T - (3, -4, 5), axis=1) - 10
    np.testing.assert_allclose(ball.distance_mm(at), expected, atol=1e-4)
    tilted = Ellipsoid("fat", (3, -4, 5), (20, 8, 12), (10, 20, 30))
    units = at / np.linalg.norm(at, axis=0)
    surface = rotation_matrix((10, 20, 30)) @ (np.array([[20], [8], [12]]) * units)
    surface = np.float32(surface + np.array([[3], [-4], [5]]))
    np.testing.assert_allclose(tilted.distance_mm(surface), 0, atol=1e-4)


# Hard for a threshold ---------------------------------------------------------------------------


def best_threshold_dice(volume, gland):
    """Best Dice of the largest component of any band of grey levels, 0 if none can reach 0.5.

    The bands, open ones included, run between quantiles of the gland. A component cannot reach 0.5
    unless its whole band covers a third of the gland, which spares most of the work.
    """
    levels = np.unique(np.quantile(volume[gland], np.linspace(0.01, 0.99, 16)))
    edges = [-np.inf, *levels, np.inf]
    best = 0
    for number, low in enumerate(edges):
        for high in edges[number + 1 :]:
            band = (volume >= low) & (volume < high)
            if 3 * (band & gland).sum() < gland.sum():
                continue
            labels, _ = ndimage.label(band, TOUCHING)
            largest = labels == np.bincount(labels[band]).argmax()
            dice = 2 * (largest & gland).sum() / (largest.sum() + gland.sum())
            best = max(best, dice)
    return best


@pytest.mark.parametrize("blur_mm", [0, 1.5])
def test_no_threshold_finds_the_gland(cases, blur_mm):
    for image, mask in cases[:2]:
        step = max(1, round(1 / image.GetSpacing()[0]))  # about 1 mm in-plane is fine enough
        blurred = ndimage.gaussian_filter(
            zyx(image).astype(np.float32), blur_mm / np.array(image.GetSpacing()[::-1])
        )
        volume, gland = (part[:, ::step, ::step] for part in (blurred, zyx(mask) > 0))
        assert best_threshold_dice(volume, gland) < 0.5


def test_threshold_search_finds_what_can_be_found():
    gland = np.zeros((12, 20, 20), bool)
    gland[3:9, 5:15, 5:15] = True
    noise = np.random.default_rng(0).uniform(0, 5, gland.shape)
    for inside, outside in ((50, 10), (10, 50)):
        volume = np.where(gland, inside, outside) + noise
        assert best_threshold_dice(volume, gland) > 0.95
    volume[:, :2] = 0  # now darker tissue lies on the other side: only a band finds it
    assert best_threshold_dice(volume, gland) > 0.95


# Files ------------------------------------------------------------------------------------------


def test_written_cases_are_the_made_ones(tmp_path, cases, made_once):
    write_phantom(tmp_path, cases=2, seed=1, first=1)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    stems = ("img/Case01", "gt/Case01_segmentation", "img/Case02", "gt/Case02_segmentation")
    assert names == {stem + suffix for stem in stems for suffix in (".mhd", ".zraw")}
    assert "ElementType = MET_SHORT" in (tmp_path / "img/Case01.mhd").read_text()
    assert "ElementType = MET_UCHAR" in (tmp_path / "gt/Case01_segmentation.mhd").read_text()
    for stem, made in zip(stems, (*cases[1], *cases[2]), strict=True):
        written = sitk.ReadImage(str(tmp_path / f"{stem}.mhd"))
        assert same(written, made)
        assert written.GetPixelID() == made.GetPixelID()


@pytest.mark.parametrize(
    "there",
    ["img/Case01.mhd", "img/Case01.zraw", "img/Case01.nii.gz", "gt/Case01_segmentation.raw"],
)
def test_existing_cases_stay(tmp_path, there):
    path = tmp_path / there
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(DataError, match="Case01.*already"):
        write_phantom(tmp_path, cases=2, seed=1)
    assert path.read_text() == "mine"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_other_cases_are_no_hindrance(tmp_path, made_once):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "Case030.mhd").touch()
    write_phantom(tmp_path, cases=1, seed=1, first=3)
    assert (tmp_path / "gt" / "Case03_segmentation.mhd").is_file()


def test_full_disk_leaves_nothing(tmp_path, full_disk, made_once):
    with full_disk(100_000), pytest.raises(DataError, match="Case00.mhd: cannot be written"):
        write_phantom(tmp_path, cases=1, seed=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_in_the_way(tmp_path, below):
    (tmp_path / "taken").touch()
    with pytest.raises(DataError, match="taken.*cannot be written"):
        write_phantom(tmp_path / "taken" / below, cases=1, seed=1)


@pytest.mark.parametrize(
    "arguments", [{"cases": 0}, {"cases": -3}, {"cases": 1, "seed": -1}, {"cases": 1, "first": -1}]
)
def test_impossible_numbers(tmp_path, arguments):
    with pytest.raises(UsageError, match="expected a whole number from"):
        write_phantom(tmp_path / "out", **{"seed": 1, **arguments})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--cases", "0"], 2, "error: cases is 0; expected a whole number from 1 on"),
        (["--cases", "many"], 2, "invalid int value"),
        (["--cases", "1"], 1, "there already"),
    ],
)
def test_command_line_errors(tmp_path, monkeypatch, capsys, arguments, code, message):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "Case00.mhd").touch()
    monkeypatch.setattr("sys.argv", ["create_phantom.py", "--out_path", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        run(create_phantom.main)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


def test_command_line(tmp_path, monkeypatch, capsys, cases, made_once):
    out_path = tmp_path / "data" / "phantom"
    monkeypatch.setattr(
        "sys.argv",
        ["create_phantom.py", "--out_path", str(out_path), "--cases", "1", "--seed", "1"],
    )
    run(create_phantom.main)
    assert f"1 cases in {out_path}" in capsys.readouterr().out
    assert same(sitk.ReadImage(str(out_path / "img" / "Case00.mhd")), cases[0][0])
