"""The placement rules in other words, by brute force over every longest matching: for chains of a few rules."""

from functools import lru_cache


def carried_out(rules, edits):
    """What the plain commands would make of a chain; a position that they would refuse is an IndexError."""
    rules = list(rules)
    for edit in edits:
        if edit.action == "delete":
            assert rules[edit.position - 1] == edit.rule
            del rules[edit.position - 1]
        elif edit.action == "insert":
            if not 1 <= edit.position <= len(rules) + 1:
                raise IndexError(edit)
            rules.insert(edit.position - 1, edit.rule)
    return tuple(rules)


def longest(stored, kernel):
    """The length of the longest common subsequence."""
    row = [0] * (len(kernel) + 1)
    for rule in stored:
        above = row
        row = [0]
        for at, other in enumerate(kernel):
            row.append(above[at] + 1 if rule == other else max(above[at + 1], row[at]))
    return row[-1]


def longest_matchings(stored, kernel):
    """Every longest matching, as a tuple of pairs (stored index, kernel index)."""

    @lru_cache(maxsize=None)
    def tails(i, k):
        found = {()}
        for a in range(i, len(stored)):
            for b in range(k, len(kernel)):
                if stored[a] == kernel[b]:
                    found |= {((a, b),) + tail for tail in tails(a + 1, b + 1)}
        most = max(map(len, found))
        return {matching for matching in found if len(matching) == most}

    return tails(0, 0)


def steps(matching, stored, kernel):
    """From match to match, the chain's two ends being matches: the distance in the stored file and in the kernel."""
    points = [(-1, -1), *matching, (len(stored), len(kernel))]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(points, points[1:])]


def unsafe_groups(matching, stored, kernel):
    """Missing rules between two matches (or ends) that something foreign separates."""
    return sum(in_file > 1 and in_kernel > 1 for in_file, in_kernel in steps(matching, stored, kernel))


def neighbours(matching, stored, kernel):
    return sum(in_kernel == 1 for _, in_kernel in steps(matching, stored, kernel))


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(rule in rest for rule in part)
