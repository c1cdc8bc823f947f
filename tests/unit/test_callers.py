"""Who may call plan and nothing else reads no file by it, and has nothing rendered."""

import _iptlive_callers as callers
import pytest
from _iptlive_model import InputError

PILLAR = {
    "files": {"ipv4": "/srv/own.v4"},
    "sources": {"ipv4": ["salt://fw/a.v4", "salt://fw/b.v4"]},
    "template": "jinja",
    "allow": ["/srv/firewall/*.v4", "salt://firewall/*"],
}


@pytest.mark.parametrize("user", ["bob", "UserName", "", "sudo", "Root", "root2"])
@pytest.mark.parametrize(
    "given",
    [
        {"files": {"ipv4": "/etc/shadow"}},
        {"files": {"ipv4": ["/etc/iptables/rules.v4", "/etc/shadow"]}},
        {"files": "/etc/shadow"},
        {"files": {"ipv4": "/srv/firewall/../../etc/shadow.v4"}},
        {"files": {"ipv4": ["salt://fw/a.v4"]}},
        {"sources": {"ipv4": "/tmp/mine"}},
        {"sources": {"ipv4": "/srv/own.v4"}},
        {"sources": {"ipv4": "https://example.org/rules"}},
        {"sources": {"ipv4": "salt://secret/keys"}},
        {"sources": {"ipv4": "salt://firewall/../secret/keys"}},
        {"sources": {"ipv4": [{"salt://fw/a.v4": "x"}]}},
        {"files": {"ipv4": 7}},
        {"template": "mako"},
        {"context": {"cmd": "id"}},
        {"defaults": {"cmd": "id"}},
        {"saltenv": "dev"},
        {"path": "/etc/iptables/rules.v4"},
        {"dest": "/etc/cron.d"},
    ],
)
def test_what_pillar_does_not_say_is_refused(user, given):
    with pytest.raises(InputError, match=next(iter(given))):
        callers.check(user, given, PILLAR)
    for root in (None, "root", "sudo_bob"):
        callers.check(root, given, PILLAR)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"families": ["ipv4"], "placement": "before", "path": None},
        {"files": {"ipv4": ["/etc/iptables/rules.v4", "/etc/sysconfig/iptables", "/srv/own.v4"]}},
        {"files": {"ipv4": "/srv/firewall/next.v4"}},
        {"sources": PILLAR["sources"], "template": "jinja"},
        {"sources": {"ipv4": "salt://firewall/web.v4"}},
    ],
)
def test_what_pillar_says_or_allows_is_taken(given):
    callers.check("bob", given, PILLAR)


def test_a_malformed_list_allows_nothing():
    with pytest.raises(InputError, match="iptlive:allow: expected a list"):
        callers.check("bob", {}, {"allow": "/srv/*"})
