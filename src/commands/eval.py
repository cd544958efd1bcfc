r"""Evaluates a checkpoint on cases with reference masks.

    python eval.py --ckpt_path RUN --data_path data --eval_split_file_path split/val.csv \
        [--set flip_average=true]

Masks, metrics.csv, metrics.json, overlays.png and report.html go to results/prediction
(key dirPredictionImage).
"""

from argparse import ArgumentParser, Namespace

from ..report.painter import PROCESSES, Painter
from ..utils.process import no_garbage_collection
from .arguments import (
    add_case_arguments,
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--dev_id")
    add_checkpoint_argument(parser, "--ckpt_path", "evaluate")
    add_case_arguments(parser, "--eval_split_file_path")
    add_config_arguments(parser, "labels", "channel")


def execute(args: Namespace) -> None:
    """Evaluates."""
    with Painter(PROCESSES) as painter:
        with no_garbage_collection():
            from ..api import evaluate_rows

        evaluate_rows(
            args.ckpt_path,
            args.data_path,
            args.eval_split_file_path,
            None,
            args.device_target,
            args.dev_id,
            overrides_of(args),
            painter,
        )
