"""Arguments that several commands share, and the overrides that they add up to."""

import argparse

from src.commands.arguments import (
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    add_model_arguments,
    overrides_of,
    own_overrides_of,
)
from src.config import PRESETS, override_config, vnet_cfg


def parse(words, *adders):
    parser = argparse.ArgumentParser()
    for add in adders:
        add(parser)
    return parser.parse_args(words.split())


def test_device_arguments():
    def add(parser):
        add_device_arguments(parser, "--dev_id")

    assert vars(parse("", add)) == {"device_target": "auto", "dev_id": 0}
    args = parse("--device_target CPU --dev_id 3", add)
    assert vars(args) == {"device_target": "CPU", "dev_id": 3}


def test_checkpoint_argument():
    args = parse(
        "--ckpt_path a b --ckpt_path c",
        lambda parser: add_checkpoint_argument(parser, "--ckpt_path", "x"),
    )
    assert args.ckpt_path == ["a", "b", "c"]


def test_model_arguments():
    assert vars(parse("", add_model_arguments)) == {
        "data_path": "./promise",
        "split_file_path": "./split/val.csv",
        "mindir_path": "./vnet.mindir",
        "language": "en",
        "config": None,
        "overrides": [],
    }
    words = "--data_path d --split_file_path s.csv --mindir_path m.mindir --set fold=2 --channel 1"
    words += " --language zh"
    assert vars(parse(words, add_model_arguments)) == {
        "data_path": "d",
        "split_file_path": "s.csv",
        "mindir_path": "m.mindir",
        "language": "zh",
        "config": None,
        "overrides": ["fold=2", "channel=1"],
    }


def test_overrides_are_those_of_preset_file_and_set(tmp_path):
    def add(parser):
        add_config_arguments(parser, "labels", has_preset=True)

    file = tmp_path / "a.yaml"
    file.write_text("width: 6\nfold: 2\n")
    args = parse(f"--set fold=3 --labels 1,2 --preset compact --config {file}", add)
    assert override_config(vnet_cfg, overrides_of(args)) == {
        **vnet_cfg,
        **PRESETS["compact"],
        "width": 6,
        "fold": 3,
        "labels": [1, 2],
    }
    assert own_overrides_of(args) == ["width=6", "fold=2", "fold=3", "labels=1,2"]
    assert overrides_of(parse("", add)) == []
