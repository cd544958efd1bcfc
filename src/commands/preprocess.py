"""Writes the volumes that the C++ program (ascend310_infer/) segments, to results/bin_data.

    python preprocess.py --data_path data --split_file_path split/val.csv --mindir_path vnet.mindir

Grid and intensities are those in the model's description, vnet.json. With `--result_path`, the
program's results, the volumes of the cases whose gland lies far from the grid's centre are written
to results/bin_data_recentred, about the gland (key recentre); the program is then run on these.
"""

from argparse import ArgumentParser, Namespace

from .arguments import add_model_arguments, add_result_argument, overrides_of


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_result_argument(parser, required=False)
    add_model_arguments(parser)


def execute(args: Namespace) -> None:
    """Writes the volumes."""
    from ..export.infer_310 import preprocess

    preprocess(
        args.data_path,
        args.split_file_path,
        args.mindir_path,
        overrides_of(args),
        args.result_path or (),
    )
