"""Edits as iptables-restore lines: the text of a transaction."""

from typing import Dict, List

from _iptlive_model import ChainPlan, Table, is_builtin


def commands(table: str, before: Table, plans: Dict[str, ChainPlan], declares: str = "-") -> List[str]:
    """The plans as iptables-restore lines: new chains first, so that rules may jump to them; policies last.

    ``declares``: "-" where the programs take a built-in chain without its policy, "policy" where they do not.
    """
    # A built-in chain that the kernel lacks comes to be so; a program may list it all the same, as an empty one. One
    # that is there is left as it is, but on nft the kernel takes its time over that: what holds rules is there.
    empty = [chain for chain in plans if chain not in before or not before[chain].rules]
    policies = {chain: before[chain].policy if chain in before else "ACCEPT" for chain in empty}
    head = {chain: "-" if declares == "-" else policies[chain] for chain in empty}
    first = [f":{chain} {head[chain]} [0:0]" for chain in empty if is_builtin(table, chain)]
    middle, last = [], []
    for chain, plan in plans.items():
        for edit in plan.edits:
            if edit.action == "create_chain":
                first.append(f"-N {chain}")
            elif edit.action == "delete":
                middle.append(f"-D {chain} {edit.position}")
            elif edit.action == "insert":
                middle.append(f"-I {chain} {edit.position} {edit.rule}".rstrip(" "))
            elif edit.action == "policy":
                last.append(f"-P {chain} {edit.rule}")
    return first + middle + last


def removals(plans: Dict[str, ChainPlan]) -> List[str]:
    """The chains that cease to be, as iptables-restore lines; they are empty by then."""
    return [f"-X {chain}" for chain, plan in plans.items() if plan.removes_chain()]
