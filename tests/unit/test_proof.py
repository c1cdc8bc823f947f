"""The judgement: what holds, what an update breaks, what nobody can tell, and who is let off. The clone is a model."""

import contextlib

import _iptlive_proof as proof_room
import pytest
from _iptlive_expect import parse
from _iptlive_journal import Step
from _iptlive_model import Chain, Choices, HostError, Line, StoredState
from _iptlive_options import Options
from _iptlive_owners import parse as owners
from _iptlive_plan import plan_chain
from _iptlive_programs import Tools
from _iptlive_prover import Answer, NoCloneError, Open
from _iptlive_prover import Rule as Decider
from _iptlive_survey import FamilyView, RefusedError, Survey
from proof_host import FACTS, Packet, Rule, routes

TOOLS = Tools("ipv4", "nft", "1.8.9", "iptables-nft", "iptables-nft-save", "iptables-nft-restore")
SSH = Rule(protocol="tcp", port="22")
ADMIN = Rule(source="192.0.2.0/24", protocol="tcp", port="22")
DROP = Rule(source="192.0.2.7/32", target="DROP")
BAN = Rule(source="192.0.2.9/32", target="DROP")
TO_BANS = Rule(protocol="tcp", port="22", target="f2b-sshd")
WEB = Rule(protocol="tcp", port="8000")
REST = Rule(target="DROP")


class Clone:
    """The kernel of a model host; it knows the edits once they are loaded, and not before."""

    kind = "namespace"
    not_cloned = ()
    facts = FACTS

    def __init__(self, live, planned, answer=None):
        self.packets = 0
        self.loaded = []
        self.live = {"ipv4": {"filter": _chains(live)}}
        self._now = live
        self._planned = planned
        self._answer = answer

    @staticmethod
    def routes(questions):
        return routes(questions)

    def load_edits(self, texts):
        self.loaded.append(texts)
        self._now = self._planned

    def saved(self):
        return {"ipv4": {"filter": _chains(self._now)}}

    def probe(self, probes, worlds=True, trace=True):
        self.packets += len(probes)
        return [self._answer_to(probe) for probe in probes]

    def _answer_to(self, probe):
        ends = [int.from_bytes(bytes(map(int, text.split("."))), "big") for text in (probe.source, probe.destination)]
        packet = Packet(*ends, probe.protocol, probe.port, probe.source_port or 45000, probe.interface)
        chain, at, rule = _decider(self._now, "INPUT", packet)
        decider = Decider("nft", "filter", chain, at, rule.text() if rule else "policy DROP")
        target = rule.target if rule else "DROP"
        answer = Answer(target.lower(), "" if target == "ACCEPT" else "request", "", decider, "", "", (), (),
                        (("nft", "filter", chain, at),) if at else (), "")  # fmt: skip
        return self._answer(probe, answer) if self._answer else answer


def _decider(rules, chain, packet):
    for at, rule in enumerate(rules[chain], 1):
        if rule.matches(packet, {}):
            if rule.target not in rules:
                return chain, at, rule
            found = _decider(rules, rule.target, packet)
            if found[2]:
                return found
    return chain, 0, None


def _chains(rules):
    return {chain: Chain("DROP" if chain == "INPUT" else None, tuple(rule.text() for rule in content))
            for chain, content in rules.items()}  # fmt: skip


def prove(monkeypatch, entries, live, stored, deletes=(), answer=None, opens="report", clone=Clone):
    """The proof of an update of INPUT; line 1 is ``*filter``, so that rule n of the file is line n + 1."""
    lines = [Line(rule.text(), at) for at, rule in enumerate(stored, 2)]
    gone = [Line(rule.text(), at) for at, rule in enumerate(deletes, 2 + len(stored))]
    state = StoredState(tuple(lines), tuple(gone))
    chains = _chains(live)
    plan = plan_chain("IPv4/filter/INPUT", state, chains["INPUT"], Choices())
    assert not plan.refusals
    texts = {rule.text(): rule for rule in [*live["INPUT"], *stored]}
    planned = dict(live, INPUT=[texts[text] for text in plan.result.rules])
    options = Options(families=("ipv4",), expect=parse(entries), opens=opens)
    view = FamilyView(TOOLS, "/etc/iptables/rules.v4", {"filter": chains}, {"filter": {"INPUT": state}},
                      {"filter": {"INPUT": plan}}, (), "namespace")  # fmt: skip
    made = []

    @contextlib.contextmanager
    def opened(tools, stand_ins=()):
        made.append(clone(live, planned, answer))
        yield made[-1]

    monkeypatch.setattr(proof_room.prover, "open_clone", opened)
    found = Survey(options, (view,))
    proof = proof_room.prove(found, owners({}))
    assert [bool(one.loaded) for one in made] == [bool(plan.edits)] * len(made)
    return proof, found


def states(proof):
    return [(result.was, result.state, result.breaks) for result in proof.results]


ACCEPT = [{"accept": "22/tcp", "from": "192.0.2.0/24"}]
BLOCK = [{"block": "8000/tcp", "from": "203.0.113.0/24"}]


def test_in_sync_and_holding(monkeypatch):
    """It is tried although there is nothing to change: nothing is refused, and nothing has changed."""
    proof, _ = prove(monkeypatch, ACCEPT + BLOCK, {"INPUT": [ADMIN, REST]}, [ADMIN, REST])
    assert states(proof) == [("holds", "holds", False)] * 2
    assert (proof.refusals, proof.changes, proof.packets >= 2) == ((), (), True)


def test_an_update_that_breaks_one_is_refused(monkeypatch):
    """One address of those that it names is enough, and the line that does it is named."""
    proof, _ = prove(monkeypatch, ACCEPT, {"INPUT": [ADMIN, REST]}, [DROP, ADMIN, REST])
    assert states(proof) == [("holds", "broken", True)]
    ((key, refusal),) = proof.refusals
    assert key == "IPv4/filter/INPUT" and refusal.reason == "expectation" and refusal.lines == (2,)
    assert refusal.message == (
        "IPv4/filter/INPUT: 22/tcp from 192.0.2.0/24 would no longer be accepted: 192.0.2.7 > 198.51.100.10:22 tcp in "
        "eth0 is dropped by line 2, '-s 192.0.2.7/32 -j DROP', put at position 1"
    )
    assert refusal.hint == "move line 2 below line 3, or take the expectation out"


def test_what_the_update_mends_is_no_obstacle(monkeypatch):
    """Broken before, holding after; and what was broken and stays so is told, but refuses nothing."""
    other = [{"accept": "443/tcp", "from": "192.0.2.0/24"}]
    proof, _ = prove(monkeypatch, ACCEPT + other, {"INPUT": [REST]}, [ADMIN, REST])
    assert states(proof) == [("broken", "holds", False), ("broken", "broken", False)]
    assert proof.refusals == ()


def test_a_deleted_rule(monkeypatch):
    proof, _ = prove(monkeypatch, ACCEPT, {"INPUT": [ADMIN, REST]}, [REST], [ADMIN])
    ((_, refusal),) = proof.refusals
    assert "is dropped by line 2, '-j DROP'" in refusal.message
    assert refusal.hint == "keep the rule of line 3, or take the expectation out"


def test_blocks(monkeypatch):
    proof, _ = prove(monkeypatch, BLOCK, {"INPUT": [ADMIN, REST]}, [ADMIN, WEB, REST])
    assert states(proof) == [("holds", "broken", True)]
    assert "would no longer be blocked" in proof.refusals[0][1].message
    for verb, state in (("drop", "holds"), ("reject", "broken")):
        proof, _ = prove(monkeypatch, [{verb: "8000/tcp"}], {"INPUT": [REST]}, [REST])
        assert proof.results[0].state == state


def test_legs_and_exceptions(monkeypatch):
    """An accept is a whole conversation, of a block the request counts; what is excepted is not asked for."""
    sent = []

    def answer(probe, made):
        sent.append(probe)
        return made._replace(verdict="drop", leg="answer") if probe.whole else made

    proof, _ = prove(monkeypatch, ACCEPT + BLOCK, {"INPUT": [ADMIN, REST]}, [ADMIN, REST], answer=answer)
    assert [state for _, state, _ in states(proof)] == ["broken", "holds"]
    assert {(probe.port, probe.whole) for probe in sent} == {(22, True), (8000, False)}
    entries = [{"block": "22/tcp", "except": "192.0.2.0/24"}, {"block": "22/tcp"}]
    proof, _ = prove(monkeypatch, entries, {"INPUT": [ADMIN, REST]}, [ADMIN, REST])
    assert [state for _, state, _ in states(proof)] == ["holds", "broken"]


def test_nothing_is_sent_over_other_chains_than_were_tried(monkeypatch):
    proof, found = prove(monkeypatch, ACCEPT, {"INPUT": [ADMIN, REST]}, [ADMIN, WEB, REST])
    view, recorded = found.families[0], []
    step = Step("ipv4", "nft", "filter", {"INPUT": view.live["filter"]["INPUT"]}, {})
    for one, record in [(step, True), (step._replace(before=_chains({"INPUT": [REST]})), False)]:
        recorded.clear()
        with contextlib.nullcontext() if record else pytest.raises(proof_room.ChangedError, match="IPv4/filter/INPUT"):
            proof_room.only_as_tried(proof, view, "filter", recorded.append)(one)
        assert recorded == [one] * record
    proof_room.only_as_tried(proof_room.NOTHING, view, "filter", recorded.append)(step._replace(before={}))
    assert recorded


def test_a_ban_is_no_breach(monkeypatch):
    """Others' rule that names the peer lets the expectation hold, with a note; ours, or one for all of it, does not."""
    live = {"INPUT": [TO_BANS, ADMIN, REST], "f2b-sshd": [BAN]}
    proof, _ = prove(monkeypatch, ACCEPT, live, [ADMIN, REST])
    assert states(proof) == [("holds", "holds", False)]
    assert proof.results[0].note == "but not for 192.0.2.9 (fail2ban, IPv4/filter/f2b-sshd 1)"
    exact = [{"accept": "22/tcp", "from": "192.0.2.9"}]
    assert states(prove(monkeypatch, exact, live, [ADMIN, REST])[0]) == [("broken", "broken", False)]
    wider = [{"accept": ["22/tcp", "80/tcp"], "from": "192.0.2.9"}]
    open_web = {**live, "INPUT": [*live["INPUT"][:2], WEB._replace(port="80"), REST]}
    assert states(prove(monkeypatch, wider, open_web, open_web["INPUT"][1:])[0]) == [("broken", "broken", False)]
    ours = {"INPUT": [BAN, ADMIN, REST]}
    assert states(prove(monkeypatch, ACCEPT, ours, [BAN, ADMIN, REST])[0]) == [("broken", "broken", False)]
    foreign = {"INPUT": [ADMIN._replace(source="192.0.2.128/25"), REST]}
    assert states(prove(monkeypatch, ACCEPT, foreign, [foreign["INPUT"][0]])[0]) == [("broken", "broken", False)]


def hanging(verdict, others):
    def answer(probe, made):
        hangs = (Open("nft", "filter", "INPUT", 1, "-m recent ...", "recent"),)
        return made._replace(verdict=verdict, others=others, hangs=hangs)

    return answer


@pytest.mark.parametrize(("entry", "verdict", "others", "state"), [
    ("accept", "accept", ("drop",), "holds"),
    ("accept", "drop", ("accept",), "broken"),
    ("accept", "undecided", (), "undecided"),
    ("block", "drop", ("accept",), "undecided"),
    ("block", "drop", ("reject",), "holds"),
    ("drop", "drop", ("reject",), "undecided"),
    ("block", "accept", ("drop",), "undecided"),
    ("block", "undecided", (), "undecided"),
])  # fmt: skip
def test_worlds(monkeypatch, entry, verdict, others, state):
    """Of an accept the quiet world counts, with a note; a block that hangs on a counter is none."""
    live = {"INPUT": [REST]}
    proof, _ = prove(monkeypatch, [{entry: "22/tcp"}], live, [REST], answer=hanging(verdict, others))
    (result,) = proof.results
    assert result.state == state
    named = "-m recent of IPv4/filter/INPUT 1"
    if state == "undecided":
        assert named in proof_room.judging.told(result)["note"]
    assert (named in result.note) == (state == "holds" and entry == "accept")


def test_where_it_arrives(monkeypatch):
    entries = [{"accept": "8080/tcp", "arrives": "172.17.0.2:80"}]
    for arrives, state in [("172.17.0.2:80", "holds"), ("172.17.0.3:80", "broken"), ("172.17.0.2:81", "broken"),
                           ("", "broken")]:  # fmt: skip
        to = lambda probe, made, arrives=arrives: made._replace(verdict="accept", arrives=arrives)  # noqa: E731
        proof, _ = prove(monkeypatch, entries, {"INPUT": [REST]}, [REST], answer=to)
        assert proof.results[0].state == state


def test_without_a_packet_nothing_is_proved(monkeypatch):
    """No route, no way out by another interface: undecided, and why."""
    for entry, why in [
        ({"accept": "22/tcp", "from": "192.168.9.0/24"}, "no route to 192.168.9.0/24"),
        ({"accept": "22/tcp", "in": "eth0", "from": "any", "to": "203.0.113.9"}, "no packet of it can be made here"),
    ]:
        proof, _ = prove(monkeypatch, [entry], {"INPUT": [Rule()]}, [Rule()])
        assert states(proof) == [("undecided", "undecided", False)]
        assert why in proof_room.judging.told(proof.results[0])["note"]


def lacking(*args):
    raise NoCloneError("no throw-away network namespace can be made here")


def lost(*args):
    raise HostError("the clone ended without an answer")


def test_where_there_is_no_clone(monkeypatch):
    """What somebody expects refuses the update; without that it is only said. In sync there is nothing to refuse."""
    for entries, live, refused, told in [
        (ACCEPT, [REST], ["expectation"], 0),
        ([], [REST], [], 1),
        (ACCEPT, [ADMIN, REST], [], 0),
    ]:
        proof, _ = prove(monkeypatch, entries, {"INPUT": live}, [ADMIN, REST], clone=lacking)
        assert [refusal.reason for _, refusal in proof.refusals] == refused
        assert len(proof.warnings) == told
        assert all(result.state == "undecided" for result in proof.results) and len(proof.results) == len(entries)
    proof, _ = prove(monkeypatch, [], {"INPUT": [REST]}, [ADMIN, REST], clone=lacking, opens="refuse")
    assert [refusal.reason for _, refusal in proof.refusals] == ["opens"]


def test_a_lost_clone_is_no_proof(monkeypatch):
    with pytest.raises(HostError, match="ended without an answer"):
        prove(monkeypatch, ACCEPT, {"INPUT": [REST]}, [ADMIN, REST], clone=lost)
    proof, _ = prove(monkeypatch, [], {"INPUT": [REST]}, [ADMIN, REST], clone=lost)
    assert "could not be tried: the clone ended" in proof.warnings[0] and proof.packets == 0


def words(proof):
    return [proof_room.verdicts.told(change)["words"] for change in proof.changes]


def test_what_an_update_means(monkeypatch):
    proof, _ = prove(monkeypatch, [], {"INPUT": [ADMIN, REST]}, [ADMIN, WEB, REST])
    assert words(proof) == ["opens 8000/tcp to this host from anywhere"]
    proof, _ = prove(monkeypatch, [], {"INPUT": [SSH, REST]}, [DROP, SSH, REST])
    assert words(proof) == ["closes 22/tcp to this host from 192.0.2.7"]
    proof, _ = prove(monkeypatch, [], {"INPUT": [DROP, REST]}, [DROP, WEB, REST])
    assert words(proof) == ["opens 8000/tcp to this host from anywhere except 192.0.2.7"]
    proof, _ = prove(monkeypatch, [], {"INPUT": [REST]}, [REST])
    assert (words(proof), proof.packets) == ([], 0)


def test_a_rule_that_decides_nothing(monkeypatch):
    proof, _ = prove(monkeypatch, [], {"INPUT": [REST]}, [REST, ADMIN])
    assert proof.warnings == ("IPv4/filter/INPUT: line 3 decides nothing: line 2 takes its packets",)
    # It takes its packets itself, though nothing changes by that.
    proof, _ = prove(monkeypatch, [], {"INPUT": [REST]}, [DROP, REST])
    assert (proof.warnings, proof.changes) == ((), ())


def test_opens_refuse(monkeypatch):
    """What no accept names is refused, with one packet of it; closing is never refused."""
    live = {"INPUT": [ADMIN, REST]}
    for entries, reasons in [
        ([], ["opens"]),
        ([{"accept": "8000/tcp"}], []),
        ([{"accept": "8000/tcp", "from": "203.0.113.0/24"}], ["opens"]),
        ([{"accept": "7000-9000/tcp", "from": "any"}], []),
        ([{"accept": "8000/udp"}], ["opens"]),
        ([{"accept": "8000/tcp", "from": "any", "to": "203.0.113.1"}], ["opens"]),
    ]:
        proof, _ = prove(monkeypatch, entries, live, [ADMIN, WEB, REST], opens="refuse")
        assert [refusal.reason for _, refusal in proof.refusals] == reasons, entries
    message = prove(monkeypatch, [], live, [ADMIN, WEB, REST], opens="refuse")[0].refusals[0][1].message
    assert message.startswith("IPv4/filter/INPUT: the update opens 8000/tcp to this host from anywhere (for one: ")
    assert prove(monkeypatch, [], live, [DROP, ADMIN, REST], opens="refuse")[0].refusals == ()


def test_after_the_commit(monkeypatch):
    """Equal to the promise: done. Otherwise it is tried again, and what the update was to keep must hold."""
    live = {"INPUT": [ADMIN, REST]}
    proof, found = prove(monkeypatch, ACCEPT, live, [ADMIN, WEB, REST])
    there = {"filter": _chains({"INPUT": [ADMIN, WEB, REST]})}
    monkeypatch.setattr(proof_room.kernel, "read_tables", lambda tools, names: there)
    proof_room.check(found, proof)
    for rivals, is_refused in ([[ADMIN, WEB, WEB, REST], False], [[DROP, ADMIN, WEB, REST], True]):
        there = {"filter": _chains({"INPUT": rivals})}

        @contextlib.contextmanager
        def opened(tools, stand_ins=(), rivals=rivals):
            yield Clone({"INPUT": rivals}, None)

        monkeypatch.setattr(proof_room.prover, "open_clone", opened)
        with pytest.raises(RefusedError) if is_refused else contextlib.nullcontext():
            proof_room.check(found, proof)
