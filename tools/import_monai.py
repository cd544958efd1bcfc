r"""Makes a checkpoint from the weights of MONAI's VNet(out_channels=2).

    python tools/import_monai.py --state_dict vnet.pt --ckpt_file imported/vnet.ckpt \
        --set VolSize=96,96,48 --set dstRes=1,1,2

The state dict is a .pt or .pth file (needs PyTorch), .safetensors or .npz. It does not say on which
grid the network was trained: VolSize (voxels) and dstRes (mm), and intensity, normDir and threshold
where they are not the defaults. config.json with them and variant 'monai' is written beside the
checkpoint, so that eval.py and predict.py take it as it is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.commands.arguments import add_config_arguments, overrides_of
from src.utils.command_line import new_parser, run


def main():
    """Parses paths and settings, and imports."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--state_dict",
        required=True,
        metavar="FILE",
        help="weights: .pt, .pth, .safetensors or .npz",
    )
    parser.add_argument(
        "--ckpt_file", required=True, metavar="OUT.ckpt", help="checkpoint to write, a new file"
    )
    add_config_arguments(parser)
    args = parser.parse_args()

    from src.export.monai_weights import import_monai

    import_monai(args.state_dict, args.ckpt_file, overrides_of(args))
    print(f"{args.ckpt_file}: written, with its config.json beside it")


if __name__ == "__main__":
    run(main)
