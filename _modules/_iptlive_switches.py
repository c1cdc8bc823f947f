"""The iptables programs' own options, which no rule may hold.

A rule line goes through the same getopt_long() as the words of a command line. ``-M/x`` and ``--modprobe=/x`` make
iptables run a program, ``-h`` and ``-V`` end it in the middle of a file with exit status 0, ``-v`` makes it print among
what is read back. All of them may be quoted, joined to others (``-vM/x``) and shortened (``--modp /x``).
"""

import re
from typing import Optional

from _iptlive_rules import words

# From the tables of iptables 1.8: what is not part of a rule, and takes part in no match's or target's options.
_LONG = ("modprobe", "wait", "wait-interval", "numeric", "verbose", "line-numbers", "table", "help", "version", "exact")
_SHORT = "nvxVhMtwW"
_FLAGS = "46bfnvxV"  # short options that take no value, so that others may be joined to them

# Options whose value is a free text: it may look like anything.
_TEXTS = ("--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string")
_QUOTED_TEXT = re.compile(r' (?:{}) "(?!-)(?:[^"\\]|\\.)*"'.format("|".join(_TEXTS)), re.DOTALL)


def _beginning(name: str) -> str:
    """A pattern of the beginnings of a name."""
    return name[0] + (f"(?:{_beginning(name[1:])})?" if name[1:] else "")


_OWN = re.compile(
    rf"-(?:[{_FLAGS}]*[{_SHORT}]|-(?:{'|'.join(map(_beginning, _LONG))})(?=[=\s]|\Z))"  # at the start of a word
)
_ANYWHERE = re.compile(" " + _OWN.pattern)  # what begins with a plain text is found much faster


def may_hold(text: str) -> bool:
    """Whether it is worth while to look at each of the rules in this text."""
    if '"' in text:
        text = _QUOTED_TEXT.sub("", text)
    return '"' in text or _ANYWHERE.search(" " + text.replace("\t", " ").replace("\n", "\n ")) is not None


def held(spec: str) -> Optional[str]:
    """The first word of a rule that is, or may be, an option of the programs themselves."""
    is_value, is_option = False, True
    for word in words(spec):
        if is_value:
            is_value, is_option = False, True
            continue
        if _OWN.match(word.value):
            return word.value
        # A text is passed over only where the word before it is an option for sure: behind another option it may be
        # that one's value. Of the options that take two values each looks whether the second begins with a dash.
        is_value = is_option and word.value in _TEXTS
        is_option = not word.value.startswith("-")
    return None
