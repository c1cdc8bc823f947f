"""Whether a host comes up with its stored rules: what loads them, when, with which sets, and a rehearsal."""

from typing import Any, Dict, List, NamedTuple, Optional

import _iptlive_freshboot as freshboot
import _iptlive_loaders as loaders
from _iptlive_family import label
from _iptlive_loaders import Loader
from _iptlive_options import Options
from _iptlive_printable import printable
from _iptlive_rules import sets
from _iptlive_survey import FamilyView, survey

_PACKAGES = (
    "install and enable what the distribution has for it: iptables-persistent (Debian, Ubuntu) or iptables-services "
    "(Red Hat). The state iptlive.boot does it without loading anything now"
)


class Story(NamedTuple):
    """Of one family: what is told of it, and what is wrong."""

    told: Dict[str, Any]
    problems: List[str]


def boot(options: Options) -> Dict[str, Any]:
    """What the next boot makes of each stored file. Raises HostError."""
    found = survey(options._replace(boot="ignore", new_files={}))
    stories = {label(view.tools.family): _story(view) for view in found.families}
    problems = [printable(problem) for story in stories.values() for problem in story.problems]
    return {
        "status": "problems" if problems else "loads",
        "families": {name: story.told for name, story in stories.items()},
        "problems": problems,
    }


def _story(view: FamilyView) -> Story:
    name = label(view.tools.family)
    there = loaders.loaders(view.path)
    saved = freshboot.saved_sets()
    named = sorted({one for spec in view.stored.texts() for one in sets(spec)})
    refused = freshboot.problems(view.tools, view.stored, view.states)
    rehearsed = None if refused is None else "refused" if refused else "in_sync"
    chosen = there[0] if there else None
    problems = [f"{name}: {problem}" for problem in _of_loaders(view.path, there) + _of_place(chosen)]
    at_boot = {one: one in saved and _is_restored(saved[one].path, chosen) for one in named}
    problems += [
        f"{name}: {saved[one].path} holds the ipset '{one}', but nothing restores it before the rules: install "
        "ipset-persistent (Debian, Ubuntu) or ipset-service (Red Hat)"
        for one in named
        if one in saved and not at_boot[one]
    ]
    problems += [f"{name} would not come up: {one.message}. {one.fix}" for one in refused or ()]
    told = {
        "file": view.path,
        "loaders": [loader._asdict() for loader in there],
        "sets": at_boot,
        "rehearsal": rehearsed,
    }
    return Story(told, problems)


def _is_restored(path: str, loader: Optional[Loader]) -> bool:
    return loader is not None and loaders.restores_sets(path, loader.name)


def _of_loaders(path: str, there: List[Loader]) -> List[str]:
    if not there:
        return [f"nothing loads {path} at boot; {_PACKAGES}"]
    enabled = [loader.name for loader in there if loader.enabled]
    if not enabled:
        return [f"{there[0].name} loads {path}, but is not enabled: 'systemctl enable {there[0].name}'"]
    if len(enabled) > 1:
        return [f"{' and '.join(enabled)} all load {path}, and the last one flushes what the others loaded: keep one"]
    return []


def _of_place(loader: Optional[Loader]) -> List[str]:
    if loader is None:
        return []
    problems = []
    if not loader.before_network:
        problems.append(
            f"{loader.name} is not ordered before the network comes up: add 'Before=network-pre.target' and "
            "'Wants=network-pre.target' to its [Unit]"
        )
    if loader.before_docker is False:
        problems.append(
            f"{loader.name} is not ordered before Docker, whose rules it would flush: add 'Before=docker.service' to "
            "its [Unit]"
        )
    return problems
