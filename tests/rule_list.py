"""The rules of all sorts in ``functional/rules.txt``."""

from pathlib import Path


def rules():
    """Each as [family, table, chain, rule]."""
    lines = (Path(__file__).parent / "functional" / "rules.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 3) for line in lines if line and not line.startswith("#")]
