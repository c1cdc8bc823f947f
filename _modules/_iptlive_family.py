"""What is known of each family: its name in results, its programs, and what the kernel calls it."""

import socket
from typing import Dict, NamedTuple, Tuple


class Family(NamedTuple):
    """One family; ``number`` is the kernel's for it, of sockets and of nf_tables alike."""

    label: str  # in results
    number: int
    command: str
    legacy_tables: str  # where the kernel names the tables of the legacy backend
    files: Tuple[str, ...]  # where distributions keep the stored rules
    version: str  # in the file names of backups
    passed_over: Tuple[str, ...]  # iptables-restore skips a rule line with one of these: it is for the other family


FAMILIES: Dict[str, Family] = {
    "ipv4": Family(
        label="IPv4",
        number=int(socket.AF_INET),
        command="iptables",
        legacy_tables="/proc/net/ip_tables_names",
        files=("/etc/iptables/rules.v4", "/etc/sysconfig/iptables"),
        version="v4",
        passed_over=("-6", "--ipv6"),
    ),
    "ipv6": Family(
        label="IPv6",
        number=int(socket.AF_INET6),
        command="ip6tables",
        legacy_tables="/proc/net/ip6_tables_names",
        files=("/etc/iptables/rules.v6", "/etc/sysconfig/ip6tables"),
        version="v6",
        passed_over=("-4", "--ipv4"),
    ),
}
LABELS = tuple(family.label for family in FAMILIES.values())


def label(family: str) -> str:
    return FAMILIES[family].label
