"""docs/rules-from-pillar.md, as it is written there, by the real salt-call."""

import re

from lab.host import REPO

DOCUMENT = REPO / "docs" / "rules-from-pillar.md"
FILE = re.compile(r"in `(/srv/[^`]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
PLACES = {"/srv/pillar": "/run/lab/pillar", "/srv/salt": "/run/lab/files"}


def write(host, role):
    """The files of the page; the host is the one that the page calls ``role``."""
    for path, text in FILE.findall(DOCUMENT.read_text(encoding="utf-8")):
        place = next(path.replace(shown, real) for shown, real in PLACES.items() if path.startswith(shown))
        host.write(place, text.replace(f"'{role}*'", "'lab'").replace("confirm: 60", "confirm: 0"))


def applied(host, *arguments):
    (state,) = host.salt_call("state.apply", "iptlive", *arguments).value.values()
    return state


def test_rules_from_pillar_and_roles(hosts):
    host = hosts("nft")
    write(host, "db")
    host.salt_call("saltutil.sync_all", check=True)
    host.restore("*filter\n-A INPUT -p tcp -m tcp --dport 8000 -j ACCEPT\nCOMMIT\n")
    assert applied(host)["result"] is True
    rules = host.save()
    assert "-s 192.0.2.0/24 -p tcp -m tcp --dport 22" in rules and "--dport 8000" not in rules
    assert "--dport 80 " not in rules
    write(host, "web")
    told = applied(host, "test=True")
    assert (told["result"], len(told["changes"]["IPv4/filter/INPUT"])) == (None, 2)
    assert applied(host)["result"] is True
    assert all(f"--dport {port} -j ACCEPT" in host.save() for port in (22, 80, 443))
    assert (applied(host)["result"], applied(host)["changes"]) == (True, {})
    host.write("/run/lab/pillar/firewall/web.sls", "firewall: {roles: [base, mail]}\n")
    refused = applied(host)
    assert refused["result"] is False
    assert refused["comment"].startswith("salt://firewall/rules.v4, line ")
