"""Which stored file counts, and its content."""

import os
from typing import Iterable, Tuple

from _iptlive_model import FAMILIES, HostError
from _iptlive_stored import StoredFile, parse


def read(family: str, candidates: Iterable[str]) -> StoredFile:
    """Read the one of the candidates that exists; none or several are an error, as in the original script."""
    path = choose(family, candidates)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as err:
        raise HostError(f"{path}: cannot be read: {err.strerror}") from err
    return parse(family, path, data)


def choose(family: str, candidates: Iterable[str]) -> str:
    names: Tuple[str, ...] = tuple(candidates)
    there = [path for path in names if os.path.exists(path)]
    if len(there) == 1:
        return there[0]
    listed = ", ".join(there or names)
    if not there:
        raise HostError(
            f"{FAMILIES[family]}: no stored file: expected exactly one of {listed}. Create it (iptlive.export writes "
            f"one from the live rules), name it in 'files', or take '{family}' out of 'families'"
        )
    raise HostError(
        f"{FAMILIES[family]}: {len(there)} stored files, expected exactly one: {listed}. Remove all but one, or name "
        "the right one in 'files'"
    )
