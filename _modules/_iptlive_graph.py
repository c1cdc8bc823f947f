"""A picture of the tables: chains and their jumps, what is stored, what is foreign and whose, what would change.

Chains to a model, the model to Graphviz or Mermaid; nothing here reads the host. Where a table has many chains, those
that share the beginning or the end of their names (KUBE-SVC-..., ..._fwd) are drawn as one, the largest families first.
"""

import re
from collections import Counter, defaultdict
from html import escape
from typing import Container, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_family import label
from _iptlive_model import Chain, Table, is_builtin
from _iptlive_owners import UNKNOWN, Owners, add
from _iptlive_rules import targets

MOST_NODES = 24  # of one table that are drawn one by one
LEGEND = 8  # entries in a row of the legend
LEAST_FAMILY = 3  # chains that are worth being drawn as one
NO_OWNER = ""

# Light enough to read black on them; the first ones go to those who are met most often.
PALETTE = ("#cfe2ff", "#d5f5d0", "#fde2c0", "#ead5f7", "#f9d0dc", "#d3f1f3", "#e9e4b8", "#dddddd")
LINES = ("#3f7fd0", "#3f9a33", "#c4761b", "#8d4cb5", "#c23a63", "#2a9aa3", "#8a8130", "#777777")
FAVOURITES = ("docker", "kubernetes", "fail2ban", "calico", "libvirt", "ufw", "cilium")


class View(NamedTuple):
    """One table: the kernel's chains, for each chain the stored line of each of its rules, what the plan does."""

    family: str
    table: str
    content: Table
    lines: Dict[str, List[Optional[int]]]
    changes: Dict[str, int]
    refused: Container[str]
    created: Sequence[str] = ()


class Node(NamedTuple):
    """A chain, or a family of chains; ``numbers`` counts its rules by owner, the stored ones under ``stored``."""

    name: str
    chains: int
    builtin: bool
    owner: Optional[str]
    policy: Optional[str]
    numbers: Dict[str, int]
    changes: int = 0
    refused: bool = False
    created: bool = False


class Edge(NamedTuple):
    """Jumps from one node to another; ``owner`` is empty where they are stored or several owners'."""

    source: str
    target: str
    jumps: int
    owner: str


class Picture(NamedTuple):
    title: str
    nodes: Tuple[Node, ...]
    edges: Tuple[Edge, ...]


def picture(view: View, owners: Owners) -> Picture:
    """One table's chains and jumps, large families of chains drawn as one."""
    content = dict(view.content, **{chain: Chain(None) for chain in view.created})
    drawn = collapsed(view.table, content, owners)
    members: Dict[str, List[str]] = defaultdict(list)
    for chain in content:
        members[drawn[chain]].append(chain)
    whose = {chain: _whose(view, owners, chain, state) for chain, state in content.items()}
    nodes = [_node(view, owners, name, chains, content, whose) for name, chains in members.items()]
    nodes = [node for node in nodes if not _is_idle(node)]
    return Picture(f"{label(view.family)}/{view.table}", tuple(nodes), tuple(_edges(view.table, content, drawn, whose)))


def _is_idle(node: Node) -> bool:
    """A built-in chain in which nothing is, nothing happens and nothing is said."""
    return node.builtin and not node.numbers and not node.changes and node.policy == "ACCEPT" and not node.refused


def _whose(view: View, owners: Owners, chain: str, state: Chain) -> List[str]:
    """For each rule its owner, NO_OWNER for the stored ones."""
    lines = view.lines.get(chain) or [None] * len(state.rules)
    return [
        NO_OWNER if line is not None else owners.of_rule(view.table, chain, rule)
        for rule, line in zip(state.rules, lines)
    ]


def _node(view: View, owners: Owners, name: str, chains: List[str], content: Table, whose) -> Node:
    numbers: Dict[str, int] = {}
    for chain in chains:
        add(numbers, (owner or "stored" for owner in whose[chain]))
    builtin = is_builtin(view.table, chains[0])
    return Node(
        name,
        len(chains),
        builtin,
        None if builtin else owners.of_chain(chains[0]),
        content[chains[0]].policy,
        numbers,
        sum(view.changes.get(chain, 0) for chain in chains),
        any(chain in view.refused for chain in chains),
        any(chain in view.created for chain in chains),
    )


def _edges(table: str, content: Table, drawn: Dict[str, str], whose) -> Iterable[Edge]:
    jumps: Counter = Counter()
    owners: Dict[Tuple[str, str], set] = defaultdict(set)
    for chain, state in content.items():
        for rule, owner in zip(state.rules, whose[chain]):
            for target in targets(rule):
                if target in content and not is_builtin(table, target):
                    pair = (drawn[chain], drawn[target])
                    jumps[pair] += 1
                    owners[pair].add(owner)
    for pair, count in jumps.items():
        yield Edge(*pair, count, owners[pair].pop() if len(owners[pair]) == 1 else NO_OWNER)


def collapsed(table: str, content: Iterable[str], owners: Owners) -> Dict[str, str]:
    """For each chain the name it is drawn under: its own, or that of a family like ``KUBE-SVC-*``."""
    drawn = {chain: chain for chain in content}
    for kinds in ((_long_beginning, _ending), (_short_beginning,)):
        while len(set(drawn.values())) > MOST_NODES:
            single = [chain for chain, name in drawn.items() if name == chain and not is_builtin(table, chain)]
            family, members = _largest_family(single, kinds, owners)
            if len(members) < LEAST_FAMILY:
                break
            drawn.update(dict.fromkeys(members, family))
    return drawn


def _largest_family(chains: Iterable[str], kinds, owners: Owners) -> Tuple[str, List[str]]:
    families: Dict[str, List[str]] = defaultdict(list)
    for chain in chains:
        for kind in kinds:
            # Only an administrator's zones (eth0_fwd, eth1_fwd) are alike in their endings.
            if kind is not _ending or owners.of_chain(chain) is None:
                families[kind(chain)].append(chain)
    families.pop("*", None)
    return max(families.items(), key=lambda item: (len(item[1]), item[0]), default=("", []))


def _long_beginning(chain: str) -> str:
    """KUBE-SVC-ABC: KUBE-SVC-*"""
    return re.sub(r"[^-_.]*\Z", "", chain) + "*"


def _short_beginning(chain: str) -> str:
    """ufw-before-logging-input: ufw-*"""
    found = re.match(r"[^-_.]+[-_.]", chain)
    return (found.group() if found else "") + "*"


def _ending(chain: str) -> str:
    """eth0_fwd: *_fwd"""
    found = re.search(r"[-_.][^-_.]+\Z", chain)
    return "*" + (found.group() if found else "")


# --- labels and colours ---


def _label(node: Node) -> List[str]:
    head = node.name + (f" ({node.chains} chains)" if node.chains > 1 else "")
    if node.policy:
        head += f"  policy {node.policy}"
    numbers = [f"{count} {owner}" for owner, count in sorted(node.numbers.items(), key=_stored_first)]
    lines = [head, ", ".join(numbers) or "empty"]
    if node.refused:
        lines.append("refused")
    elif node.created:
        lines.append("to be created")
    if node.changes and not node.refused:
        lines.append("{} change{}".format(node.changes, "" if node.changes == 1 else "s"))
    return lines


def _stored_first(item: Tuple[str, int]) -> Tuple[bool, int, str]:
    owner, count = item
    return owner != "stored", -count, owner


def _colours(pictures: Sequence[Picture]) -> Dict[str, int]:
    """Owners that are drawn, and the place of their colour."""
    met = {node.owner for part in pictures for node in part.nodes} | {e.owner for part in pictures for e in part.edges}
    named = sorted(met - {None, NO_OWNER, UNKNOWN}, key=lambda owner: (owner not in FAVOURITES, owner))
    return {owner: place % (len(PALETTE) - 1) for place, owner in enumerate(named)}


def _colour(colours: Dict[str, int], owner: Optional[str], palette: Sequence[str], otherwise: str) -> str:
    return palette[-1] if owner == UNKNOWN else palette[colours[owner]] if owner else otherwise


def _border(node: Node) -> str:
    if node.refused:
        return "#cc0000"
    return "#e08000" if node.changes or node.created else "#444444"


# --- Graphviz ---


def dot(pictures: Sequence[Picture]) -> str:
    """The pictures as one Graphviz graph."""
    colours = _colours(pictures)
    lines = [
        "digraph iptlive {",
        '  rankdir=LR; compound=true; fontname="sans-serif"; nodesep=0.15; ranksep=0.7;',
        '  node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=10, margin="0.12,0.06"];',
        '  edge [fontname="sans-serif", fontsize=9, arrowsize=0.6];',
    ]
    for number, part in enumerate(pictures):
        lines += _dot_table(part, number, colours)
    return "\n".join([*lines, _dot_legend(colours), "}"]) + "\n"


def _dot_table(part: Picture, number: int, colours: Dict[str, int]) -> List[str]:
    names = {node.name: f"t{number}n{at}" for at, node in enumerate(part.nodes)}
    lines = [f"  subgraph cluster_{number} {{", f"    label={_quoted(part.title)}; style=rounded; color=gray;"]
    for node in part.nodes:
        style = "filled" if node.builtin else "rounded,filled"
        width = 2.5 if node.changes or node.refused or node.created else 1
        lines.append(
            f"    {names[node.name]} [label={_quoted(*_label(node))}, style={_quoted(style)}, penwidth={width}, "
            f"fillcolor={_quoted(_colour(colours, node.owner, PALETTE, '#ffffff'))}, color={_quoted(_border(node))}];"
        )
    for edge in part.edges:
        colour = _colour(colours, edge.owner, LINES, "#222222")
        label = f", label={_quoted(f'{edge.jumps}x')}" if edge.jumps > 1 else ""
        lines.append(f"    {names[edge.source]} -> {names[edge.target]} [color={_quoted(colour)}{label}];")
    return lines + ["  }"]


def _dot_legend(colours: Dict[str, int]) -> str:
    """What the colours mean, in lines below the picture: boxes of their own would take a third of it."""
    entries = [(owner, PALETTE[place], "#444444", 1) for owner, place in colours.items()]
    entries += [("changes", "#ffffff", "#e08000", 2), ("refused", "#ffffff", "#cc0000", 2)]
    cells = [
        f'<td bgcolor="{fill}" color="{border}" border="{width}">{escape(name)}</td>'
        for name, fill, border, width in entries
    ]
    rows = ["".join(cells[at : at + LEGEND]) for at in range(0, len(cells), LEGEND)]
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        "  labelloc=b; labeljust=l; fontsize=10;\n"
        f'  label=<<table border="0" cellspacing="4" cellpadding="4">{table}</table>>;'
    )


def _quoted(*lines: str) -> str:
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'


# --- Mermaid ---


def mermaid(pictures: Sequence[Picture]) -> str:
    """The pictures as one Mermaid flowchart."""
    colours = _colours(pictures)
    lines = ["flowchart LR"]
    links = 0
    for number, part in enumerate(pictures):
        names = {node.name: f"t{number}n{at}" for at, node in enumerate(part.nodes)}
        lines.append(f'  subgraph t{number}["{part.title}"]')
        for node in part.nodes:
            lines += _mermaid_node(node, names[node.name], colours)
        lines.append("  end")
        for edge in part.edges:
            arrow = f"-- {edge.jumps}x -->" if edge.jumps > 1 else "-->"
            lines.append(f"  {names[edge.source]} {arrow} {names[edge.target]}")
            lines.append(f"  linkStyle {links} stroke:{_colour(colours, edge.owner, LINES, '#222222')}")
            links += 1
    return "\n".join(lines) + "\n"


def _mermaid_node(node: Node, name: str, colours: Dict[str, int]) -> List[str]:
    text = "<br/>".join(_entities(line) for line in _label(node))
    width = "3px" if node.changes or node.refused or node.created else "1px"
    fill = _colour(colours, node.owner, PALETTE, "#ffffff")
    shape = f'["{text}"]' if node.builtin else f'("{text}")'
    return [
        f"    {name}{shape}",
        f"    style {name} fill:{fill},stroke:{_border(node)},stroke-width:{width},color:#000000",
    ]


def _entities(text: str) -> str:
    """A chain's name may hold what Mermaid would read as its own."""
    return re.sub(r"[^\w .,:()*/+-]", lambda found: f"#{ord(found.group())};", text)
