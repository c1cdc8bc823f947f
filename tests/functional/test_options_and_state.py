"""Options from arguments, state and pillar; the state's result and comment; return codes; what is logged."""

import pytest

from lab.host import SaltError

PATH = "/etc/iptables/rules.v4"
LIVE = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -s 10.0.0.1/32 -j DROP\n-A INPUT -j REJECT\nCOMMIT\n"
# A foreign rule stands where the new one belongs.
BETWEEN = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j REJECT\nCOMMIT\n"
IPV4 = {"families": ["ipv4"]}
SSH = "-p tcp -m tcp --dport 22 -j ACCEPT"
MESSAGE = (
    "IPv4/filter/INPUT: the rule of line 3 has no safe place: 1 foreign rule between line 2 and line 4",
    "'placement: after'",
)
WRONG = [
    ({"placment": "before"}, "unknown option 'placment'; known are backend, "),
    ({"placement": "top"}, "option 'placement': expected one of refuse, after, before, got 'top'"),
    ({"reorder": "yes"}, "option 'reorder': expected true or false, got 'yes'"),
    ({"chains": {"INPUT": {}}}, "option 'chains': expected a chain written like IPv4/filter/FORWARD, got 'INPUT'"),
]


@pytest.fixture
def refusing(host):
    host.restore(LIVE)
    host.write(PATH, BETWEEN)
    return host


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_option_is_named_wherever_it_stands(refusing, options, message):
    before = refusing.save()
    for given in ({**options}, {"pillar": {"iptlive": options}}):
        for fun in ("iptlive.plan", "iptlive.apply"):
            with pytest.raises(SaltError) as error:
                refusing.call(fun, **given)
            assert (error.value.kind, error.value.message[: len(message)]) == ("SaltInvocationError", message)
        state = refusing.state(**given).value
        assert (state["result"], state["changes"]) == (False, {})
        assert state["comment"].startswith(message)
    assert refusing.save() == before


@pytest.mark.parametrize(("pillar", "message"), [
    ({"iptlive": ["ipv4"]}, "pillar iptlive: expected a mapping of options, got ['ipv4']"),
    ({"iptlive": {"enabled": "no"}}, "pillar iptlive:enabled: expected true or false, got 'no'"),
])  # fmt: skip
def test_pillar_that_is_no_mapping_of_options(refusing, pillar, message):
    with pytest.raises(SaltError) as error:
        refusing.call("iptlive.apply", pillar=pillar)
    assert (error.value.kind, error.value.message) == ("SaltInvocationError", message)
    state = refusing.state(pillar=pillar).value
    assert (state["result"], state["changes"], state["comment"]) == (False, {}, message)


def test_argument_counts_more_than_pillar(refusing):
    pillar = {"iptlive": {"families": ["ipv4"], "placement": "before"}}
    step = {"action": "insert", "position": 3, "rule": SSH, "line": 3}
    assert refusing.call("iptlive.plan", pillar=pillar).value["changes"] == {"IPv4/filter/INPUT": [step]}
    answer = refusing.call("iptlive.plan", pillar=pillar, placement="after").value
    assert answer["changes"] == {"IPv4/filter/INPUT": [dict(step, position=2)]}
    pillar["iptlive"]["chains"] = {"IPv4/filter/INPUT": {"placement": "refuse"}}
    assert refusing.call("iptlive.plan", pillar=pillar, placement="after").value["status"] == "refused"
    done = refusing.state(pillar={"iptlive": {"families": ["ipv4"]}}, placement="before").value
    assert done["changes"] == {"IPv4/filter/INPUT": [f"insert 3: {SSH} (line 3)"]}


def test_disabled_by_pillar(refusing):
    """Nothing is read either: a host on which it is off needs no stored file."""
    pillar = {"iptlive": {"enabled": False, "families": ["ipv4"], "placement": "after"}}
    before = refusing.save()
    assert refusing.call("iptlive.plan", pillar=pillar).value["status"] == "changes"
    assert refusing.call("iptlive.apply", pillar=pillar, test=True).value["applied"] is False
    with pytest.raises(SaltError, match="iptlive:enabled is false"):
        refusing.call("iptlive.apply", pillar=pillar)
    refusing.run(["rm", PATH])
    for test in (True, False):
        state = refusing.state(pillar=pillar, test=test).value
        assert (state["result"], state["changes"]) == (True, {})
        assert "disabled on this host" in state["comment"]
    assert refusing.save() == before


def test_refusal(refusing):
    before = refusing.save()
    for fun, options in (("plan", {}), ("apply", {}), ("apply", {"test": True})):
        answer = refusing.call("iptlive." + fun, **IPV4, **options)
        assert (answer.retcode, answer.value["status"], answer.value["changes"]) == (1, "refused", {})
        assert answer.value.get("applied", False) is False
        (refusal,) = answer.value["refusals"]["IPv4/filter/INPUT"]
        assert (refusal["reason"], refusal["rules"], refusal["lines"]) == ("foreign_between", [SSH], [3])
        assert refusal["message"].startswith(MESSAGE[0]) and MESSAGE[1] in refusal["hint"]
    for test in (True, False):
        state = refusing.state(test=test, **IPV4).value
        assert (state["result"], state["changes"]) == (False, {})
        assert state["comment"].startswith("Refused; nothing was changed.\n" + MESSAGE[0])
        assert MESSAGE[1] in state["comment"]
    assert refusing.save() == before


def test_partial(refusing):
    """The other chains go ahead; the result is a refusal all the same, and no word of being in sync."""
    refusing.write(PATH, BETWEEN.replace("COMMIT", "-A OUTPUT -o lo -j ACCEPT\nCOMMIT"))
    output = {"IPv4/filter/OUTPUT": ["insert 1: -o lo -j ACCEPT (line 5)"]}
    state = refusing.state(test=True, partial=True, **IPV4).value
    assert (state["result"], state["changes"]) == (False, output)
    assert state["comment"].startswith("1 change to make; the other chains are refused.\n" + MESSAGE[0])
    state = refusing.state(partial=True, **IPV4).value
    assert (state["result"], state["changes"]) == (False, output)
    assert state["comment"].startswith("1 change made; the other chains are refused.\n" + MESSAGE[0])
    assert [line for line in refusing.save().splitlines() if "-A OUTPUT" in line] == ["-A OUTPUT -o lo -j ACCEPT"]
    answer = refusing.call("iptlive.apply", partial=True, **IPV4)
    assert (answer.retcode, answer.value["status"], answer.value["applied"]) == (1, "refused", False)


TO_REFUSED = """\
*filter
:MINE - [0:0]
:NEXT - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j NEXT
-A OUTPUT -o lo -j ACCEPT
-A NEXT -j MINE
-A MINE -p tcp -j DROP
-A MINE -p tcp -j DROP
COMMIT
"""


def test_partial_jump_to_a_refused_chain(host):
    """It is not made, so nothing can jump to it: what plan shows for the others is what apply can do."""
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    host.write(PATH, TO_REFUSED)
    looked = host.call("iptlive.plan", partial=True, **IPV4).value
    assert set(looked["changes"]) == {"IPv4/filter/OUTPUT"}
    reasons = {chain: [refusal["reason"] for refusal in found] for chain, found in looked["refusals"].items()}
    assert reasons == {
        "IPv4/filter/MINE": ["duplicate"],
        "IPv4/filter/NEXT": ["missing_reference"],
        "IPv4/filter/INPUT": ["missing_reference"],
    }
    done = host.call("iptlive.apply", partial=True, **IPV4).value
    assert (done["applied"], done["changes"], done["refusals"]) == (True, looked["changes"], looked["refusals"])
    # Where it exists, others may jump to it.
    host.run(["iptables", "-N", "MINE"])
    assert set(host.call("iptlive.apply", partial=True, **IPV4).value["changes"]) == {
        "IPv4/filter/INPUT",
        "IPv4/filter/NEXT",
    }


def test_words_of_the_state_system_are_no_options(refusing):
    done = refusing.state(
        placement="after",
        failhard=True,
        onlyif=["true"],
        reload_modules=True,
        retry={"attempts": 2},
        umask="0077",
        **IPV4,
    )
    assert done.value["changes"] == {"IPv4/filter/INPUT": [f"insert 2: {SSH} (line 3)"]}


@pytest.mark.parametrize("kept_host", ["nft"], indirect=True)  # the backend has no part in it
def test_exit_status_of_salt_call(host):
    host.restore(LIVE)
    host.write(PATH, BETWEEN)
    host.salt_call("saltutil.sync_all", pillar={"iptlive": IPV4}, check=True)
    assert host.salt_call("iptlive.plan").retcode == 1
    refused = host.salt_call("state.apply", "iptlive")
    (ret,) = refused.value.values()
    assert (refused.retcode, ret["result"], ret["changes"]) == (2, False, {})
    host.write(PATH, "*filter\n")
    error = host.salt_call("iptlive.apply")
    assert error.retcode != 0 and f"{PATH}, line 1" in error.stderr + error.stdout


def test_what_is_logged(refusing):
    """What the original script told, at the levels that suit a minion's log."""
    lines = refusing.call("iptlive.apply", **IPV4).log
    assert [text for level, text in lines if level == "ERROR"][0].startswith(MESSAGE[0])
    lines = refusing.call("iptlive.apply", placement="after", **IPV4).log
    assert ["DEBUG", f"IPv4: stored file {PATH}, backend {refusing.backend} 1.8.9"] in [
        [level, text.replace(_version(refusing), "1.8.9")] for level, text in lines
    ]
    told = [text for level, text in lines if level == "INFO"]
    assert told.index("For chain IPv4/filter/INPUT, all deletes are performed first") < told.index(
        f"For chain IPv4/filter/INPUT, insert at position 2: '{SSH}'"
    )
    assert told[-1] == "Live update of IPv4/filter completed"
    lines = refusing.call("iptlive.apply", **IPV4).log
    assert {level for level, _ in lines} == {"DEBUG"}
    assert ["DEBUG", "For chain IPv4/filter/INPUT, all 3 stored rules matched, no further checks needed"] in lines
    refusing.write(PATH, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n")
    warning = ["WARNING", "IPv4/filter/INPUT: the kernel's policy is ACCEPT, the stored one DROP"]
    assert warning in refusing.call("iptlive.plan", **IPV4).log


@pytest.mark.parametrize("kept_host", ["nft"], indirect=True)
def test_log_file_takes_every_rule(host):
    """A comment may hold bytes that are no UTF-8; a log file that takes only that shows tracebacks in their place."""
    host.restore(LIVE)
    host.write(PATH, LIVE.replace("COMMIT", '-A OUTPUT -m comment --comment "\udce9" -j ACCEPT\nCOMMIT'))
    host.salt_call("saltutil.sync_all", pillar={"iptlive": IPV4}, check=True)
    done = host.salt_call("iptlive.apply", "--log-file=/run/told", "--log-file-level=info")
    assert (done.retcode, done.stderr) == (0, "")
    assert r"\xe9" in host.read("/run/told")


def _version(host):
    return host.call("iptlive.plan", **IPV4).value["families"]["IPv4"]["version"]
