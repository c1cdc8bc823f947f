"""docs/refusals.md: each of its examples is run, and says what is printed."""

import json
import re

import pytest
import yaml

from lab.host import REPO
from lab.network import connect

PATH = "/etc/iptables/rules.v4"
DOCUMENT = REPO / "docs" / "refusals.md"
BLOCK = re.compile(r"^(\w+):\n\n```\w+\n(.*?)```$", re.MULTILINE | re.DOTALL)
KEYS = ("reason", "lines", "message", "hint")


def examples():
    """By reason: the blocks under its heading, by the word above them."""
    sections = re.split(r"^## (\w+)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {reason: dict(BLOCK.findall(text)) for reason, text in zip(sections[::2], sections[1::2])}


def reasons_in_the_code():
    text = "".join(path.read_text(encoding="utf-8") for path in (REPO / "_modules").glob("_iptlive_*.py"))
    return set(re.findall(r'Refusal\(\s*"(\w+)"', text))


def prepare(host, example):
    rules, _, commands = example["Kernel"].partition("COMMIT\n")
    declared = sorted({f":{name} - [0:0]" for name in re.findall(r"f2b-\w+", rules)})
    host.restore("\n".join(["*filter", *declared, *rules.splitlines()[1:], "COMMIT", ""]))
    for command in commands.splitlines():
        host.run(["nft", "-f", "-"], input=command.partition(" ")[2] + "\n")
    host.write(PATH, example["Stored"])
    return {"families": ["ipv4"], **yaml.safe_load(example.get("Options", "{}"))}


def told(answer):
    (refusals,) = answer["refusals"].values()
    return [{key: refusal[key] for key in KEYS} for refusal in refusals]


def test_every_reason_is_documented():
    assert set(examples()) == reasons_in_the_code()


@pytest.mark.parametrize("reason", examples())
def test_example(hosts, host, reason):
    if reason == "native_rule":
        host = hosts("nft")
    if reason in ("expectation", "opens"):
        host = connect(hosts(host.backend))
    options = prepare(host, examples()[reason])
    before = host.save()
    reply = host.call("iptlive.apply", **options)
    assert reply.retcode == 1
    assert told(reply.value) == yaml.safe_load(examples()[reason]["Refusal"])
    assert {refusal["reason"] for refusal in told(reply.value)} == {reason}
    assert host.save() == before


def test_dry_run_shows_what_an_option_would_do(host):
    options = prepare(host, examples()["foreign_between"])
    made = host.call("iptlive.plan", placement="before", **options).value
    (edit,) = made["changes"]["IPv4/filter/FORWARD"]
    line = "{action} {position}: {rule}".format(**edit)
    assert f"answers\n\n```text\n{line}\n```" in DOCUMENT.read_text(encoding="utf-8")


def test_thousands_of_rules_in_the_way_stay_a_small_answer(host):
    rules = "*filter\n-A INPUT -i lo -j ACCEPT\n{}-A INPUT -j DROP\nCOMMIT\n"
    in_the_way = "".join(f"-A INPUT -s 10.0.{n // 250}.{n % 250}/32 -j DROP\n" for n in range(3000))
    host.restore(rules.format(in_the_way))
    host.write(PATH, rules.format("-A INPUT -p icmp -j ACCEPT\n"))
    answer = host.call("iptlive.plan", families=["ipv4"]).value
    ((refusal,),) = answer["refusals"].values()
    assert refusal["foreign"] == [line[9:] for line in in_the_way.splitlines()[:20]]
    assert (refusal["owners"], refusal["foreign_count"]) == (["unknown"] * 20, 3000)
    assert len(json.dumps(answer)) < 5000
    state = host.state(families=["ipv4"]).value
    assert "3000 foreign rules between line 2 and line 4" in state["comment"]
    assert len(json.dumps(state)) < 5000


@pytest.mark.parametrize("which", [0, 1])
def test_line_that_the_hint_names_is_an_anchor(host, which):
    example = examples()["no_anchor"]
    options = prepare(host, example)
    hint = yaml.safe_load(example["Refusal"])[0]["hint"]
    anchor, number = re.findall(r"'(-A [^']+)', (?:above|below) line (\d+)", hint)[which]
    lines = example["Stored"].splitlines()
    lines.insert(int(number) - 1 + which, anchor)
    host.write(PATH, "\n".join(lines) + "\n")
    made = host.call("iptlive.plan", **options).value
    positions = [edit["position"] for edit in made["changes"]["IPv4/filter/INPUT"]]
    assert (made["status"], positions) == ("changes", [[3, 4], [1, 2]][which])
