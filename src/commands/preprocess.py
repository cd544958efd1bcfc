"""Writes the volumes that the C++ program (ascend310_infer/) segments, to results/bin_data.

    python preprocess.py --data_path data --split_file_path split/val.csv --mindir_path vnet.mindir

Grid and intensities are those in the model's description, vnet.json.
"""

from argparse import ArgumentParser, Namespace

from .arguments import add_model_arguments, overrides_of


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_model_arguments(parser)


def execute(args: Namespace) -> None:
    """Writes the volumes."""
    from ..export.infer_310 import preprocess

    preprocess(args.data_path, args.split_file_path, args.mindir_path, overrides_of(args))
