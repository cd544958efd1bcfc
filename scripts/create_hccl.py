"""Writes the rank table of one server's Ascend devices, for scripts/train_distribute.sh.

    python scripts/create_hccl.py --device_num "[0,8)"       with the addresses of /etc/hccn.conf
    python scripts/create_hccl.py --device_num 4,5,6,7 --device_ip 192.168.100.104,...

The table is hccl_8p_01234567_10.0.0.1.json: number of devices, their ids, the server's address.
"""

import json
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.devices.rank_table import (
    HCCN_CONF,
    create_rank_table,
    is_address,
    parse_device_ids,
    read_addresses,
    read_rank_table,
)
from src.utils.command_line import new_parser, run
from src.utils.errors import DataError, UsageError
from src.utils.files import write_files


def server_address():
    """Returns the IP address to which this machine's host name resolves."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise DataError(
            f"host name {socket.gethostname()}: has no address ({error.strerror}); "
            "give it with --server_ip"
        ) from None


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
        given = args.device_ip.split(",")
        if len(given) != len(ids):
            raise UsageError(f"--device_ip: {len(given)} address(es) for {len(ids)} device(s)")
        addresses, source = dict(zip(ids, given, strict=True)), "--device_ip"
    else:
        addresses, source = read_addresses(args.hccn_conf), args.hccn_conf
    server = args.server_ip or server_address()
    if not is_address(server):
        raise UsageError(f"--server_ip '{server}': expected an IP address")
    table = create_rank_table(ids, addresses, server, source)
    content = json.dumps(table, indent=4).encode() + b"\n"

    path = Path(args.out_path, f"hccl_{len(ids)}p_{''.join(ids)}_{server}.json")
    if path.exists() and path.read_bytes() != content:
        raise DataError(
            f"{path}: exists with other content and is not replaced; move it away or choose "
            "another --out_path"
        )
    write_files({path: content})
    read_rank_table(path, len(ids))
    print(f"rank table: {path}")


if __name__ == "__main__":
    run(main)
