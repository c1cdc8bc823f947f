"""Stored files that come from the master: their content, and what they would change of the files there are.

What it takes of Salt is handed in: the execution functions, and the error they raise.
"""

import os
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, Type

import _iptlive_files as files
import _iptlive_report as report
from _iptlive_model import HostError
from _iptlive_options import NewFile, Options

Functions = Mapping[str, Callable]

_LINE = re.compile(r"[;,(] ?(?:[\w.-]+, )?line (\d+)\)?")


def fetched(options: Options, saltenv: str, salt: Functions, refusal: Type[Exception]) -> Options:
    """The options with the content of each family's source. Raises HostError."""
    named = [family for family in options.families if family in options.sources]
    return options._replace(new_files={fam: _candidate(options, fam, saltenv, salt, refusal) for fam in named})


def _candidate(options: Options, family: str, saltenv: str, salt: Functions, refusal: Type[Exception]) -> NewFile:
    """The way file.managed gets its source: the first of the list that there is, rendered where a template is named."""
    wanted = options.sources[family]
    try:
        source, _ = salt["file.source_list"](list(wanted), "", saltenv)
    except refusal as err:
        raise HostError("{} (saltenv {}): {}".format(", ".join(wanted), saltenv, err)) from err
    destination = files.destination(family, options.files[family])
    try:
        path, _, problem = salt["file.get_managed"](
            name=destination,
            template=options.template,
            source=source,
            source_hash="",
            source_hash_name=None,
            user=None,
            group=None,
            mode=None,
            attrs=None,
            saltenv=saltenv,
            context=dict(options.context),
            defaults=dict(options.defaults),
            skip_verify=False,
        )
    except Exception as err:  # a template is a program, and raises what it likes
        raise HostError(in_one_line(source, str(err) or type(err).__name__)) from err
    if problem:
        raise HostError(in_one_line(source, problem))
    # It makes a file of what was rendered only; all else it leaves to file.manage_file, which would write it.
    path = path or salt["cp.cache_file"](source, saltenv)
    if not path:
        raise HostError(f"{source} (saltenv {saltenv}): it cannot be read from the master")
    try:
        data = files.load(path)
    except OSError as err:
        raise HostError(f"{source}: cannot be read: {err.strerror}") from err
    if options.template:  # what was rendered is a temporary file, what was not is in Salt's cache
        os.unlink(path)
    return NewFile(source, data, destination)


def in_one_line(source: str, problem: str) -> str:
    """What kept a source from being rendered, with its line; Salt shows half the file, or a traceback."""
    lines = [line.strip() for line in problem.replace(f"{source}:", "").split("\n") if line.strip()]
    said = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    number = _LINE.search(said)
    return f"{source}{f', line {number.group(1)}' if number else ''}: {_LINE.sub('', said).strip()}"


def changed(options: Options) -> Dict[str, NewFile]:
    """The stored files whose content is to become another one, by path."""
    return {new.path: new for new in options.new_files.values() if files.content(new.path) != new.data}


def differences(new: Mapping[str, NewFile]) -> Dict[str, Dict[str, Any]]:
    """Of what is to be written, by path: to be told before it is."""
    return {path: report.file_change(one.source, path, files.content(path), one.data) for path, one in new.items()}


def copied(paths: Iterable[str], copy: Callable[[str], Any]) -> List[str]:
    """Copy what is to be replaced. What goes wrong is only told: it must not keep a file from its place any more."""
    warnings = []
    for path in filter(os.path.exists, paths):
        try:
            copy(path)
        except OSError as err:
            warnings.append(f"{path}: no copy of the old file could be kept: {err}")
    return warnings
