"""Rules, overrides, files and documentation of the configuration; every key has an effect."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_origin

import numpy as np
import pytest

from src.augment import TRANSFORMS
from src.config import (
    ANYTHING,
    AUGMENT_KEYS,
    GROUPS,
    KEYS,
    PRESETS,
    TABLE,
    config_of_checkpoint,
    config_path_of,
    file_overrides,
    load_config,
    mapping_overrides,
    markdown_table,
    override_config,
    override_unfixed,
    preset_overrides,
    save_config,
    training_config,
    value_text,
    vnet_cfg,
    with_preset,
)
from src.images.orientation import PLANES
from src.loss import LOSSES
from src.promise12.splits import draw_splits, split_file, write_splits
from src.utils.errors import DataError, UsageError
from src.vnet import SIDE_MULTIPLE, VARIANTS, create_vnet
from tests.helpers import ROOT

CHOICES = {
    key.name: tuple(key.rule.words.removeprefix("one of ").split(", "))
    for key in TABLE
    if key.rule.words.startswith("one of ")
}

# Key -> the test that shows its effect.
EFFECTS = {
    "task": "test_a_run_leaves_what_the_readme_says",
    "fold": "test_fold_picks_a_file_of_a_split_folder",
    "dirResult": "test_a_run_leaves_what_the_readme_says",
    "dirPredictionImage": "test_an_evaluation_leaves_masks_and_metrics",
    "normDir": "test_network_grid_lies_about_the_images_centre",
    "intensity": "test_equal_shares_of_an_equalized_image_are_equally_bright",
    "channel": "test_labels_and_channel_come_from_the_configuration",
    "labels": "test_labels_and_channel_come_from_the_configuration",
    "plane": "test_the_plane_of_a_training_is_that_of_most_cases",
    "dstRes": "test_network_grid_lies_about_the_images_centre",
    "VolSize": "test_network_grid_lies_about_the_images_centre",
    "accumulate_steps": "test_accumulated_batches_make_one_step",
    "sync_batch_norm": "test_synchronised_batch_norm_has_the_same_parameters",
    "batch_size": "test_each_epoch_takes_every_case_once_up_to_padding",
    "epochs": "test_a_run_leaves_what_the_readme_says",
    "lr": "test_history_holds_every_epoch",
    "weight_decay": "test_weight_decay_is_l2_on_convolution_weights_alone",
    "momentum": "test_momentum_belongs_to_the_momentum_optimizer",
    "warmup_step": "test_history_holds_every_epoch",
    "warmup_ratio": "test_history_holds_every_epoch",
    "variant": "test_variant_and_width_shape_the_network",
    "width": "test_variant_and_width_shape_the_network",
    "dropout": "test_samples_carry_the_dropout_of_the_configuration",
    "fast_conv3d": "test_fast_conv3d_chooses_what_computes_on_a_cpu",
    "seed": "test_order_follows_from_seed_and_epoch",
    "optimizer": "test_adam_is_the_default_optimizer",
    "loss": "test_the_loss_is_the_configurations",
    "ema_decay": "test_a_moving_average_is_what_is_scored_and_kept",
    **dict.fromkeys(AUGMENT_KEYS, "test_each_switch_rules_its_transform_alone"),
    "precision": "test_mixed_precision_computes_in_float16",
    "loss_scale": "test_mixed_precision_brings_a_loss_scale",
    "dataset_sink": "test_dataset_sink_is_for_ascend_and_gpu",
    "num_workers": "test_worker_count",
    "val_interval": "test_validation_comes_every_val_interval_and_at_the_end",
    "save_interval": "test_a_nan_names_the_batch_and_keeps_the_last_good_checkpoint",
    "early_stop": "test_early_stop_ends_the_training",
    "keep_checkpoint_max": "test_a_run_leaves_what_the_readme_says",
    "tensorboard": "test_the_events_of_a_run_are_its_history_and_overlays",
    "cache_dir": "test_cache_lies_where_the_configuration_says",
    "threshold": "test_foreground_is_strictly_above_the_threshold",
    "flip_average": "test_outputs_are_averaged_along_the_patients_left",
    "recentre": "test_a_gland_far_from_the_centre_is_segmented_on_a_grid_about_it",
}


def test_every_key_has_a_test_of_its_effect():
    assert set(EFFECTS) == set(vnet_cfg)
    names = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text("utf-8"), re.MULTILINE)
    }
    assert set(EFFECTS.values()) <= names


def test_variant_and_width_shape_the_network():
    shapes = {
        (variant, width): {
            parameter.name: parameter.shape
            for parameter in create_vnet(
                override_config(vnet_cfg, [f"variant={variant}", f"width={width}"])
            ).get_parameters()
        }
        for variant in VARIANTS
        for width in (1, 2)
    }
    for (variant, width), found in shapes.items():
        assert found["in_tr.conv.weight"] == (width, 1, 5, 5, 5)
        assert found["down_tr256.down_conv.weight"][:2] == (16 * width, 8 * width)
        assert found["out_tr.conv2.weight"][2:] == ((3,) * 3 if variant == "zoo" else (1,) * 3)
        assert ("out_tr.conv2.bias" in found) == (variant != "zoo")
        assert ("in_tr.relu.w" in found) == (variant == "paper")
        assert ("in_tr.bn.gamma" in found) == (variant == "instance")


def test_fold_picks_a_file_of_a_split_folder(tmp_path):
    write_splits(tmp_path, draw_splits(None, folds=3))
    for fold in range(3):
        config = override_config(vnet_cfg, [f"fold={fold}"])
        for kind in ("train", "val"):
            expected = tmp_path / f"{kind}_fold{fold}.csv"
            assert split_file(tmp_path, kind, config.fold) == expected
    with pytest.raises(DataError, match="no val_fold3.csv"):
        split_file(tmp_path, "val", 3)


# Overrides --------------------------------------------------------------------------------------


def test_defaults_are_the_zoos():
    zoo = {
        "task": "promise12",
        "fold": 0,
        "dirResult": "results/infer",
        "dirPredictionImage": "results/prediction",
        "normDir": False,
        "dstRes": [1, 1, 1.5],
        "VolSize": [128, 128, 64],
        "batch_size": 4,
        "epochs": 500,
        "lr": 0.001,
        "momentum": 0.99,
        "warmup_step": 120,
        "warmup_ratio": 0.3,
        "variant": "zoo",
        "seed": 1,
    }
    assert {key: vnet_cfg[key] for key in zoo} == zoo
    assert override_config(vnet_cfg, []) == vnet_cfg  # the defaults keep their own rules


@pytest.mark.parametrize(
    "item, value",
    [
        ("task=knee", "knee"),
        ("dirResult=a=b", "a=b"),
        ("epochs=3", 3),
        ("lr=0.01", 0.01),
        ("lr=1e-4", 1e-4),
        ("weight_decay=0", 0.0),
        ("VolSize=64,48,32", [64, 48, 32]),
        ("VolSize=[64, 48, 32]", [64, 48, 32]),
        ("VolSize=(64,48,32)", [64, 48, 32]),
        ("dstRes=0.5,1,3.6", [0.5, 1.0, 3.6]),
        ("normDir=true", True),
        ("normDir=True", True),
        ("normDir=1", True),
        ("flip_average=false", False),
        ("flip_average=0", False),
        ("variant=monai", "monai"),
        ("fold=4", 4),
        ("labels=2,1", [2, 1]),
        ("labels=1", [1]),
        ("labels=", []),
        ("channel=0", 0),
    ],
)
def test_an_override_has_the_defaults_type(item, value):
    config = override_config(vnet_cfg, [item])
    key = item.partition("=")[0]
    assert config[key] == value and type(config[key]) is type(vnet_cfg[key])
    assert {other: config[other] for other in config if other != key} == {
        other: vnet_cfg[other] for other in vnet_cfg if other != key
    }


def test_the_last_override_counts_and_the_original_stays():
    before = json.dumps(vnet_cfg)
    config = override_config(vnet_cfg, ["VolSize=16,16,16", "epochs=2", "epochs=3"])
    config.dstRes[0] = 9.0
    assert config.epochs == 3
    assert json.dumps(vnet_cfg) == before


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_says_and_set_comes_on_top(name):
    assert PRESETS[name]
    config = training_config("CPU", preset_overrides(name))
    assert config == {**vnet_cfg, **PRESETS[name]}
    assert training_config("CPU", [*preset_overrides(name), "epochs=7"]) == {**config, "epochs": 7}
    assert training_config("GPU", preset_overrides(name)) == config, (
        "what was tried at one learning rate"
    )


def test_the_compact_preset_is_the_accurate_one_of_fewer_voxels():
    accurate, compact = (
        training_config("CPU", preset_overrides(name)) for name in ("accurate", "compact")
    )
    differing = {key for key in accurate if accurate[key] != compact[key]}
    assert differing == {"VolSize", "dstRes"}
    assert np.prod(compact.VolSize) < np.prod(accurate.VolSize) < np.prod(vnet_cfg.VolSize)
    sides_mm = [np.multiply(c.VolSize, c.dstRes) for c in (accurate, compact)]
    np.testing.assert_allclose(*sides_mm)


def test_a_resumed_run_keeps_its_own_settings(capsys):
    assert preset_overrides("accurate", resumes=True) == []
    assert "--preset accurate is ignored" in capsys.readouterr().out
    assert preset_overrides(None, resumes=True) == []
    assert capsys.readouterr().out == ""


def test_what_is_left_of_a_preset_is_told(capsys):
    overrides = ["epochs=7", f"VolSize={vnet_cfg.VolSize}", "task=a", "width=4"]
    given = training_config("CPU", with_preset("compact", overrides))
    assert given == training_config("CPU", [*preset_overrides("compact"), *overrides])
    sides = ",".join(map(str, vnet_cfg.VolSize))
    told = capsys.readouterr().out
    assert told == f"--preset compact: not as it is, but with VolSize={sides} epochs=7\n"
    for name, resumes in ((None, False), ("compact", True)):
        assert with_preset(name, overrides, resumes) == overrides
    assert "not as it is" not in capsys.readouterr().out


def test_no_preset_and_an_unknown_one():
    assert preset_overrides(None) == []
    with pytest.raises(UsageError, match=r"--preset fast: expected one of accurate, compact"):
        preset_overrides("fast")


WRONG = [
    ("intensity=clip", "intensity is 'clip', expected one of rescale, equalize"),
    ("task=a/b", "task is 'a/b', expected letters, digits"),
    ("epochs", "--set epochs: expected key=value"),
    ("epochs=", "--set epochs=: expected a whole number"),
    ("epochs=2.5", "--set epochs=2.5: expected a whole number"),
    ("lr=fast", "--set lr=fast: expected a number"),
    ("lr=nan", "lr is nan, expected a number, such as 0.001"),
    ("lr=inf", "lr is inf, expected a number, such as 0.001"),
    ("normDir=maybe", "--set normDir=maybe: expected true or false"),
    ("VolSize=64,x,32", "--set VolSize=64,x,32: expected a list of whole numbers"),
    ("VolSize=64,64,32.0", "--set VolSize=64,64,32.0: expected a list of whole numbers"),
    ("channel=-2", "channel is -2, expected at least -1"),
    (f"seed={2**32}", "seed is 4294967296, expected at most 2147483647"),
    (f"labels=1,{10**20}", "labels is [1, 100000000000000000000], expected at most 2147483647"),
    ("labels=1,0", "labels is [1, 0], expected different whole numbers above 0"),
    ("labels=2,2", "labels is [2, 2], expected different whole numbers above 0"),
    ("labels=1,prostate", "--set labels=1,prostate: expected a list of whole numbers"),
    ("labels=1.5", "--set labels=1.5: expected a list of whole numbers"),
    ("plane=transversal", "plane is 'transversal', expected one of auto, sagittal, coronal, axial"),
    ("VolSize=64", "VolSize is [64], expected 3 multiples of 16"),
    ("VolSize=64,64,24", "VolSize is [64, 64, 24], expected 3 multiples of 16"),
    ("VolSize=64,64,0", "3 multiples of 16"),
    ("VolSize=64,64,-16", "3 multiples of 16"),
    ("dstRes=1,1", "dstRes is [1.0, 1.0], expected 3 positive sizes in mm"),
    ("dstRes=1,1,0", "3 positive sizes in mm"),
    ("dstRes=1,1,inf", "dstRes is [1.0, 1.0, inf], expected a list of numbers, such as [1.0"),
    *[(f"{key}={value}", f"{key} is {value}, expected") for key, value in [
        ("dropout", 1.0), ("dropout", -0.1), ("momentum", 1.0), ("momentum", -0.1),
        ("threshold", 1.0), ("threshold", -0.1), ("warmup_ratio", 1.1), ("warmup_ratio", -0.1),
        ("batch_size", 0), ("accumulate_steps", 0), ("epochs", 0), ("width", 0),
        ("val_interval", 0), ("save_interval", -1), ("keep_checkpoint_max", 0),
        ("fold", -1), ("weight_decay", -0.1), ("warmup_step", -1), ("seed", -1),
        ("num_workers", -1), ("early_stop", -1), ("lr", 0.0), ("lr", -0.1), ("loss_scale", 0.0),
        ("ema_decay", 1.0), ("ema_decay", -0.1),
        *[(key, value) for key in AUGMENT_KEYS for value in (1.1, -0.1)],
    ]],
    ("variant=unet", "variant is 'unet', expected one of zoo, monai, paper"),
    ("optimizer=sgd", "optimizer is 'sgd', expected one of adam, momentum"),
    ("loss=focal", "loss is 'focal', expected one of dice, dice_ce"),
    ("precision=half", "precision is 'half', expected one of auto, float32, mixed"),
    ("dataset_sink=true", "dataset_sink is 'true', expected one of auto, off"),
    *[
        (f"{key}={text}", f"{key} is '{text}', expected a path")
        for key in ("dirResult", "dirPredictionImage", "cache_dir")
        for text in ("", " ")
    ],
    ("fast_conv3d=yes", "fast_conv3d is 'yes', expected one of auto, on, off"),
]  # fmt: skip


@pytest.mark.parametrize("item, message", WRONG)
def test_wrong_values_are_refused(item, message):
    with pytest.raises(UsageError) as error:
        override_config(vnet_cfg, [item])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_each_rule_and_choice_was_tried():
    tried = {item.partition("=")[0] for item, _ in WRONG}
    assert tried >= {key.name for key in TABLE if key.rule is not ANYTHING}


@pytest.mark.parametrize("key, choices", CHOICES.items())
def test_each_choice_is_taken(key, choices):
    assert vnet_cfg[key] in choices
    for choice in choices:
        assert override_config(vnet_cfg, [f"{key}={choice}"])[key] == choice


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("volsize", "VolSize"),
        ("epoch", "epochs"),
        ("learning_rate", None),
        ("batchsize", "batch_size"),
        ("treshold", "threshold"),
        ("dstRes ", "dstRes"),
        ("keep_checkpoints", "keep_checkpoint_max"),
        ("items", None),  # a method of the dictionary, no key
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(UsageError) as error:
        override_config(vnet_cfg, [f"{key}=1"])
    assert f"unknown configuration key {key!r}; did you mean " in str(error.value)
    if nearest:
        assert f"did you mean {nearest!r}?" in str(error.value)


def test_a_key_like_no_other_gets_the_list():
    with pytest.raises(UsageError, match="'#'; known: task, fold, .*, recentre$"):
        override_config(vnet_cfg, ["#=1"])


@pytest.mark.parametrize(
    "device, overrides, lr",
    [
        ("CPU", [], 0.001),
        ("Ascend", [], 0.001),
        ("GPU", [], 0.0005),
        ("GPU", ["epochs=2"], 0.0005),
        ("GPU", ["lr=0.001"], 0.001),
        ("GPU", ["lr=0.02"], 0.02),
        ("CPU", ["lr=0.02"], 0.02),
    ],
)
def test_a_gpu_starts_lower_unless_told(device, overrides, lr):
    assert training_config(device, overrides).lr == lr


def test_a_rate_set_in_the_file_counts_as_told(monkeypatch):
    monkeypatch.setitem(vnet_cfg, "lr", 0.003)
    monkeypatch.setattr(vnet_cfg, "lr", 0.003)
    assert training_config("GPU", []).lr == 0.003


# --config ---------------------------------------------------------------------------------------

YAML = """\
# a comment
epochs: 7
lr: 1e-4
fast_conv3d: off
flip_average: true
VolSize: [32, 32, 16]
dstRes:
  - 2
  - 2.5
  - 3
labels: []
task: Übung 1
"""


def test_a_yaml_file_is_read_as_set_reads(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(YAML, "utf-8")
    config = override_config(vnet_cfg, file_overrides(path))
    assert config == {
        **vnet_cfg,
        "epochs": 7,
        "lr": 1e-4,
        "fast_conv3d": "off",  # YAML's own false
        "flip_average": True,
        "VolSize": [32, 32, 16],
        "dstRes": [2.0, 2.5, 3.0],
        "labels": [],
        "task": "Übung 1",
    }


def test_a_runs_configuration_is_a_file_for_config(tmp_path):
    saved = override_config(vnet_cfg, ["labels=1,2", "normDir=true", "lr=3e-7", "task=Übung 1"])
    save_config(saved, tmp_path / "config.json")
    assert override_config(vnet_cfg, file_overrides(tmp_path / "config.json")) == saved


def test_no_file_and_an_empty_one(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    (tmp_path / "a.json").write_text("{}")
    assert file_overrides(None) == file_overrides(tmp_path / "a.yaml") == []
    assert file_overrides(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "epochs: 7\nwidht: 8\n", ["line 2", "'widht'", "did you mean 'width'"]),
        ("a.yaml", "\nepochs: many\n", ["line 2", "epochs=many", "a whole number", "500"]),
        ("a.yaml", "width: 8\nVolSize: [20, 16, 16]\n", ["line 2", "multiples of 16"]),
        ("a.yaml", "width: 8\nwidth: 4\n", ["line 2", "width", "twice"]),
        ("a.yaml", "width:\n  first: 8\n", ["line 1", "a value or a list"]),
        ("a.yaml", "VolSize: [[1, 2], 3]\n", ["line 1", "a value or a list"]),
        ("a.yaml", "width: 8\n  lr: [\n", ["line 2"]),
        ("a.yaml", "width: [8]\n", ["line 1", "a whole number"]),
        ("a.yaml", "width: 8\ndirResult: [a, b]\n", ["line 2", "dirResult is a list"]),
        ("a.yaml", "width: 8\nVolSzie: [64, 64, 32]\n", ["line 2", "did you mean 'VolSize'"]),
        ("a.yaml", "- width\n- 8\n", ["such as `epochs: 100`"]),
        ("a.yaml", "width: \x01\n", ["a.yaml"]),
        ("a.yaml", "width: 8\ncache_dir: ~\n", ["line 2", "cache_dir", "no value"]),
        ("a.yaml", "width: 8\ndirResult:\n", ["line 2", "dirResult", "no value"]),
        ("a.json", "[" * 100_000, ["nested too deeply"]),
        ("A.JSON", '{"width": "8"}', ["width is '8'", "a whole number"]),
        ("a.json", '{\n"width": 8\n', ["line 3"]),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        file_overrides(path)
    assert all(word in str(error.value) for word in [f"--config {path}", *words])
    assert "\n" not in str(error.value).splitlines()[0]


@pytest.mark.parametrize("content", [None, b"width: \xff\n"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="a.yaml: cannot be read"):
        file_overrides(path)


def test_a_file_of_another_kind_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "scan.mha"
    path.write_text("# no configuration\n" * 100_000)
    with pytest.raises(DataError, match="scan.mha: larger than"):
        file_overrides(path)
    with pytest.raises(DataError, match="/dev/zero: larger than"):
        file_overrides("/dev/zero")


@pytest.mark.parametrize(("name", "content"), [("a.yaml", "width: 8"), ("a.json", '{"width": 8}')])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8-sig")
    assert file_overrides(tmp_path / name) == ["width=8"]


def test_a_configuration_that_an_editor_saved_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"width": 8}', "utf-8-sig")
    assert load_config(path).width == 8


def test_a_rate_of_a_file_is_the_users_choice(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 0.001\n")
    assert training_config("GPU", file_overrides(path)).lr == 0.001


# The table --------------------------------------------------------------------------------------


def test_names_are_those_of_the_code():
    """config.py lists them itself: importing the network would import MindSpore."""
    assert CHOICES["variant"] == tuple(VARIANTS)
    assert CHOICES["loss"] == tuple(LOSSES)
    assert CHOICES["plane"] == ("auto", *PLANES)
    assert f"multiples of {SIDE_MULTIPLE}" in KEYS["VolSize"].rule.words
    assert tuple(f"augment_{name}" for name in TRANSFORMS) == AUGMENT_KEYS


def test_the_configuration_imports_nothing_that_computes():
    code = "import src.config, sys; print(*{'mindspore', 'numpy', 'SimpleITK'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_every_key_has_a_group_and_a_line_of_help():
    assert [key.name for key in TABLE] == list(vnet_cfg)
    for key in TABLE:
        assert key.group in GROUPS and key.help and "\n" not in key.help and "|" not in key.help
        assert type(key.default) is (get_origin(key.kind) or key.kind)


def table_rows(page):
    """{key: (default, values, meaning)} of the tables of a page."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    return {key: tuple(cells) for key, *cells in rows}


@pytest.fixture(params=["docs/configuration.md", "docs/zh/configuration.md"])
def documentation(request):
    return (ROOT / request.param).read_text("utf-8")


def test_the_documentation_has_every_key_and_default(documentation):
    rows = table_rows(documentation)
    assert {key: cells[0] for key, cells in rows.items()} == {
        key.name: value_text(key.default) for key in TABLE
    }
    for name, choices in CHOICES.items():
        assert set(choices) <= set(re.findall(r"[\w]+", rows[name][1]))


def test_the_english_documentation_is_the_tables():
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    for group in GROUPS:
        assert f"## {group}\n" in page and f"\n{markdown_table(group)}" in page


def test_the_example_of_the_documentation_is_accepted(documentation, tmp_path):
    (tmp_path / "a.yaml").write_text(re.search(r"```yaml\n(.*?)```", documentation, re.DOTALL)[1])
    config = override_config(vnet_cfg, file_overrides(tmp_path / "a.yaml"))
    assert (config.epochs, config.VolSize) == (200, [64, 64, 32])


# Files ------------------------------------------------------------------------------------------


def test_save_and_load_round_trip(tmp_path):
    config = override_config(
        vnet_cfg,
        ["VolSize=32,48,16", "dstRes=0.1,2,3.3", "lr=1e-7", "normDir=true", "task=Übung 1"],
    )
    save_config(config, tmp_path / "config.json")
    loaded = load_config(tmp_path / "config.json")
    assert loaded == config
    assert {key: type(value) for key, value in loaded.items()} == {
        key: type(value) for key, value in config.items()
    }
    assert loaded.lr == loaded["lr"] == 1e-7
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_keys_that_came_later_get_their_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"width": 8, "VolSize": [16, 16, 16]}')
    assert load_config(path) == override_config(vnet_cfg, ["width=8", "VolSize=16,16,16"])


@pytest.mark.parametrize(
    "content, finding",
    [
        ("", "Expecting value"),
        ('{"width": 8', ""),
        ("[]", "an object of keys and values"),
        ("[1, 2]", "an object of keys and values"),
        ('"text"', "an object of keys and values"),
        ("5", ""),
        ("null", ""),
        ('{"model_type": "bert"}', "unknown configuration key 'model_type'"),
        ('{"width": "8"}', "width is '8', expected a whole number, such as 16"),
        ('{"width": 8.5}', "width is 8.5"),
        ('{"width": true}', "width is True"),
        ('{"width": 0}', "width is 0, expected at least 1"),
        ('{"lr": NaN}', "lr is nan"),
        ('{"flip_average": "yes"}', "flip_average is 'yes'"),
        ('{"task": 5}', "task is 5"),
        ('{"VolSize": "64,64,32"}', "VolSize is '64,64,32'"),
        ('{"VolSize": [64, 64, "32"]}', "VolSize is [64, 64, '32']"),
        ('{"variant": ["zoo"]}', "variant is ['zoo']"),
        ('{"variant": "unet"}', "variant is 'unet', expected one of"),
        (b"\xff\xfe\x00binary", "codec can't decode"),
        ("[" * 100_000, "recursion"),
        ('{"width": 8, "width": 4}', "width appears twice"),
        (f'{{"lr": {10**400}}}', "lr is 1000"),
        ('{"labels": null}', "labels is None"),
    ],
)
def test_foreign_and_corrupt_files_are_named(tmp_path, content, finding):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a configuration of this version (")
    assert finding in message and "restore it, or move it away" in message
    assert "\n" not in message


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with full_disk(200), pytest.raises(DataError, match="config.json: cannot be written"):
        save_config(vnet_cfg, path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert path.read_text() == "{}"


@pytest.fixture
def run_folder(tmp_path):
    """A run whose weights are not of the default configuration."""
    (tmp_path / "ckpt").mkdir()
    trained = override_config(vnet_cfg, ["width=4", "VolSize=32,32,16", "variant=paper"])
    save_config(trained, tmp_path / "config.json")
    return tmp_path


@pytest.mark.parametrize("place", ["ckpt/best.ckpt", "best.ckpt"])
def test_config_one_folder_up_or_beside(run_folder, place, monkeypatch, capsys):
    config = config_of_checkpoint(run_folder / place, ["threshold=0.3"])
    assert (config.width, config.VolSize, config.variant) == (4, [32, 32, 16], "paper")
    assert config.threshold == 0.3
    assert config_path_of(run_folder / place) == run_folder / "config.json"
    monkeypatch.chdir(run_folder / Path(place).parent)  # a bare name has no parent to look into
    assert config_of_checkpoint("best.ckpt", []).width == 4
    assert capsys.readouterr().out == ""


def test_the_nearer_config_counts(run_folder):
    save_config(override_config(vnet_cfg, ["width=2"]), run_folder / "ckpt" / "config.json")
    assert config_of_checkpoint(run_folder / "ckpt" / "best.ckpt", []).width == 2


def test_a_checkpoint_alone_gets_the_defaults_and_a_line(tmp_path, capsys):
    checkpoint = tmp_path / "a" / "b" / "VNet.ckpt"
    checkpoint.parent.mkdir(parents=True)
    save_config(override_config(vnet_cfg, ["width=2"]), tmp_path / "config.json")  # two folders up
    config = config_of_checkpoint(checkpoint, ["width=8", "variant=monai"])
    assert config == override_config(vnet_cfg, ["width=8", "variant=monai"])
    assert capsys.readouterr().out == (
        f"{checkpoint}: no config.json near it, using the defaults, --config and --set\n"
    )


@pytest.mark.parametrize("number", [float, np.float32, np.float64])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_overrides_of_numpy_are_those_of_python(number, kind):
    values = {
        "threshold": number(0.45),
        "dstRes": kind([number(1.1), number(2), number(3)]),
        "VolSize": kind([np.int64(32), np.int64(48), np.int64(64)]),
        "epochs": np.int32(3),
        "flip_average": np.bool_(True),
        "cache_dir": Path("a b"),
    }
    assert mapping_overrides(values) == [
        *("threshold=0.45", "dstRes=1.1,2.0,3.0", "VolSize=32,48,64", "epochs=3"),
        *("flip_average=True", "cache_dir=a b"),
    ]


def test_an_unreadable_config_is_said(run_folder):
    (run_folder / "config.json").unlink()
    (run_folder / "config.json").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="config.json: cannot be read"):
        load_config(run_folder / "config.json")


@pytest.mark.parametrize(
    "item",
    [
        *("width=8", "variant=zoo", "intensity=equalize"),
        *("epochs=7", "lr=0.5", "seed=4", "dropout=0.1", "augment_flip=0.3"),
    ],
)
def test_what_the_training_fixes_cannot_be_overridden(run_folder, item):
    key, value = item.split("=")
    with pytest.raises(UsageError) as error:
        config_of_checkpoint(run_folder / "ckpt" / "best.ckpt", [item])
    message = str(error.value)
    has = f"{key}={load_config(run_folder / 'config.json')[key]}"
    for part in (f"{key}={value}", str(run_folder / "config.json"), has, "leave"):
        assert part in message
    same = config_of_checkpoint(run_folder / "ckpt" / "best.ckpt", ["width=4", "variant=paper"])
    assert same.width == 4


def test_some_keys_of_a_saved_configuration_stay(tmp_path):
    saved = override_config(vnet_cfg, ["VolSize=32,32,16", "threshold=0.3"])
    keep = partial(override_unfixed, ("VolSize", "normDir"), saved, tmp_path / "vnet.json")
    assert keep([]) == saved
    changed = keep(["threshold=0.6", "VolSize=32,32,16", "normDir=false"])
    assert changed == override_config(saved, ["threshold=0.6"])
    assert saved.threshold == 0.3  # the saved one is not touched
    for item, has in (("VolSize=32,32,32", [32, 32, 16]), ("normDir=true", False)):
        key = item.partition("=")[0]
        with pytest.raises(UsageError) as error:
            keep(["threshold=0.6", item])
        assert f"{tmp_path / 'vnet.json'} has {key}={has}" in str(error.value)
    with pytest.raises(UsageError, match="did you mean 'threshold'"):
        keep(["treshold=0.6"])


def test_a_broken_config_near_a_checkpoint_is_no_reason_to_guess(run_folder):
    (run_folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not a configuration of this version"):
        config_of_checkpoint(run_folder / "ckpt" / "best.ckpt", [])
