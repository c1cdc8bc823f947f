"""
Runs inside a throw-away host: one update, or rollback, that sends itself a signal (SIGKILL) at its n-th step.

A step is the beginning or the end of a function of the rooms that read, write and keep the journal: whatever is done
between two of them is one call of a program or of the operating system.  Without a number it lives, and prints its
steps, one name per line.

    python victim.py '{"do": "rollback", "at": 17, "every": true, "signal": "STOP", "confirm": 60, "timeout": 60,
                       "patience": 30, "families": ["ipv4"]}'

All of it may be left out. With ``name`` only the steps of that name count. ``patience`` is how long it may take longer
than the update waits for its confirmation.
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
    f"_iptlive_{room}"
    for room in ("update", "rollback", "transaction", "gate", "programs", "kernel", "journal", "watchdog")
)
# Where something becomes durable, or is handed to another program.
DECISIVE = ("save", "attempt", "say", "_release", "ended", "hang_up", "arm", "_write_down")


class Steps:
    def __init__(self, task):
        self.at, self.every, self.name = task.get("at"), task.get("every"), task.get("name")
        self.number = getattr(signal, "SIG" + task.get("signal", "KILL"))
        self.names = []

    def __call__(self, frame, event, _):
        room = Path(frame.f_code.co_filename).stem
        name = frame.f_code.co_name
        if event in ("call", "return") and room in ROOMS and (self.every or self.name or name in DECISIVE):
            step = f"{room[9:]}.{name} {event}"
            if self.name in (None, step):
                self.names.append(step)
            if len(self.names) == self.at:
                os.kill(os.getpid(), self.number)


def main(task):
    steps = Steps(task)
    settings = options.parse({"wait": 2, "policy": "enforce", "families": task.get("families", ["ipv4", "ipv6"])})
    programs.TIMEOUT = task.get("timeout", 60)
    update.ROLL_BACK_SECONDS = task.get("patience", 30)
    sys.setprofile(steps)
    if task.get("do") == "rollback":
        update.rollback(None, 2)
    else:
        update.apply(settings, update.Guard(task.get("confirm", 0)), watchdog.arm)
    sys.setprofile(None)
    print("\n".join(steps.names))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
