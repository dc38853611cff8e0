"""Entry of a gateway process; the supervisor starts it, nobody else."""

from __future__ import annotations

import argparse
import os
import socket

import msgspec

from wherry.app.gateway import run_gateway
from wherry.control.supervisor import GatewayOrder
from wherry.worker.launcher import die_with_parent


def main() -> None:
    """Read the order, then be that gateway."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway-order-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    arguments = parser.parse_args()
    with os.fdopen(arguments.gateway_order_fd, "rb") as source:
        order = msgspec.msgpack.decode(source.read(), type=GatewayOrder)
    die_with_parent(order.supervisor_pid)
    run_gateway(order, socket.socket(fileno=arguments.listen_fd))


if __name__ == "__main__":
    main()
