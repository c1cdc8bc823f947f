"""Two sequences to a matching: which stored rule is which kernel rule.

The matching is a longest common subsequence. Rules may repeat on both sides, so there can be several longest ones;
chosen is the one that leaves the fewest groups of unmatched stored rules without a safe place, then the one with the
most neighbours adjacent in the kernel, then the topmost.

Each pair of equal rules is a node; a path's worth is a plain sum over its steps, so the best path ending in a node
follows from the best among all nodes above and to the left of it (a Fenwick tree) and from two special predecessors:
the kernel rule directly above, and the stored rule directly above. That is exact and costs O(pairs * log(kernel)).
A pair whose text is unique on both sides and that leads or ends both sequences belongs to every longest matching, so
such pairs are taken off first. And where such pairs stand directly below each other, a longest matching holds all or
none of them (one that holds only some could take in the next), so that a run of them is one node: a chain with few
differences costs little more than reading it.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

# Beyond that many pairs of equal rules (some 450 copies of one rule on both sides) copies are paired within a band
# around their rank only. The matching may then be shorter than the longest, which refuses more and misplaces nothing.
MOST_PAIRS = 200000


class _Node(NamedTuple):
    """The best path that ends in this pair, the last one of a run of so many."""

    worth: int
    stored: int
    kernel: int
    above: Optional["_Node"]
    length: int = 1


class _Row(NamedTuple):
    """A stored rule, or the first one of a run, and the kernel rules with the same text."""

    stored: int
    kernels: List[int]
    length: int = 1


def align(stored: Sequence[str], kernel: Sequence[str]) -> List[Optional[int]]:
    """For each stored rule the index of its kernel rule, or None."""
    if list(stored) == list(kernel):
        return list(range(len(stored)))
    head, tail = _forced_ends(stored, kernel)
    inner_kernel = kernel[head : len(kernel) - tail]
    inner = _best_path(stored[head : len(stored) - tail], inner_kernel)
    shift = len(kernel) - len(stored)
    return (
        list(range(head))
        + [None if index is None else index + head for index in inner]
        + [index + shift for index in range(len(stored) - tail, len(stored))]
    )


def _forced_ends(stored: Sequence[str], kernel: Sequence[str]) -> Tuple[int, int]:
    in_stored, in_kernel = Counter(stored), Counter(kernel)
    most = min(len(stored), len(kernel))
    head = 0
    while head < most and stored[head] == kernel[head] and in_stored[stored[head]] == in_kernel[stored[head]] == 1:
        head += 1
    tail = 0
    while tail < most - head and stored[-1 - tail] == kernel[-1 - tail]:
        if not in_stored[stored[-1 - tail]] == in_kernel[stored[-1 - tail]] == 1:
            break
        tail += 1
    return head, tail


def _best_path(stored: Sequence[str], kernel: Sequence[str]) -> List[Optional[int]]:
    search = _Search(len(stored), len(kernel))
    for row in _rows(stored, kernel):
        search.add_row(row)
    matched: List[Optional[int]] = [None] * len(stored)
    node = search.end()
    while node.above is not None:
        node = node.above
        if node.above is not None:
            first = node.stored - node.length + 1
            matched[first : node.stored + 1] = range(node.kernel - node.length + 1, node.kernel + 1)
    return matched


def _rows(stored: Sequence[str], kernel: Sequence[str]) -> Iterator[_Row]:
    """The pairs of equal rules, from the top down; those whose texts are unique in runs, in one piece each."""
    places: Dict[str, List[int]] = defaultdict(list)
    for index, text in enumerate(kernel):
        places[text].append(index)
    copies = Counter(stored)
    total = sum(count * len(places.get(text, ())) for text, count in copies.items())
    band = None if total <= MOST_PAIRS else max(1, MOST_PAIRS // (4 * (len(stored) + len(kernel))))
    found = [places.get(text) or [] for text in stored]
    pairs = [there[0] if len(there) == 1 == copies[text] else None for text, there in zip(stored, found)]
    rank: Counter = Counter()
    index = 0
    while index < len(stored):
        length, text = 1, stored[index]
        if pairs[index] is not None:
            length = _run(pairs, index)
            yield _Row(index, found[index], length)
        elif found[index]:
            near = _near(found[index], rank[text], copies[text], band)
            rank[text] += 1
            if near:
                yield _Row(index, near)
        index += length


def _run(pairs: Sequence[Optional[int]], start: int) -> int:
    """For how many rules from there on each stands right below the one before on both sides."""
    shift = pairs[start] - start
    end = start + 1
    while end < len(pairs) and pairs[end] == end + shift:
        end += 1
    return end - start


def _near(places: List[int], rank: int, copies: int, band: Optional[int]) -> List[int]:
    if band is None:
        return places
    from_end = len(places) - copies + rank
    near = {place for centre in (rank, from_end) for place in range(centre - band, centre + band + 1)}
    return [places[place] for place in sorted(near) if 0 <= place < len(places)]


class _Search:
    """Best paths so far; a virtual pair stands in front of both sequences and another one behind them."""

    def __init__(self, stored: int, kernel: int):
        self._stored = stored
        self._kernel = kernel
        # One match outweighs any number of refused groups, one refused group any number of adjacent pairs.
        self._group = stored + 2
        self._match = self._group * self._group
        start = _Node(0, -1, -1, None)
        self._start = start
        self._tree: List[_Node] = [start] * (kernel + 2)
        self._column: Dict[int, _Node] = {-1: start}
        self._row: List[_Node] = [start]

    def add_row(self, row: _Row) -> None:
        nodes = [self._node(row.stored, kernel) for kernel in row.kernels]
        if row.length > 1:
            nodes = [self._prolonged(node, row.length) for node in nodes]
        for node in nodes:
            self._enter(node)
        self._row = nodes

    def _prolonged(self, node: _Node, length: int) -> _Node:
        more = length - 1
        worth = node.worth + more * (self._match + 1)
        return _Node(worth, node.stored + more, node.kernel + more, node.above, length)

    def end(self) -> _Node:
        return self._node(self._stored, self._kernel)

    def _node(self, stored: int, kernel: int) -> _Node:
        candidates = [self._best_left_of(kernel)]
        directly_above = self._column.get(kernel - 1)
        if directly_above:
            candidates.append(directly_above)
        candidates.extend(self._best_in_last_row(stored, kernel))
        worths = [self._step(node, stored, kernel) for node in candidates]
        best = max(worths)
        return _Node(best, stored, kernel, candidates[worths.index(best)])

    def _step(self, node: _Node, stored: int, kernel: int) -> int:
        adjacent = kernel - node.kernel == 1
        if adjacent:
            return node.worth + self._match + 1
        return node.worth + self._match - (self._group if stored - node.stored > 1 else 0)

    def _best_left_of(self, kernel: int) -> _Node:
        """The best node in a row above and a column to the left; the tree counts columns from 1."""
        best = self._start
        place = kernel
        while place > 0:
            if self._tree[place].worth > best.worth:
                best = self._tree[place]
            place -= place & -place
        return best

    def _best_in_last_row(self, stored: int, kernel: int) -> List[_Node]:
        """Matching the stored neighbour leaves no group in between, so any distance is safe."""
        row = self._row
        if row[0].stored != stored - 1:
            return []
        left = bisect_left([node.kernel for node in row], kernel) if len(row) > 1 else int(row[0].kernel < kernel)
        return [max(row[:left], key=lambda node: node.worth)] if left else []

    def _enter(self, node: _Node) -> None:
        known = self._column.get(node.kernel)
        if known is None or node.worth > known.worth:
            self._column[node.kernel] = node
        place = node.kernel + 1
        while place < len(self._tree):
            if node.worth > self._tree[place].worth:
                self._tree[place] = node
            place += place & -place
