r"""Evaluates the output of the C++ program (ascend310_infer/), as eval.py evaluates a checkpoint.

    python postprocess.py --result_path result_Files --data_path data \
        --split_file_path split/val.csv --mindir_path vnet.mindir [--language zh]

Masks, metrics.csv, metrics.json, summary.json, overlays.png and report.html go to
results/prediction (key dirPredictionImage).
"""

from argparse import ArgumentParser, Namespace

from .arguments import (
    add_model_arguments,
    add_result_argument,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_result_argument(parser, required=True)
    add_model_arguments(parser)


def execute(args: Namespace) -> None:
    """Evaluates the output."""
    from ..export.infer_310 import postprocess

    postprocess(
        args.data_path,
        args.split_file_path,
        args.mindir_path,
        args.result_path,
        overrides_of(args),
        args.language,
    )
