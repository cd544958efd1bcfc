"""The link between the launchers of one training on several hosts: each learns how the others end.

MindSpore's own heartbeat also ends a job whose network is cut, but up to a minute later, without
a word that a user understands. Every launcher sends the first host a line each BEAT_SECONDS, and
gets one: an empty line while it goes on, and at its end what has happened.
"""

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket

BEAT_SECONDS = 2
LOST_SECONDS = 30  # without a line, after which the other host counts as lost
CONNECT_SECONDS = 5
JOIN_SECONDS = 600  # for the first host's launcher to be started


class HostError(Exception):
    """MASTER_ADDR, MASTER_PORT or NODE_RANK cannot be meant: what is wrong, exit code."""


def bind(address, port):
    """Takes a port of an address of this host for a moment; 0 takes any free one.

    Returns:
        The port.

    Raises:
        OSError: the port is taken, or the address is not this host's.
    """
    family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        return probe.getsockname()[1]


def check_address(address, ports, nodes, node_rank):
    """Checks what the user says about the hosts, before MindSpore waits for them in vain.

    Args:
        address: MASTER_ADDR.
        ports: that node 0 will listen on; 0: any free one.
        nodes: number of hosts.
        node_rank: which of them this is.

    Returns:
        The first port, or the free one that was found for it; None on other nodes than 0.

    Raises:
        HostError: something of it cannot be.
    """
    try:
        numeric = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise HostError(f"MASTER_ADDR '{address}': {error.strerror}", 2) from None
    if nodes > 1 and ipaddress.ip_address(numeric.partition("%")[0]).is_loopback:
        raise HostError(
            f"MASTER_ADDR '{address}' is a host's name for itself: give the address by which the "
            "other hosts reach the one of NODE_RANK=0",
            2,
        )
    if node_rank > 0:
        with contextlib.suppress(OSError):
            bind(address, 0)  # which fails for an address of another host
            raise HostError(
                f"MASTER_ADDR '{address}' is this host, which makes it NODE_RANK=0 and not "
                f"{node_rank}: start one launcher on each host",
                2,
            )
        return None
    taken = []
    for port in ports:
        try:
            taken.append(bind(address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise HostError(
                    f"MASTER_ADDR '{address}' is not this host's ({error.strerror}): the launcher "
                    "of NODE_RANK=0 belongs on the host that has this address",
                    2,
                ) from None
            raise HostError(
                f"port {port} of {address} is taken, perhaps by another training: choose another "
                "MASTER_PORT (with NODES > 1 it and the next one are used)",
                1,
            ) from None
    return taken[0]


async def until_cancelled(work):
    """Awaits a coroutine and ends quietly with it, which Python's streams need before 3.12."""
    with contextlib.suppress(asyncio.CancelledError):
        await work


async def talk(reader, writer, name, links, end):
    """Exchanges lines with another host until one of the two ends.

    Args:
        reader, writer: the connection.
        name: of the other host, for messages.
        links: set of the writers of all connections, which this one joins.
        end: called with exit code and message where the job on this host has to end.
    """

    async def beat():
        while True:
            writer.write(b"\n")
            await asyncio.sleep(BEAT_SECONDS)

    links.add(writer)
    beats = asyncio.create_task(beat())
    try:
        while (line := await asyncio.wait_for(reader.readline(), LOST_SECONDS)) == b"\n":
            pass
        last = json.loads(line)
        if last["code"] != 0:
            end(last["code"], f"{name}: {last['message']}")
    except asyncio.TimeoutError:
        end(1, f"{name} was not heard of for {LOST_SECONDS} s: is the network to it cut?")
    except (OSError, ValueError):
        end(1, f"{name} is gone without a word: its launcher was killed, or the host restarted")
    finally:
        beats.cancel()
        links.discard(writer)
        writer.close()


async def listen(address, port, nodes, workers, links, end):
    """On node 0: waits for the other hosts' launchers, and exchanges lines with them.

    Args:
        address, port: to listen on.
        nodes: number of hosts.
        workers: number of ranks on all hosts, which the others have to agree with.
        links, end: see `talk`.
    """
    here = set()

    async def welcome(reader, writer):
        try:
            line = await asyncio.wait_for(reader.readline(), CONNECT_SECONDS)
            hello = json.loads(line)
            node, theirs = int(hello["node"]), (hello["nodes"], hello["workers"])
        except (asyncio.TimeoutError, OSError, ValueError, TypeError, KeyError):
            writer.close()  # not a launcher
            return
        refusal = ""
        if theirs != (nodes, workers):
            refusal = (
                f"NODES={theirs[0]} and WORKER_NUM {theirs[1]} there, "
                f"NODES={nodes} and WORKER_NUM {workers} here"
            )
        elif node in here:
            refusal = f"another launcher has NODE_RANK={node} already"
        if refusal:
            writer.write(json.dumps({"code": 2, "message": refusal}).encode() + b"\n")
            writer.close()
            return
        here.add(node)
        name = f"node {node} ({writer.get_extra_info('peername')[0]})"
        print(f"{name} has joined", flush=True)
        await talk(reader, writer, name, links, end)

    try:
        await asyncio.start_server(lambda *pair: until_cancelled(welcome(*pair)), address, port)
    except OSError as error:
        end(1, f"port {port} of {address}: {error.strerror}; choose another MASTER_PORT")


async def join(address, port, node, nodes, workers, links, end):
    """On the other nodes: finds node 0's launcher, and exchanges lines with it. See `listen`."""
    print(f"waiting for node 0 ({address}), port {port}", flush=True)
    deadline = asyncio.get_running_loop().time() + JOIN_SECONDS
    while True:
        if asyncio.get_running_loop().time() > deadline:
            end(1, f"node 0 ({address}) does not answer on port {port}: is its launcher running?")
            return
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(address, port), CONNECT_SECONDS
            )
            break
        await asyncio.sleep(1)
    hello = {"node": node, "nodes": nodes, "workers": workers}
    writer.write(json.dumps(hello).encode() + b"\n")
    await talk(reader, writer, f"node 0 ({address})", links, end)


async def tell(links, code, message):
    """Tells all hosts that are still linked how the job has ended on this one."""
    for writer in links:
        writer.write(json.dumps({"code": code, "message": message}).encode() + b"\n")
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(
            asyncio.gather(*(writer.drain() for writer in links)), CONNECT_SECONDS
        )
