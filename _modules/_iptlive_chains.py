"""Which chains nf_tables has: asked of the kernel itself, one question per chain.

The iptables programs can only list chains, with all of their rules, or fail at the first one that is missing.
"""

import errno
import os
import socket
import struct
from typing import Dict, List, Mapping, Sequence

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN = 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
NFPROTO = {"ipv4": 2, "ipv6": 10}
TIMEOUT = 10  # seconds
_HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")


def existing_chains(family: str, wanted: Mapping[str, Sequence[str]]) -> Dict[str, List[str]]:
    """Of the wanted chains of each table those that exist. Raises OSError where the kernel cannot be asked."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(TIMEOUT)
        kernel.bind((0, 0))
        return {
            table: [chain for chain in chains if _exists(kernel, family, table, chain)]
            for table, chains in wanted.items()
        }


def _exists(kernel: socket.socket, family: str, table: str, chain: str) -> bool:
    body = struct.pack("=BBH", NFPROTO[family], 0, 0) + _text(NFTA_CHAIN_TABLE, table) + _text(NFTA_CHAIN_NAME, chain)
    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN
    kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST, 1, 0) + body)
    answer = kernel.recv(65536)
    if _HEADER.unpack_from(answer)[1] != NLMSG_ERROR:
        return True
    error = -_ERRNO.unpack_from(answer, _HEADER.size)[0]
    if error != errno.ENOENT:
        raise OSError(error, os.strerror(error))
    return False


def _text(kind: int, value: str) -> bytes:
    """An attribute: its length and kind, the text with its end mark, and padding to four bytes."""
    data = value.encode("utf-8", "surrogateescape") + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)
