"""What travels with a model: enough to use it elsewhere, and never that of another model."""

import hashlib
import json
import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from src.config import override_config, vnet_cfg
from src.data_manager import image_to_network_grid
from src.export.description import (
    config_of_model,
    describe,
    description_path,
    main,
    merge_description,
    model_for_runtime,
    read_description,
)
from src.predictor import segment_outputs
from src.utils.errors import DataError, UsageError
from tests.volumes import stored_in_order

PLAIN = {"operators": "3-D", "mindir_version": 3}
LITE = {"operators": "2-D", "mindir_version": 1}
KEYS = {
    *("variant", "width", "VolSize", "dstRes", "normDir", "intensity"),
    *("plane", "labels", "channel", "recentre", "flip_average", "threshold"),
}


def config_of(*overrides):
    return override_config(vnet_cfg, ["VolSize=32,48,16", "dstRes=1.25,1,3.6", *overrides])


def put(path, config=None, checkpoint="a" * 64, batch_size=1, **facts):
    """A model file, whose content is its own name, with its description."""
    path.write_text(path.name)
    digest = hashlib.sha256(path.name.encode()).hexdigest()
    file = {"format": "MINDIR", "sha256": digest, "checkpoint_sha256": checkpoint, **facts}
    description = describe(config or config_of(), batch_size, {path.name: file})
    path.with_suffix(".json").write_text(json.dumps(description))
    return description


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "vnet.v2.mindir"  # the first dot is part of the name
    put(path, **PLAIN)
    return path


def change(model_path, edit):
    """Lets `edit` alter a description in place."""
    path = description_path(model_path)
    description = json.loads(path.read_text())
    edit(description)
    path.write_text(json.dumps(description))


# What it says -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_shapes_and_configuration(batch_size):
    config = config_of("variant=paper", "width=4", "threshold=0.35", "normDir=true")
    files = {"vnet.onnx": {"sha256": "1"}}
    description = describe(config, batch_size, files)
    assert description["input"]["shape"] == [batch_size, 1, 32, 48, 16]
    assert description["output"]["shape"] == [batch_size, 32, 48, 16]
    assert description["input"]["type"] == description["output"]["type"] == "float32"
    assert description["files"] == files
    assert description["configuration"] == {key: config[key] for key in KEYS}
    assert json.loads(json.dumps(description)) == description


def test_the_axes_are_those_of_the_array_in_memory():
    description = describe(config_of(), 2, {})
    for side in ("input", "output"):
        shape, (names, fastest) = description[side]["shape"], description[side]["axes"].split("; ")
        assert len(names.split(", ")) == len(shape)
        assert fastest == "in memory Z runs fastest" and names.endswith("X, Y, Z")


@pytest.mark.parametrize(
    ("overrides", "says", "never"),
    [
        ([], ["[32, 48, 16] voxels of [1.25, 1.0, 3.6] mm (x, y, z)", "along the image's, in"], []),
        ([], ["the probability is above 0.5", "26 neighbours"], ["mirrored"]),
        (["threshold=0.35"], ["above 0.35"], ["above 0.5"]),
        (["normDir=true"], ["along the patient's axes"], ["the image's axes"]),
        ([], ["rescale the intensities"], ["quantile"]),
        (["intensity=equalize"], ["Gaussian of 20 mm", "1025 quantiles"], []),
        ([], ["lie more than 6 mm", "at most 15 mm from it"], ["repeat all steps"]),
        (["recentre=true"], ["more than 15 mm from the centre", "at most 2 times"], []),
        (["flip_average=true"], ["input mirrored left-right (along X), mirrored back"], []),
        (["VolSize=64,64,32", "dstRes=2,2,2"], ["[64, 64, 32] voxels of [2.0, 2.0, 2.0]"], ["1.2"]),
    ],
)
def test_the_steps_name_the_numbers(overrides, says, never):
    description = describe(config_of(*overrides), 1, {})
    steps = "\n".join(description["preprocessing"] + description["postprocessing"])
    assert [words for words in says if words not in steps] == []
    assert [words for words in never if words in steps] == []


# A reader who has only the words: no code of this project below, but NumPy and SciPy.


def sampled(array, places):
    """Linear between the voxels of an array, 0 outside; places (3, ...) are indices."""
    return ndimage.map_coordinates(array.astype(float), places, order=1, cval=0)


def points_of(sides, spacing_mm, centre, axes):
    """Physical points (3, X, Y, Z) of a grid about a centre."""
    index = np.indices(sides) - (np.array(sides).reshape(3, 1, 1, 1) - 1) / 2
    offset_mm = index * np.reshape(spacing_mm, (3, 1, 1, 1))
    return np.tensordot(axes, offset_mm, 1) + np.reshape(centre, (3, 1, 1, 1))


def indices_of(points, sides, spacing_mm, centre, axes):
    """The reverse of `points_of`: where points lie in a grid, as indices."""
    offset_mm = np.tensordot(np.linalg.inv(axes), points - np.reshape(centre, (3, 1, 1, 1)), 1)
    middle = (np.array(sides) - 1) / 2
    return offset_mm / np.reshape(spacing_mm, (3, 1, 1, 1)) + middle.reshape(3, 1, 1, 1)


# Of the patient, in the coordinates of the files.
DIRECTIONS = {
    **{"left": (1, 0, 0), "back": (0, 1, 0), "head": (0, 0, 1)},
    **{"right": (-1, 0, 0), "front": (0, -1, 0), "feet": (0, 0, -1)},
}


def largest(mask):
    """The largest of the components that share faces, edges or corners."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == np.argmax(sizes)


class Reader:
    """Follows a description, for one image (X, Y, Z) of this geometry."""

    def __init__(self, image, description):
        self.words = "\n".join(description["preprocessing"] + description["postprocessing"])
        self.values = sitk.GetArrayFromImage(image).T
        self.axes = np.reshape(image.GetDirection(), (3, 3))
        self.spacing_mm = image.GetSpacing()
        half = (np.array(self.values.shape) - 1) / 2 * self.spacing_mm
        self.centre = image.GetOrigin() + self.axes @ half
        self.settings = description["configuration"]
        names = re.search(r"x to the (\w+), y to the (\w+), z to the (\w+)", self.words).groups()
        self.grid_axes = np.transpose([DIRECTIONS[name] for name in names])
        if not self.settings["normDir"]:
            # Each of the image's axes to one of the patient's, and turned to run along it.
            cosines = self.grid_axes.T @ self.axes
            each, nearest = linear_sum_assignment(-np.abs(cosines))
            self.grid_axes = self.axes[:, nearest] * np.sign(cosines[each, nearest])
        sides, spacing_mm = self.settings["VolSize"], self.settings["dstRes"]
        self.grid = (sides, spacing_mm, self.centre, self.grid_axes)
        self.own = (self.values.shape, self.spacing_mm, self.centre, self.axes)

    def preprocessed(self):
        equalizes = self.settings["intensity"] == "equalize"
        values = self.unpadded()
        if not equalizes:
            values = (values - values.min()) / np.ptp(values)
        # The grid's axis that is nearest to each of the image's.
        _, nearest = linear_sum_assignment(-np.abs(self.axes.T @ self.grid_axes))
        own_mm, grid_mm = np.array(self.spacing_mm), np.array(self.settings["dstRes"])[nearest]
        variance_mm2 = np.maximum(grid_mm**2 - own_mm**2, 0) / (8 * np.log(2))
        values = ndimage.gaussian_filter(values, variance_mm2**0.5 / own_mm, mode="nearest")
        places = indices_of(points_of(*self.grid), *self.own)
        volume = sampled(values, places)
        if equalizes:
            volume = self.equalized(volume, sampled(np.ones(values.shape), places) > 0.5)
        bright = volume[volume > 0]
        return (volume - bright.mean()) / bright.std()

    def unpadded(self):
        values = self.values.astype(float)
        lowest, *inner, highest = np.unique(values)
        padding = [lowest] if lowest < 0 and (values == lowest).mean() >= 0.005 else []
        apart = inner[-1] - (inner[0] if padding else lowest)
        if highest - inner[-1] > apart and (values == highest).mean() >= 0.005:
            padding.append(highest)
        if not padding:
            return values
        others = values[~np.isin(values, padding)]
        floor = others.min()
        if (others >= 0).mean() > 0.9 and lowest < -others.max():
            floor = max(floor, 0)
        return np.where(np.isin(values, padding), floor, np.maximum(values, floor))

    def equalized(self, volume, inside):
        def mean(array, counted, sigma_mm):
            sigma = sigma_mm / np.array(self.settings["dstRes"])
            sums, weights = (
                ndimage.gaussian_filter(a * 1.0, sigma, mode="nearest", truncate=8)
                for a in (np.where(counted, array, 0), counted)
            )
            return sums / np.maximum(weights, 1e-4)

        m = mean(volume, inside, 2.5)
        zero = min(m[inside].min(), 0)
        m, volume = m - zero, volume - zero
        middle = np.quantile(m[inside], 0.9)
        for _ in range(2):
            floor = np.clip(2 * m[inside].min(), 0.04 * middle, 0.1 * middle)
            middle = np.median(m[inside & (m > floor)])
        tissue = inside & (m > floor)
        beside = mean(inside & ~tissue, np.ones_like(inside), 2.5) > 0.01
        tissue &= ~(beside & (volume <= floor))
        unit = (volume - volume[tissue].min()) / np.ptp(volume[tissue])
        ratio = np.where(tissue, np.log(np.where(tissue, unit, 1) + 0.01), 0)
        ratio = (ratio - mean(ratio, tissue, 20))[tissue]
        shares = np.arange(1025) / 1024
        unit = np.zeros(volume.shape)
        unit[tissue] = np.interp(ratio, np.quantile(ratio, shares), shares)
        return unit

    def postprocessed(self, output, mirrored=None):
        if mirrored is not None:
            output = (output + mirrored[::-1]) / 2
        soft = sampled(output, indices_of(points_of(*self.own), *self.grid))
        mask = largest(soft > self.settings["threshold"])
        depth_mm, reach_mm = map(
            float,
            re.search(r"lie more than (\S+) mm.*at most (\S+) mm from it", self.words).groups(),
        )
        inside = ndimage.distance_transform_edt(np.pad(mask, 1), self.spacing_mm)[1:-1, 1:-1, 1:-1]
        if (inside > depth_mm).any():
            core = largest(inside > depth_mm)
            beyond = ndimage.distance_transform_edt(~core, self.spacing_mm) > reach_mm
            mask = largest(mask & ~beyond)
        return ndimage.binary_fill_holes(mask)


# The second grid reaches beyond the image, the third lies oblique in it. None has a point in the
# outer halves of the outermost voxels, which SimpleITK still counts as inside.
GRIDS = [
    ("VolSize=16,32,16", "dstRes=1.25,0.7,2"),
    ("VolSize=16,16,16", "dstRes=3,3.05,3.6"),
    ("VolSize=16,16,16", "dstRes=1,1,1.1", "normDir=true", "intensity=equalize"),
    ("VolSize=32,16,16", "dstRes=2.2,1.7,2", "intensity=equalize"),
]


# As PROMISE12 stores volumes, as dcm2niix does, and a left-handed sagittal order.
ORDERS = [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (1, -1, 1)), ((1, 2, 0), (-1, 1, 1))]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("overrides", GRIDS)
@pytest.mark.parametrize("padding", [0, -50, -1024, 65535])
def test_who_follows_the_words_gets_the_networks_input(
    make_image, oblique, overrides, order, padding
):
    values = np.random.default_rng(0).integers(-50, 900, (18, 22, 24)).astype(np.float32)
    values[..., :5] = padding
    image = stored_in_order(make_image(values, (1.5, 1.6, 2), direction=oblique), *order)
    config = config_of(*overrides)
    followed = Reader(image, describe(config, 1, {})).preprocessed()
    volume = image_to_network_grid(image, config)
    assert volume.std() > 0.5
    np.testing.assert_allclose(volume, followed, atol=0.1)  # ours ends at 3 sigma
    assert np.abs(volume - followed).mean() < 0.01


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flip", ["false", "true"])
@pytest.mark.parametrize("overrides", GRIDS)
def test_who_follows_the_words_gets_the_mask(make_image, oblique, overrides, flip, order):
    image = make_image(np.zeros((18, 22, 24), np.float32), (1.5, 1.6, 2), direction=oblique)
    image = stored_in_order(image, *order)
    config = config_of(*overrides, f"flip_average={flip}", "threshold=0.3")
    x, y, z = np.indices(config.VolSize) / np.reshape(config.VolSize, (3, 1, 1, 1))
    large = np.exp(-12 * ((x - 0.4) ** 2 + (y - 0.5) ** 2 + (z - 0.6) ** 2))
    small = np.exp(-100 * ((x - 0.8) ** 2 + (y - 0.2) ** 2 + (z - 0.3) ** 2))
    output = (large + small).clip(0, 1).astype(np.float32)
    outputs = [output, output**2] if flip == "true" else [output]
    followed = Reader(image, describe(config, 1, {})).postprocessed(*outputs)
    mask = sitk.GetArrayFromImage(segment_outputs(outputs, image, config)[0]).T
    assert 40 < followed.sum() < followed.size / 2
    assert np.count_nonzero(mask != followed) <= 2  # a voxel at the threshold may fall either way


def test_who_follows_the_words_leaves_the_bladder_out(make_image, oblique):
    """A gland and, behind a neck, something smaller that lies far from its core."""
    image = make_image(np.zeros((40, 40, 40), np.float32), (1.5, 1.6, 2), direction=oblique)
    config = config_of("VolSize=32,32,48", "dstRes=2,2,2", "threshold=0.4")
    x, y, z = (np.indices(config.VolSize) - np.reshape([15.5, 15.5, 23.5], (3, 1, 1, 1))) * 2.0
    off_axis_mm = np.hypot(x, y)
    gland = np.hypot(off_axis_mm, z + 15) / 13
    bladder = np.hypot(off_axis_mm, z - 20) / 9
    neck = np.where(np.abs(z) < 20, off_axis_mm / 4, np.inf)
    output = np.exp(-(np.minimum.reduce([gland, bladder, neck]) ** 2)).astype(np.float32)
    reader = Reader(image, describe(config, 1, {}))
    followed = reader.postprocessed(output)
    mask = sitk.GetArrayFromImage(segment_outputs([output], image, config)[0]).T
    assert np.count_nonzero(mask != followed) <= 2
    z_mm = np.tensordot(
        oblique[:, 2], points_of(*reader.own) - reader.centre.reshape(3, 1, 1, 1), 1
    )
    assert 4 < z_mm[followed].max() < 9  # at the neck


# Reading it back --------------------------------------------------------------------------------


def test_description_and_its_entry_of_the_file(tmp_path, model):
    assert description_path(model) == tmp_path / "vnet.v2.json"
    description, file = read_description(str(model))
    assert description == json.loads((tmp_path / "vnet.v2.json").read_text())
    assert file == description["files"]["vnet.v2.mindir"]
    assert file["operators"] == "3-D"


def test_the_configuration_comes_with_the_model(model):
    put(model, config_of("variant=monai", "width=8", "threshold=0.3", "flip_average=true"))
    config = config_of_model(model, ["fold=2", "threshold=0.7", "dirPredictionImage=masks"])
    assert (config.variant, config.width, config.VolSize) == ("monai", 8, [32, 48, 16])
    assert (config.dstRes, config.flip_average) == ([1.25, 1.0, 3.6], True)
    assert (config.fold, config.threshold, config.dirPredictionImage) == (2, 0.7, "masks")
    assert config_of_model(model, []).threshold == 0.3
    assert set(config) == set(vnet_cfg)


@pytest.mark.parametrize("trained", ["true", "false"])
@pytest.mark.parametrize("wanted", ["true", "false"])
def test_averaging_with_the_mirror_image_is_the_users_choice(model, trained, wanted):
    """It is the model's work, done twice; so the model does not fix it, but says what it had."""
    put(model, config_of(f"flip_average={trained}"))
    assert config_of_model(model, []).flip_average == (trained == "true")
    config = config_of_model(model, [f"flip_average={wanted}"])
    assert config.flip_average == (wanted == "true")


def test_a_description_of_an_earlier_version_has_the_defaults_of_newer_keys(model):
    put(model, config_of("recentre=true"))
    assert config_of_model(model, []).recentre
    path = description_path(model)
    description = json.loads(path.read_text())
    del description["configuration"]["recentre"]
    path.write_text(json.dumps(description))
    assert not config_of_model(model, []).recentre


@pytest.mark.parametrize("count", [2, 5, 0])
def test_a_model_of_several_volumes_per_call_is_none_for_the_program(model, count):
    put(model, batch_size=count)
    message = one_line(config_of_model, model, [])
    assert message.startswith(
        f"{description_path(model)}: the model takes {count} volumes per call"
    )
    assert "export with --batch_size 1: python export.py --ckpt_file CKPT " in message
    assert message.endswith(f"--file_name {model.with_suffix('')}")
    read_description(model)  # it is a good one, for others


@pytest.mark.parametrize(
    ("item", "has"),
    [
        ("variant=paper", "variant=zoo"),
        ("width=4", "width=16"),
        ("VolSize=32,32,32", "VolSize=[32, 48, 16]"),
        ("dstRes=1,1,1", "dstRes=[1.25, 1.0, 3.6]"),
        ("normDir=true", "normDir=False"),
        ("intensity=equalize", "intensity=rescale"),
    ],
)
def test_what_the_model_fixes_cannot_be_overridden(model, item, has):
    with pytest.raises(UsageError) as error:
        config_of_model(model, [item])
    message = str(error.value)
    assert f"{item.partition('=')[0]}=" in message
    assert f"{description_path(model)} has {has}; leave it out" in message
    same = has.replace("[", "").replace("]", "").replace(" ", "")
    assert config_of_model(model, [same]) == config_of_model(model, [])


def test_a_model_from_before_there_was_a_choice_has_rescaled_intensities(model):
    change(model, lambda description: description["configuration"].pop("intensity"))
    assert config_of_model(model, []).intensity == "rescale"


DAMAGES = {
    "no JSON": lambda path: path.write_text("{"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "other JSON": lambda path: path.write_text('{"model_type": "bert"}'),
}
EDITS = {
    "other version": lambda d: d.update(description_version=99),
    "no version": lambda d: d.pop("description_version"),
    "no configuration": lambda d: d.pop("configuration"),
    "configuration a list": lambda d: d.update(configuration=[]),
    "unknown key": lambda d: d["configuration"].update(learning=1),
    "sides of no V-Net": lambda d: d["configuration"].update(VolSize=[20, 16, 16]),
    "width a text": lambda d: d["configuration"].update(width="16"),
    "variant unknown": lambda d: d["configuration"].update(variant="unet"),
    "a key missing": lambda d: d["configuration"].pop("VolSize"),
    "no input": lambda d: d.pop("input"),
    "no shape": lambda d: d["input"].pop("shape"),
    "an empty shape": lambda d: d["input"].update(shape=[]),
    "a shape of words": lambda d: d["input"].update(shape=["batch", 1, "X", "Y", "Z"]),
    "an unknown side": lambda d: d["input"].update(shape=[None, 1, 32, 48, 16]),
    "an infinite shape": lambda d: d["input"].update(shape=[float("inf"), 1, 32, 48, 16]),
    "a shape of another grid": lambda d: d["input"].update(shape=[1, 1, 32, 32, 16]),
    "an ensemble in another folder": lambda d: d.update(ensemble={"../x": "h"}),
    "an ensemble without a name": lambda d: d.update(ensemble={"": "h"}),
    "no files": lambda d: d.pop("files"),
    "files a list": lambda d: d.update(files=[]),
    "a file without facts": lambda d: d.update(files={"vnet.v2.mindir": None}),
    "facts a list": lambda d: d.update(
        files={"vnet.v2.mindir": ["format", "sha256", "checkpoint_sha256"]}
    ),
    "no format": lambda d: d["files"]["vnet.v2.mindir"].pop("format"),
    "no hash": lambda d: d["files"]["vnet.v2.mindir"].pop("sha256"),
    "no checkpoint": lambda d: d["files"]["vnet.v2.mindir"].pop("checkpoint_sha256"),
}


def one_line(call, *arguments):
    with pytest.raises(DataError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("damage", [*DAMAGES, *EDITS])
def test_a_damaged_description_is_refused_with_the_command(model, damage):
    if damage in DAMAGES:
        DAMAGES[damage](description_path(model))
    else:
        change(model, EDITS[damage])
    calls = read_description, lambda path: config_of_model(path, [])
    for call in (*calls, lambda path: model_for_runtime(path, "lite")):
        message = one_line(call, model)
        assert message.startswith(f"{description_path(model)}: not a valid model description (")
        command = f"--file_format MINDIR --file_name {model.with_suffix('')}"
        assert message.endswith(f"python export.py --ckpt_file CKPT {command}")


def test_the_other_version_is_named(model):
    change(model, EDITS["other version"])
    assert "version 99, expected 2" in one_line(read_description, model)


@pytest.mark.parametrize("missing", ["model", "description"])
def test_what_is_missing_is_named_with_the_command(model, missing):
    path = model if missing == "model" else description_path(model)
    path.unlink()
    message = one_line(read_description, model)
    words = {"model": "no such model", "description": f"missing beside {model.name}"}[missing]
    assert message.startswith(f"{path}: {words}; export it: python export.py ")
    assert message.endswith(f"--file_name {model.with_suffix('')}")


def test_another_models_description_is_refused(tmp_path, model):
    model.write_text("retrained")
    says = (
        f"{description_path(model)}: describes another {model.name}; export again: python export.py"
    )
    assert one_line(read_description, model).startswith(says)
    other = tmp_path / "vnet.v2.onnx"  # of the same name, but not in the description
    other.write_text(model.name)
    says = f"{description_path(model)}: describes another vnet.v2.onnx"
    assert one_line(read_description, other).startswith(says)


# Several formats of one name --------------------------------------------------------------------


def files_beside(tmp_path, edit=lambda description: None, checkpoint="a" * 64):
    """Names that vnet.json has once vnet.onnx joins an earlier vnet.mindir."""
    earlier = put(tmp_path / "vnet.mindir", **PLAIN)
    edit(earlier)
    description_path(tmp_path / "vnet.mindir").write_text(json.dumps(earlier))
    onnx = {"vnet.onnx": {"format": "ONNX", "sha256": "1", "checkpoint_sha256": checkpoint}}
    description = describe(config_of(), 1, onnx)
    joined = merge_description(description, tmp_path / "vnet.json")
    assert {**joined, "files": onnx} == description
    assert joined["files"]["vnet.onnx"] == onnx["vnet.onnx"]
    if "vnet.mindir" in joined["files"]:
        assert joined["files"]["vnet.mindir"] == earlier["files"]["vnet.mindir"]
    return sorted(joined["files"])


def test_formats_of_one_checkpoint_share_a_description(tmp_path):
    assert files_beside(tmp_path) == ["vnet.mindir", "vnet.onnx"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["input"].update(shape=[4, 1, 32, 48, 16]),
        lambda d: d["configuration"].update(threshold=0.4),
        lambda d: d["preprocessing"].pop(),
        lambda d: d.update(description_version=0),
        lambda d: d.pop("files"),
    ],
)
def test_a_description_that_differs_is_replaced(tmp_path, edit):
    assert files_beside(tmp_path, edit) == ["vnet.onnx"]


def test_the_files_of_another_checkpoint_go_with_a_notice(tmp_path, capsys):
    assert files_beside(tmp_path, checkpoint="b" * 64) == ["vnet.onnx"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'vnet.mindir'}: of another export") and "vnet.json" in line


def test_a_file_that_is_gone_is_no_news(tmp_path, capsys):
    other = {"vnet.air": {"format": "AIR", "sha256": "2", "checkpoint_sha256": "b" * 64}}
    assert files_beside(tmp_path, lambda d: d["files"].update(other)) == [
        *("vnet.mindir", "vnet.onnx")
    ]
    assert capsys.readouterr().out == ""


def test_an_export_again_replaces_its_own_entry(tmp_path):
    put(tmp_path / "vnet.mindir", **PLAIN)
    again = {"vnet.mindir": {"format": "MINDIR", "sha256": "2", "checkpoint_sha256": "a" * 64}}
    description = describe(config_of(), 1, again)
    assert merge_description(description, tmp_path / "vnet.json") == description
    assert merge_description(description, tmp_path / "no.json") == description
    assert merge_description(description, tmp_path) == description  # a folder


# The model for MindSpore Lite -------------------------------------------------------------------


def test_lite_reads_the_lite_model_of_a_plain_model(tmp_path, model):
    lite_path = tmp_path / "vnet.v2_lite.mindir"
    put(lite_path, **LITE)
    assert model_for_runtime(str(model), "lite") == lite_path
    assert model_for_runtime(lite_path, "lite") == lite_path


@pytest.mark.parametrize(
    "facts", [{"operators": "2-D", "mindir_version": 3}, {"operators": "3-D", "mindir_version": 1}]
)
def test_what_lite_reads_on_some_devices_only_has_a_lite_model_too(tmp_path, model, facts):
    put(model, **facts)
    put(tmp_path / "vnet.v2_lite.mindir", **LITE)
    assert model_for_runtime(model, "lite") == tmp_path / "vnet.v2_lite.mindir"


def test_a_model_of_2d_operators_and_version_1_needs_no_lite_model(model):
    put(model, **LITE)
    assert model_for_runtime(model, "lite") == model


@pytest.mark.parametrize("file_format", ["ONNX", "AIR"])
def test_another_format_is_none_for_lite(tmp_path, file_format):
    """Even where a lite model lies beside it."""
    other = tmp_path / f"vnet.v2.{file_format.lower()}"
    put(other, format=file_format, operators="2-D")
    put(tmp_path / "vnet.v2_lite.mindir", **LITE)
    assert (
        one_line(model_for_runtime, other, "lite") == f"{other}: is {file_format}, expected MINDIR"
    )


@pytest.mark.parametrize("missing", ["vnet.v2_lite.mindir", "vnet.v2_lite.json"])
def test_a_missing_lite_model_is_named_with_the_command_that_writes_it(tmp_path, model, missing):
    put(tmp_path / "vnet.v2_lite.mindir", **LITE)
    (tmp_path / missing).unlink()
    message = one_line(model_for_runtime, model, "lite")
    assert message.startswith(f"{tmp_path / missing}: ")
    # Exporting the plain model writes the lite model too; NAME_lite as file name would not.
    assert message.endswith(f"--file_format MINDIR --file_name {tmp_path / 'vnet.v2'}")


def test_a_lite_model_of_another_checkpoint_is_refused(tmp_path, model):
    lite_path = tmp_path / "vnet.v2_lite.mindir"
    put(lite_path, checkpoint="b" * 64, **LITE)
    message = one_line(model_for_runtime, model, "lite")
    assert message.startswith(f"{lite_path}: of another checkpoint than vnet.v2.mindir, ")
    assert message.endswith(f"--file_name {tmp_path / 'vnet.v2'}")


@pytest.mark.parametrize(
    ("item", "batch_size"),
    [
        ("VolSize=32,32,16", 1),
        ("dstRes=1.25,1,3.5", 1),
        ("normDir=true", 1),
        ("intensity=equalize", 1),
        ("variant=paper", 1),
        ("flip_average=true", 1),
        ("threshold=0.4", 1),
        ("width=16", 2),
    ],
)
def test_a_lite_model_that_is_fed_or_read_otherwise_is_refused(tmp_path, model, item, batch_size):
    """Of the same checkpoint, but exported with other words."""
    lite_path = tmp_path / "vnet.v2_lite.mindir"
    put(lite_path, config_of(item), batch_size=batch_size, **LITE)
    message = one_line(model_for_runtime, model, "lite")
    assert message.startswith(
        f"{lite_path}: of another checkpoint than vnet.v2.mindir, of another grid"
    )
    assert message.endswith(f"--file_name {tmp_path / 'vnet.v2'}")
    assert model_for_runtime(lite_path, "lite") == lite_path  # by itself it is sound
    put(model, config_of(item), batch_size=batch_size, **PLAIN)
    assert model_for_runtime(model, "lite") == lite_path


@pytest.mark.parametrize("facts", [PLAIN, LITE | {"mindir_version": 3}, {}])
def test_a_lite_model_that_lite_cannot_read_is_refused(tmp_path, model, facts):
    lite_path = tmp_path / "vnet.v2_lite.mindir"
    put(lite_path, **facts)
    message = one_line(model_for_runtime, model, "lite")
    assert str(lite_path) in message and message.endswith(f"--file_name {tmp_path / 'vnet.v2'}")


def test_a_damaged_lite_model_is_refused(tmp_path, model):
    lite_path = tmp_path / "vnet.v2_lite.mindir"
    put(lite_path, **LITE)
    lite_path.write_text("cut")
    assert one_line(model_for_runtime, model, "lite").startswith(
        f"{description_path(lite_path)}: describes another"
    )


# The weight file of the C++ program -------------------------------------------------------------


def put_weights(tmp_path, model, **others):
    """vnet.v2.vnet beside a model, in the same description; its path."""
    path = tmp_path / "vnet.v2.vnet"
    description = put(path, **({"format": "VNET"} | others))
    put(model, **PLAIN)
    change(model, lambda found: found["files"].update(description["files"]))
    return path


def test_the_weight_file_of_a_model_is_found(tmp_path, model):
    path = put_weights(tmp_path, model)
    put(tmp_path / "vnet.v2_lite.mindir", **LITE)
    for given in (str(model), path, tmp_path / "vnet.v2_lite.mindir"):
        assert model_for_runtime(given, "native") == path


def test_a_missing_weight_file_is_named_with_the_command_that_writes_it(tmp_path, model):
    message = one_line(model_for_runtime, model, "native")
    assert message.startswith(f"{tmp_path / 'vnet.v2.vnet'}: no such model; export it: ")
    assert message.endswith(f"--file_format MINDIR --file_name {tmp_path / 'vnet.v2'}")


@pytest.mark.parametrize("file_format", ["ONNX", "AIR"])
def test_another_format_has_no_weight_file(tmp_path, model, file_format):
    put_weights(tmp_path, model)
    other = tmp_path / f"vnet.v2.{file_format.lower()}"
    put(other, format=file_format)
    assert (
        one_line(model_for_runtime, other, "native")
        == f"{other}: is {file_format}, expected MINDIR or VNET"
    )


def test_a_weight_file_of_another_export_is_refused(tmp_path, model):
    """Of another checkpoint, as damaged, or of no export that left a description."""
    path = put_weights(tmp_path, model, checkpoint="b" * 64)
    assert one_line(model_for_runtime, model, "native").startswith(
        f"{path}: of another checkpoint than vnet.v2.m"
    )
    put_weights(tmp_path, model)
    path.write_text("cut")
    says = f"{description_path(path)}: describes another vnet.v2.vnet; export again: "
    assert one_line(model_for_runtime, model, "native").startswith(says)
    put(model, **PLAIN)
    assert one_line(model_for_runtime, model, "native").startswith(says)


def test_the_command_prints_the_path_alone(tmp_path, model, monkeypatch, capsys):
    put(tmp_path / "vnet.v2_lite.mindir", **LITE)
    monkeypatch.setattr(sys, "argv", ["model_description", str(model), "--runtime=lite"])
    main()
    assert capsys.readouterr() == (f"{tmp_path / 'vnet.v2_lite.mindir'}\n", "")
    path = put_weights(tmp_path, model)
    monkeypatch.setattr(sys, "argv", ["model_description", str(model), "--runtime=native"])
    main()
    assert capsys.readouterr() == (f"{path}\n", "")
    monkeypatch.setattr(sys, "argv", ["model_description", str(model)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
