"""
Runs inside a throw-away host: one update, or rollback, that kills itself with SIGKILL at its n-th step.

A step is the beginning or the end of a function of the rooms that read, write and keep the journal: whatever is done
between two of them is one call of a program or of the operating system.  Without a number it lives, and prints its
steps, one name per line.

    python victim.py '{"do": "apply" | "rollback", "at": 17 | null, "every": true | false, "confirm": 0,
                       "timeout": 60}'
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_modules"))

import _iptlive_options as options
import _iptlive_programs as programs
import _iptlive_update as update
import _iptlive_watchdog as watchdog

ROOMS = tuple(
    f"_iptlive_{room}" for room in ("update", "transaction", "gate", "programs", "kernel", "journal", "watchdog")
)
# Where something becomes durable, or is handed to another program.
DECISIVE = ("save", "attempt", "say", "_release", "ended", "hang_up", "arm", "_write_down")


class Steps:
    def __init__(self, at, every):
        self.at, self.every, self.names = at, every, []

    def __call__(self, frame, event, _):
        room = Path(frame.f_code.co_filename).stem
        name = frame.f_code.co_name
        if event in ("call", "return") and room in ROOMS and (self.every or name in DECISIVE):
            self.names.append(f"{room[9:]}.{name} {event}")
            if len(self.names) == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def main(task):
    steps = Steps(task["at"], task["every"])
    settings = options.parse({"wait": 2, "policy": "enforce"})
    programs.TIMEOUT = task["timeout"]
    sys.setprofile(steps)
    if task["do"] == "rollback":
        update.rollback(None, 2)
    else:
        update.apply(settings, update.Guard(task["confirm"]), watchdog.arm)
    sys.setprofile(None)
    print("\n".join(steps.names))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
