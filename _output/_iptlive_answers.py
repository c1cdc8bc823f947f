"""What iptlive answers, as shapes: an answer that came from a host is held against its shape before it is used.

A shape is a type; a set of words; a list of one shape; ``Each`` of a mapping's values; a mapping of keys to shapes, in
which a key that ends in ``?`` may be missing (keys that are not named may be there); or a function that tells whether
the value fits.

The same file serves the runners: Salt takes each kind from a folder of its own, so theirs is a link to this one.
"""

from typing import Any, NamedTuple


class Each(NamedTuple):
    """A mapping of any names to values of one shape."""

    shape: Any


def fits(value: Any, shape: Any) -> bool:
    """Whether a value has this shape; no deeper than the shape is looked."""
    if isinstance(shape, type):
        return isinstance(value, shape)
    if isinstance(shape, set):
        return isinstance(value, str) and value in shape
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, Each):
        return isinstance(value, dict) and all(isinstance(key, str) for key in value) and _all_fit(value, shape.shape)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_key_fits(value, key, inner) for key, inner in shape.items())
    return shape(value)


def _all_fit(value: Any, shape: Any) -> bool:
    return all(fits(item, shape) for item in value.values())


def _key_fits(value: Any, key: str, shape: Any) -> bool:
    bare = key.rstrip("?")
    return fits(value[bare], shape) if bare in value else bare != key


def count(value: Any) -> bool:
    """A number of rules, lines, seconds."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def maybe(shape: Any) -> Any:
    """A value that may be None."""
    return lambda value: value is None or fits(value, shape)


RULE = {"position": count, "rule": str, "owner": str}


def _step(value: Any) -> bool:
    """One change: of a rule, or of a whole chain."""
    if not fits(value, {"action": str, "line?": maybe(count), "rule?": maybe(str), "was?": maybe(str)}):
        return False
    return value["action"] not in ("insert", "delete") or fits(value, {"position": count, "rule": str})


REFUSAL = {
    "reason": str,
    "message": str,
    "hint": str,
    "rules": [str],
    "lines": [count],
    "anchors?": {"above?": maybe(str), "below?": maybe(str)},
    "foreign?": [str],
    "owners?": [str],
    "foreign_count?": count,
}


def _neighbour(value: Any) -> bool:
    """A rule of a chain with its place, or how many of whom are left out."""
    if isinstance(value, dict) and "foreign" in value:
        return fits(value["foreign"], Each(count))
    if isinstance(value, dict) and "owner" in value:
        return fits(value, RULE)
    return fits(value, {"position": count, "rule": str, "line?": maybe(count), "action?": str})


PLAN = {
    "status": {"in_sync", "changes", "refused"},
    "families?": Each({"file": str, "backend": str, "version": str}),
    "changes": Each([_step]),
    "refusals": Each([REFUSAL]),
    "warnings?": [str],
    "foreign?": Each(Each(count)),
    "neighbours?": Each([[_neighbour]]),
    "applied?": bool,
    "id?": str,
    "confirm?": {"state": str, "reason?": str, "seconds_left?": count},
}

FOREIGN = Each([RULE])


def _state(value: Any) -> bool:
    if not fits(value, {"result": maybe(bool), "changes": dict, "comment": maybe(object), "__run_num__?": count}):
        return False
    return isinstance(value.get("name", ""), str)


STATES = Each(_state)

REPORT = {
    "summary": Each(count),
    "hosts": Each(
        {
            "status": str,
            "changes?": count,
            "refusals?": [{"message": str, "hint": str}],
            "error?": str,
        }
    ),
}

# What a backup's answers may hold; a rules file of 50,000 lines takes eight parts at most.
BACKUP_PART = {"parts": count, "part": count, "archive": str}
BACKUP = {**BACKUP_PART, "path": str, "warnings?": [str]}
