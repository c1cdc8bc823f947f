"""The option ``expect``: what must stay reachable, and what must not be, as its entries say it."""

import re
from typing import Any, Callable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_family import FAMILIES
from _iptlive_model import InputError
from _iptlive_spans import Span

VERBS = ("accept", "block", "drop", "reject")
KEYS = VERBS + ("from", "except", "to", "in", "arrives", "user", "state", "name")
PROTOCOLS = ("ah", "esp", "gre", "igmp", "ipip", "ospf", "vrrp")  # those without ports
EXAMPLE = "80/tcp, 6000-6100/udp, ping, icmp/3, icmpv6/1, " + ", ".join(PROTOCOLS)

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?/(tcp|udp)\Z")
_ICMP = re.compile(r"(icmp|icmpv6)/(\d{1,3})\Z")
_ARRIVES = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)|([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))(?::(\d{1,5}))?\Z"
)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")


class Service(NamedTuple):
    """What is asked for: ``ports`` of tcp and udp; ``icmp`` is a type, the echo request where it is None."""

    protocol: str
    ports: Span = (0, 0)
    icmp: Optional[int] = None
    families: Tuple[str, ...] = tuple(FAMILIES)
    text: str = ""


class Place(NamedTuple):
    """One address, network or name, as it was written; ``family`` and ``span`` are None until a name is looked up."""

    text: str
    family: Optional[str] = None
    span: Optional[Span] = None


class Arrival(NamedTuple):
    """What a packet's destination must be once it was translated."""

    address: str
    port: Optional[int] = None

    def text(self) -> str:
        if self.port is None:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Expectation(NamedTuple):
    """One entry. ``sources`` None is anywhere (or, for what goes elsewhere, this host); ``to`` None is this host."""

    verb: str
    services: Tuple[Service, ...]
    sources: Optional[Tuple[Place, ...]] = None
    excepted: Tuple[Place, ...] = ()
    to: Optional[Place] = None
    anywhere: bool = False  # to: any
    inside: Optional[str] = None
    arrives: Optional[Arrival] = None
    user: Optional[str] = None
    state: str = "new"
    name: str = ""
    entry: str = ""  # how messages name it
    own: bool = False  # ours, that nobody wrote: where nothing can be proved it refuses nothing

    def text(self) -> str:
        return self.name or self.words()

    def words(self) -> str:
        return f"{self.verb} {self.what()}"

    def what(self) -> str:
        """All but the verb."""
        parts = [", ".join(service.text for service in self.services)]
        if self.sources is not None:
            parts.append("from " + _list(self.sources))
        elif self.to is None and not self.anywhere and self.excepted:
            parts.append("from anywhere")
        if self.excepted:
            parts.append("except " + _list(self.excepted))
        if self.inside:
            parts.append("in " + self.inside)
        if self.to or self.anywhere:
            parts.append("to " + (_place_text(self.to) if self.to else "anywhere"))
        if self.arrives:
            parts.append("arriving at " + self.arrives.text())
        if self.user:
            parts.append("of user " + self.user)
        if self.state == "established":
            parts.append("in established connections")
        return " ".join(parts)

    def is_outgoing(self) -> bool:
        """Whether the packets are this host's own."""
        elsewhere = self.anywhere or self.to is not None
        return elsewhere and self.sources is None and self.inside is None

    def families(self) -> Tuple[str, ...]:
        """Those that its addresses leave; ``except`` leaves both, since whoever is not named there is meant."""
        places = [self.sources, (self.to,) if self.to else None]
        sets = [{place.family for place in named} for named in places if named]
        sets += [{family for service in self.services for family in service.families}]
        if self.arrives:
            sets.append({spans.family_of(self.arrives.address)})
        return tuple(family for family in FAMILIES if all(family in one for one in sets))


def _list(places: Iterable[Place]) -> str:
    return ", ".join(place.text for place in places)


def _place_text(place: Place) -> str:
    return "the master" if place.text == "master" else place.text


# --- reading the option ---


def parse(value: Any) -> Tuple[Expectation, ...]:
    """The entries; raises InputError that names the one that is wrong."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"option 'expect': expected a list of entries like {{accept: 22/tcp}}, got {value!r}")
    return tuple(_entry(f"option 'expect', entry {at}", entry) for at, entry in enumerate(value, 1))


def _entry(where: str, entry: Any) -> Expectation:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected a mapping like {{accept: 22/tcp}}, got {entry!r}")
    where = f"{where} ({_shown(entry)})"
    unknown = [str(key) for key in entry if key not in KEYS]
    if unknown:
        raise InputError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(KEYS)}")
    verbs = [verb for verb in VERBS if verb in entry]
    if len(verbs) != 1:
        found = "both " + " and ".join(verbs) if verbs else "none of them"
        raise InputError(f"{where}: expected one of {', '.join(VERBS)}, got {found}")
    made = Expectation(
        verb=verbs[0],
        services=_services(where, entry[verbs[0]]),
        sources=_sources(where, entry),
        excepted=_places(where, "except", entry["except"]) if "except" in entry else (),
        to=_destination(where, entry),
        anywhere=entry.get("to") == "any",
        inside=_text(where, entry, "in"),
        arrives=_arrives(where, entry["arrives"]) if "arrives" in entry else None,
        user=_user(where, entry),
        state=_state(where, entry.get("state", "new")),
        name=_text(where, entry, "name") or "",
        entry=where,
    )
    _check(where, made, entry)
    return made


def _shown(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in entry.items())


def _check(where: str, made: Expectation, entry: Mapping[str, Any]) -> None:
    """What cannot be meant together."""
    if made.arrives and made.verb != "accept":
        raise InputError(f"{where}: 'arrives' goes with accept only: what is blocked arrives nowhere")
    if made.user is not None:
        barred = [key for key in ("from", "in", "except") if key in entry]
        if barred:
            raise InputError(
                f"{where}: 'user' is about packets of this host's own, '{barred[0]}' about those of others"
            )
        if made.to is None and not made.anywhere:
            raise InputError(f"{where}: 'user' needs a 'to': an address, a network, any or master")
    if made.excepted and made.is_outgoing():
        raise InputError(
            f"{where}: 'except' is taken out of 'from', and the packets are this host's own: give a 'from'"
        )
    if made.state == "established" and not all(service.protocol in ("tcp", "udp") for service in made.services):
        raise InputError(f"{where}: 'state: established' is about tcp and udp")
    if not made.families() and not _unresolved(made):
        raise InputError(f"{where}: no family is left: its addresses and services are of different ones")


def _unresolved(made: Expectation) -> bool:
    return any(place.family is None for place in _all_places(made))


def _all_places(made: Expectation) -> List[Place]:
    return list(made.sources or ()) + list(made.excepted) + ([made.to] if made.to else [])


def _services(where: str, value: Any) -> Tuple[Service, ...]:
    named = value if isinstance(value, (list, tuple)) else [value]
    if not named:
        raise InputError(f"{where}: expected a service like {EXAMPLE}, got an empty list")
    return tuple(_service(where, one) for one in named)


def _service(where: str, value: Any) -> Service:
    text = str(value).lower()
    found = _PORTS.match(text)
    if found:
        low, high = int(found.group(1)), int(found.group(2) or found.group(1))
        if 0 < low <= high < 1 << 16:
            return Service(found.group(3), (low, high), text=text)
    found = _ICMP.match(text)
    if found and int(found.group(2)) < 256:
        family = "ipv4" if found.group(1) == "icmp" else "ipv6"
        return Service("icmp", icmp=int(found.group(2)), families=(family,), text=text)
    if text == "ping":
        return Service("icmp", text=text)
    if text in PROTOCOLS:
        return Service(text, text=text)
    raise InputError(f"{where}: expected a service like {EXAMPLE}, got {value!r}")


def _sources(where: str, entry: Mapping[str, Any]) -> Optional[Tuple[Place, ...]]:
    """None where it is not given; every address of both families for ``any``."""
    if "from" not in entry:
        return None
    if entry["from"] == "any":
        return tuple(Place("any", family, spans.everything(family)) for family in FAMILIES)
    return _places(where, "from", entry["from"])


def _places(where: str, key: str, value: Any) -> Tuple[Place, ...]:
    named = value if isinstance(value, (list, tuple)) else [value]
    if not named:
        raise InputError(f"{where}: '{key}': expected an address, a network or a list of them, got an empty list")
    return tuple(_place(where, key, one) for one in named)


def _place(where: str, key: str, value: Any) -> Place:
    text = str(value)
    try:
        return Place(text, spans.family_of(text), spans.span(text))
    except ValueError:
        if not _HOST.match(text) or text.replace(".", "").isdigit() or "/" in text:
            raise InputError(f"{where}: '{key}': expected an address or a network, got {value!r}") from None
        return Place(text)


def _destination(where: str, entry: Mapping[str, Any]) -> Optional[Place]:
    """None for this host and for ``any``; the master's address is looked up later."""
    value = entry.get("to", "self")
    return None if value in ("self", "any") else _place(where, "to", value)


def _arrives(where: str, value: Any) -> Arrival:
    found = _ARRIVES.match(str(value))
    address = found and (found.group(1) or found.group(2) or found.group(3))
    try:
        spans.number(address or "")
    except ValueError:
        raise InputError(f"{where}: 'arrives': expected an address or address:port, got {value!r}") from None
    port = int(found.group(4)) if found.group(4) else None
    if port is not None and not 0 < port < 1 << 16:
        raise InputError(f"{where}: 'arrives': expected a port between 1 and 65535, got {value!r}")
    return Arrival(address, port)


def _user(where: str, entry: Mapping[str, Any]) -> Optional[str]:
    if isinstance(entry.get("user"), int) and not isinstance(entry["user"], bool):
        return str(entry["user"])
    return _text(where, entry, "user")


def _text(where: str, entry: Mapping[str, Any], key: str) -> Optional[str]:
    value = entry.get(key)
    if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
        raise InputError(f"{where}: '{key}': expected a text, got {value!r}")
    return value


def _state(where: str, value: Any) -> str:
    if value not in ("new", "established"):
        raise InputError(f"{where}: 'state': expected new or established, got {value!r}")
    return value


# --- what nobody needs to write ---


def of_minion(ports: Sequence[int]) -> Tuple[Expectation, ...]:
    """A minion reaches its master's ports, and the open connection to the first, over which jobs come, lives on."""
    services = tuple(Service("tcp", (port, port), text=f"{port}/tcp") for port in ports)
    master = Place("master")
    return (
        Expectation("accept", services, to=master, own=True, entry="the connection to the master"),
        Expectation(
            "accept", services[:1], to=master, state="established", own=True, entry="the connection to the master"
        ),
    )


def gives_up_master(given: Iterable[Expectation]) -> bool:
    """Whether somebody says that the master is not to be reached any more."""
    return any(one.verb != "accept" and one.to is not None and one.to.text == "master" for one in given)


# --- names to addresses ---


def resolved(
    expectations: Iterable[Expectation], lookup: Callable[[str], Iterable[str]], master: Optional[str]
) -> Tuple[Expectation, ...]:
    """With addresses in the place of names. ``lookup`` returns those of a name, ``master`` is the master's if any.

    Raises InputError for a name that has none.
    """

    def addresses(one: Expectation, place: Place) -> Tuple[Place, ...]:
        if place.family is not None:
            return (place,)
        if place.text == "master":
            if master is None:
                raise InputError(f"{one.entry}: 'to: master': this host has no master; give its address")
            found: Iterable[str] = [master]
        else:
            found = lookup(place.text)
        known = tuple(Place(place.text, spans.family_of(text), spans.span(text)) for text in found)
        if not known:
            raise InputError(f"{one.entry}: the host name '{place.text}' has no address; give the address itself")
        return known

    return tuple(complete for one in expectations for complete in _with_addresses(one, addresses))


def _with_addresses(one: Expectation, addresses) -> List[Expectation]:
    if not _unresolved(one):
        return [one]
    sources = one.sources and tuple(found for place in one.sources for found in addresses(one, place))
    excepted = tuple(found for place in one.excepted for found in addresses(one, place))
    ends = addresses(one, one.to) if one.to else (None,)
    found = [one._replace(sources=sources, excepted=excepted, to=end) for end in ends]
    if not any(each.families() for each in found):
        raise InputError(f"{one.entry}: no family is left: its addresses and services are of different ones")
    return [each for each in found if each.families()]
