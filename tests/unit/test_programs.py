"""Running a program: what it said comes back whole, whatever this host lacks, and nothing is waited for for ever."""

import os
import resource
import select
import tempfile
import threading

import _iptlive_programs as programs
import pytest
from _iptlive_model import HostError


@pytest.fixture(params=["memory files", "an old Python", "an old kernel"], autouse=True)
def way(request, monkeypatch):
    """Where there are no memory files nothing may depend on room on a disk."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    if request.param == "an old Python":
        monkeypatch.delattr(os, "memfd_create")
    elif request.param == "an old kernel":
        monkeypatch.setattr(os, "memfd_create", refuse)


def refuse(name):
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("own_lock", [False, True])
def test_all_that_is_said_comes_back(own_lock):
    text = "a line of some length, and \udcff\n" * 50000
    done = programs.run(["sh", "-c", "tee /dev/stderr; exit 3"], text, own_lock)
    assert done == (3, text, text)


def test_a_lock_of_its_own_can_be_opened_and_locked():
    done = programs.run(["sh", "-c", 'exec 9<"$XTABLES_LOCKFILE"; flock -n 9 && cat'], "input", own_lock=True)
    assert done == (0, "input", "")


def test_a_program_that_does_not_end_is_ended(monkeypatch):
    """Also one that goes on talking meanwhile."""
    monkeypatch.setattr(programs, "TIMEOUT", 0.5)
    before = children()
    for script in ("exec sleep 60", "while :; do echo x >&2; sleep 0.1; done", "exec >&- 2>&-; exec sleep 60"):
        with pytest.raises(HostError, match="did not end within 0.5 seconds"):
            programs.run(["sh", "-c", script])
    assert children() <= before


def test_what_cannot_be_run_is_named():
    with pytest.raises(HostError, match="the program 'no-such-program' is not installed"):
        programs.run(["no-such-program"])
    with pytest.raises(HostError, match="the program '/' cannot be run: Permission denied"):
        programs.run(["/"])


def test_one_may_wait_for_years():
    reader, writer = os.pipe()
    os.write(writer, b"x")
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb"):
        assert programs._is_ready(reader, select.POLLIN, 10**9)


def test_many_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert programs.run(["cat"], "input") == (0, "input", "")
    finally:
        for file in held:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_interrupt_of_the_terminal_reaches_the_program():
    """Otherwise those who type Ctrl-C would wait for it: the thread that runs it is waited for."""
    groups = []
    runner = threading.Thread(target=lambda: groups.append(programs.run(["sh", "-c", "ps -o pgid= $$"]).out))
    runner.start()
    runner.join()
    assert int(groups[0]) == os.getpgrp()


def children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as file:
        return set(file.read().split())
