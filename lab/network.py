"""A throw-away host's own network: an address in each family, a way to everywhere, and a bridge like Docker's."""

_COMMANDS = """\
link add eth0 type veth peer name peer0
link set peer0 up
addr add 198.51.100.10/24 dev eth0
addr add 2001:db8::10/64 dev eth0 nodad
link set eth0 up
route add default via 198.51.100.1
route add default via 2001:db8::1
link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
"""


def connect(host):
    """Give it to the host; it goes with the host."""
    for line in _COMMANDS.splitlines():
        host.run(["ip", *line.split()])
    host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    return host
