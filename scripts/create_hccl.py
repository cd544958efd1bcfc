"""Writes the rank table of one server's Ascend devices, for scripts/train_distribute.sh.

    python scripts/create_hccl.py --device_num "[0,8)"       with the addresses of /etc/hccn.conf
    python scripts/create_hccl.py --device_num 4,5,6,7 --device_ip 192.168.100.104,...

The table is hccl_8p_01234567_10.0.0.1.json: number of devices, their ids, the server's address.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.devices.rank_table import (
    HCCN_CONF,
    create_rank_table,
    parse_addresses,
    parse_device_ids,
    read_addresses,
    server_address,
    write_rank_table,
)
from src.utils.command_line import new_parser, run


def main():
    """Parses the zoo's arguments and ours, and writes the table."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--device_num", default="[0,8)", help="device ids: '[0,8)' or a list (default: [0,8))"
    )
    parser.add_argument("--device_ip", help="addresses of the devices, in the same order")
    parser.add_argument(
        "--hccn_conf", default=HCCN_CONF, help="file with the addresses (default: %(default)s)"
    )
    parser.add_argument(
        "--server_ip", help="this server's address (default: that of its host name)"
    )
    parser.add_argument("--out_path", default=".", help="folder for the table")
    args = parser.parse_args()

    ids = parse_device_ids(args.device_num)
    if args.device_ip:
        addresses, source = parse_addresses(args.device_ip, ids), "--device_ip"
    else:
        addresses, source = read_addresses(args.hccn_conf), args.hccn_conf
    table = create_rank_table(ids, addresses, args.server_ip or server_address(), source)
    print(f"rank table: {write_rank_table(table, args.out_path)}")


if __name__ == "__main__":
    run(main)
