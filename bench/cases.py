"""Rules to measure with: stored files as people write them, and foreign rules as kube-proxy writes them."""

import hashlib

COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
CHAINS = ("INPUT", "FORWARD", "WEB")
# Not the kernel's own spelling: other option order, no -m for the protocol, no prefix length.
SHAPES = (
    "-p tcp --dport {port} -s {address} -j ACCEPT",
    "-i eth{small} -p udp -s {address} --dport {port} -j DROP",
    '-s {address} -p tcp -m multiport --dports {port},8443 -m comment --comment "service {number}" -j ACCEPT',
    "-s {address} -m state --state ESTABLISHED,RELATED -j ACCEPT",
    "-d {address} -p tcp --syn --dport {port} -m limit --limit 10/second -j ACCEPT",
    "-p tcp -s {address} --dport {port} -j REJECT",
)


def stored_file(family, count):
    """A stored file with so many rules, all different, most of them in built-in chains."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":WEB - [0:0]"]
    lines += [f"-A {CHAINS[number % 5 // 2]} {_rule(family, number)}" for number in range(count)]
    return "\n".join(lines + ["COMMIT", ""])


def _rule(family, number):
    address = f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}" if family == "ipv4" else f"2001:db8::{number:x}"
    shape = SHAPES[number % len(SHAPES)]
    return shape.format(port=1024 + number % 50000, address=address, small=number % 4, number=number)


def many_chains(count):
    """So many stored chains, each with three rules and a jump that leads to it."""
    names = [f"SERVICE-{number:05}" for number in range(count)]
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    lines += [f":{name} - [0:0]" for name in names]
    for number, name in enumerate(names):
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        lines.append(f"-A INPUT -d {address}/32 -j {name}")
        lines += [f"-A {name} -p tcp -m tcp --dport {port} -j ACCEPT" for port in (22, 80, 443)]
    return "\n".join(lines + ["COMMIT", ""])


def foreign_rules(table, count):
    """So many rules in the manner of kube-proxy, eight rules and three chains for each service."""
    services = count // 8
    chains, rules = ["KUBE-SERVICES", "KUBE-MARK"], []
    for service in range(services):
        own = "KUBE-SVC-" + _name(f"s{service}")
        address = f"10.96.{service >> 8 & 255}.{service & 255}"
        comment = f'-m comment --comment "ns{service % 50}/svc{service}:http cluster IP"'
        chains.append(own)
        rules.append(f"-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j {own}")
        rules.append(f"-A {own} ! -s 10.244.0.0/16 -d {address}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-MARK")
        for end in range(2):
            point = "KUBE-SEP-" + _name(f"s{service}e{end}")
            number = 2 * service + end
            pod = f"10.244.{number >> 8 & 255}.{number & 255}"
            chance = "-m statistic --mode random --probability 0.50000000000 " if end == 0 else ""
            last = f"DNAT --to-destination {pod}:8080" if table == "nat" else "ACCEPT"
            chains.append(point)
            rules.append(f"-A {own} {comment} {chance}-j {point}")
            rules.append(f"-A {point} -s {pod}/32 {comment} -j KUBE-MARK")
            rules.append(f"-A {point} -p tcp {comment} -m tcp -j {last}")
    heads = [f":{chain} - [0:0]" for chain in chains]
    return "\n".join([f"*{table}"] + heads + rules + ["COMMIT", ""])


def _name(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16].upper()
