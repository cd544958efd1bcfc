"""Arguments that several commands share."""

from argparse import ArgumentParser, Namespace
from typing import Any

from ..config import (
    GROUPS,
    KEYS,
    PRESETS,
    file_overrides,
    group_keys,
    value_text,
    with_preset,
)
from ..report.texts import LANGUAGES

DEVICES = ("Ascend", "GPU", "CPU")
DATA_PATH = "./promise"  # defaults of the zoo
VAL_SPLIT = "./split/val.csv"


def add_device_arguments(parser: ArgumentParser, id_flag: str) -> None:
    """Adds `--device_target` and the device number, for which the zoo has two names."""
    parser.add_argument(
        "--device_target",
        choices=("auto", *DEVICES),
        default="auto",
        help="device to compute on; auto: Ascend, else GPU, else CPU (default: auto)",
    )
    parser.add_argument(
        id_flag, type=int, default=0, metavar="N", help="number of the device (default: 0)"
    )


def add_checkpoint_argument(parser: Any, flag: str, purpose: str, required: bool = True) -> None:
    """Adds the checkpoint, for which the zoo has two names; of several the mean counts.

    Args:
        parser: of the command, or a group of its arguments.
        flag: name of the argument.
        purpose: for its help.
        required: False in a group of which one argument is required.
    """
    parser.add_argument(
        flag,
        required=required,
        nargs="+",
        action="extend",
        metavar="PATH",
        help=f"checkpoint to {purpose}; or the folder of a run or of a cross-validation; or a "
        "release, its zip or the https address of that; several are averaged",
    )


def add_language_argument(parser: ArgumentParser) -> None:
    """Adds the language of the report."""
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        default="en",
        help="language of report.html: en, English; zh, Chinese (default: en)",
    )


def add_data_argument(parser: ArgumentParser) -> None:
    """Adds the folder of cases with references."""
    parser.add_argument(
        "--data_path",
        default=DATA_PATH,
        metavar="FOLDER",
        help=f"folder with img/ and gt/ (default: {DATA_PATH})",
    )


def add_case_arguments(parser: ArgumentParser, split_flag: str) -> None:
    """Adds `--data_path` and the file that names the cases in it."""
    add_data_argument(parser)
    parser.add_argument(
        split_flag,
        default=VAL_SPLIT,
        metavar="FILE",
        help=f"file that lists the cases, or a folder of splits (default: {VAL_SPLIT})",
    )


def add_model_arguments(parser: ArgumentParser) -> None:
    """Adds what preprocess.py and postprocess.py take: run_infer_310.sh gives both the same."""
    add_case_arguments(parser, "--split_file_path")
    parser.add_argument(
        "--mindir_path",
        default="./vnet.mindir",
        metavar="FILE",
        help="exported model; the .json beside it describes its inputs (default: ./vnet.mindir)",
    )
    add_language_argument(parser)
    add_config_arguments(parser, "labels", "channel")


def add_result_argument(parser: ArgumentParser, required: bool) -> None:
    """Adds the C++ program's results."""
    parser.add_argument(
        "--result_path",
        required=required,
        nargs="+",
        metavar="FOLDER",
        help="folder with the program's NAME_0.bin files, of an ensemble one for each model",
    )


def add_config_arguments(parser: ArgumentParser, *shortcuts: str, has_preset: bool = False) -> None:
    """Adds `--config` and `--set`.

    Args:
        parser: of the command.
        shortcuts: keys that get an argument of their own, such as `--labels 1,2`.
        has_preset: whether to add `--preset`, and a list of all keys.
    """
    if has_preset:
        parser.add_argument(
            "--preset",
            metavar="NAME",
            help=f"tested combination of settings: {', '.join(PRESETS)}",
        )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or JSON file of configuration keys, such as a run's config.json; --set and its "
        "short forms override it",
    )
    where = "listed below" if has_preset else "see docs/configuration.md"
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=f"set a configuration key ({where}), such as --set VolSize=64,64,32; may be repeated",
    )
    for name in shortcuts:
        _add_shortcut(parser, name)
    if has_preset:
        for group in GROUPS:
            parser.add_argument_group(f"configuration keys, {group.lower()}", _key_lines(group))


def _add_shortcut(parser: ArgumentParser, name: str) -> None:
    """Adds `--NAME VALUE`, short for `--set NAME=VALUE`."""
    parser.add_argument(
        f"--{name}",
        action="append",
        default=[],
        type=lambda text: f"{name}={text}",
        metavar="VALUE",
        dest="overrides",
        help=KEYS[name].help,
    )


def _key_lines(group: str) -> str:
    return "\n".join(
        f"  {key.name}={value_text(key.default)}\n      {key.help}" for key in group_keys(group)
    )


def overrides_of(args: Namespace) -> list[str]:
    """Returns the overrides of `--preset`, `--config` and `--set`; of several, the last counts.

    Args:
        args: of a parser with `add_config_arguments`.
    """
    arguments: dict[str, Any] = vars(args)
    return with_preset(arguments.get("preset"), own_overrides_of(args))


def own_overrides_of(args: Namespace) -> list[str]:
    """Returns the overrides of `--config` and `--set`, without a preset; see `overrides_of`."""
    return [*file_overrides(args.config), *args.overrides]
