"""Rules whose verdict no packet tells: it hangs on history, chance or time, or on what no clone has. Pure.

Such a rule is loaded in a form that does not: without those matches (they are met), or with one that no packet meets.
"""

import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_rules import Word, words

MET, UNMET, AS_IT_IS = "met", "unmet", "as it is"
_NEVER = "-m mark --mark 0x1/0x0"  # no packet meets it
_MARKER = "iptlive-open:"
_MARKED = re.compile(re.escape(_MARKER) + r"(\d+)")

# What a packet's own head, its state, or the host's addresses and sets decide.
_KNOWN = frozenset(
    "addrtype ah bpf comment connmark conntrack dccp devgroup dst esp frag geoip hbh icmp icmp6 ipcomp iprange "
    "ipv6header mark mh multiport owner pkttype rpfilter rt sctp set srh state string tcp tcpmss u32 udp "
    "udplite".split()
)
# These pass the packet on whatever they do.
_PASSING = frozenset("AUDIT IDLETIMER LED LOG NFLOG RATEEST SECMARK CONNSECMARK TRACE ULOG".split())
_BLIND = frozenset("CLUSTERIP NFQUEUE QUEUE SYNPROXY TEE TPROXY".split())
_OBJECTS = frozenset("CLUSTERIP IDLETIMER LED SECMARK".split())
_HEAD_OPTIONS = ("-s", "-d", "-i", "-o", "-p", "-f")
_JUMPS = ("-j", "-g")
_FREE_TEXTS = ("--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string")
_SUSPECT = re.compile(r"-m (?!(?:{})\b)|-[jg] (?:{})\b|--timeout".format(
    "|".join(sorted(_KNOWN)), "|".join(sorted(_BLIND | _OBJECTS))))  # fmt: skip


class OpenRule(NamedTuple):
    """How a rule is loaded; ``quiet`` names the form for limits not used up, empty lists and the time it is."""

    text: str
    matches: Tuple[str, ...]
    met: str
    unmet: str
    as_it_is: str
    quiet: Optional[str]  # None: there is none
    decides: bool  # else it passes the packet on either way
    blind: str  # what it does with a packet that no clone can do; "" for nothing

    def form(self, name: Optional[str]) -> str:
        return {UNMET: self.unmet, AS_IT_IS: self.as_it_is}.get(name, self.met)


class _Part(NamedTuple):
    """A piece of a rule: its head, a match with its options, or the target with its options."""

    name: str
    text: str
    words: Tuple[str, ...]


def names_object(text: str) -> bool:
    """Whether the rule's target is an object that is one for the whole machine."""
    return any(f"-j {name}" in text for name in _OBJECTS) and _parts(text)[2].name in _OBJECTS


def examine(text: str) -> Optional[OpenRule]:
    """None for a rule that is loaded as it is."""
    if not _SUSPECT.search(text):
        return None
    head, matches, target = _parts(text)
    unsure = [match for match in matches if _is_open(match)]
    blind, loaded = _target(target)
    if not unsure and loaded == target.text and not blind:
        return None
    sure = [match.text for match in matches if match not in unsure]
    quiets = [_quiet(match) for match in unsure]
    times = [match.text for match in unsure if match.name == "time"]
    return OpenRule(
        text,
        tuple(match.name for match in unsure),
        _joined([head, *sure, loaded]),
        _joined([head, *sure, _NEVER, loaded]),
        _joined([head, *sure, *times, loaded]),
        _together(quiets),
        bool(target.name) and target.name not in _PASSING,
        blind,
    )


def _target(target: _Part) -> Tuple[str, str]:
    """What no clone can do of it, and how it is loaded."""
    if target.name in _BLIND:
        # TEE may be loaded; but what it sends out could be taken for the packet itself.
        return f"'-j {target.name}'", "" if target.name in _OBJECTS else target.text
    if target.name in _OBJECTS:
        return "", ""
    if target.name == "CT" and "--timeout" in target.words:
        # How long a connection is remembered decides over no packet here; the object with that name is not here.
        rest = re.sub(r" ?--timeout \S+", "", target.text)
        return "", "" if rest == "-j CT" else rest
    return "", target.text


def _is_open(match: _Part) -> bool:
    if match.name == "policy":
        return "none" not in match.words
    if match.name == "recent":
        return "--set" not in match.words
    return match.name not in _KNOWN


def _quiet(match: _Part) -> Optional[str]:
    """What the match says while nothing has used it up; None where nothing is the natural value."""
    above = any(word in match.words for word in ("--hashlimit-above", "--connlimit-above"))
    plain = {
        "limit": MET,
        "hashlimit": UNMET if above else MET,
        "connlimit": UNMET if above else MET,
        "recent": UNMET,
        "quota": MET,
        "connbytes": MET if any(word.startswith("0") for word in match.words[2:]) else UNMET,
        "time": AS_IT_IS,
    }.get(match.name)
    if "!" in match.words and plain in (MET, UNMET):
        return UNMET if plain == MET else MET
    return plain


def _together(quiets: Sequence[Optional[str]]) -> Optional[str]:
    """All matches of a rule must be met."""
    for value in (UNMET, None, AS_IT_IS):
        if value in quiets:
            return value
    return MET


def _parts(text: str) -> Tuple[str, List[_Part], _Part]:
    """The kernel prints what is common to all rules first, then the matches, and the target last."""
    found = words(text)
    starts = [at for at in range(len(found)) if _begins(text, found, at)]
    bounds = list(zip(starts, [*starts[1:], len(found)]))
    head = text[: found[starts[0]].start].strip() if starts else text
    parts = [_part(text, found[start:end]) for start, end in bounds]
    jump = parts.pop() if parts and parts[-1].text.startswith(_JUMPS) else _Part("", "", ())
    return head, parts, jump


def _begins(text: str, found: Sequence[Word], at: int) -> bool:
    """Whether a match or the target begins here: no free text, even one that looks like it."""
    word = found[at]
    plain = text[word.start] == "-" and word.value in ("-m", *_JUMPS)
    return plain and not (at and found[at - 1].value in _FREE_TEXTS)


def _part(text: str, found: Sequence[Word]) -> _Part:
    name = found[1].value if len(found) > 1 else ""
    return _Part(name, text[found[0].start : found[-1].end], tuple(word.value for word in found))


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(piece for piece in pieces if piece)


def marked(number: int, text: str) -> str:
    """The rule with a comment by which it is found again."""
    return f"-m comment --comment {_MARKER}{number} {text}".strip()


def marker(text: str) -> Optional[int]:
    """The number that a rule read from the kernel was marked with."""
    found = _MARKED.search(text) if _MARKER in text else None
    return int(found.group(1)) if found else None
