"""Masks and metrics from the answers of the C++ program (ascend310_infer/), as eval.py writes them.

    python postprocess.py --result_path result_Files --data_path data \
        --split_file_path split/val.csv --mindir_path vnet.mindir

Masks, metrics.csv, metrics.json, overlays.png and report.html go to results/prediction
(dirPredictionImage).
"""

import argparse

from ..utils.command_line import add_model_arguments


def main():
    """Parses the zoo's arguments and ours, and evaluates."""
    parser = argparse.ArgumentParser(description="Evaluate the answers of C++ inference")
    parser.add_argument("--result_path", required=True, help="folder with its NAME_0.bin files")
    add_model_arguments(parser)
    args = parser.parse_args()

    from ..export.description import config_of_model
    from ..export.infer_310 import evaluate_outputs
    from ..promise12.splits import split_cases

    config = config_of_model(args.mindir_path, args.overrides)
    cases = split_cases(args.data_path, args.split_file_path, "val", config.fold)
    evaluate_outputs(cases, config, args.result_path, {"model": args.mindir_path})
