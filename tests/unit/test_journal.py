"""The journal: what is written is read again, one run at a time, and nothing piles up."""

import json
import os
import subprocess
import sys

import _iptlive_journal as journal
import pytest
from _iptlive_model import Chain, ChainPlan, Edit, HostError
from hypothesis import given
from hypothesis import strategies as st

RULES = st.lists(st.text(max_size=8) | st.just("\udcff comment"), max_size=3).map(tuple)
CHAINS = st.builds(Chain, st.none() | st.just("DROP"), RULES)
EDITS = st.lists(st.builds(Edit, st.just("insert"), st.integers(1, 9), st.text(max_size=8), st.none() | st.just(3)))
PLANS = st.builds(lambda edits, result: ChainPlan(tuple(edits), result=result), EDITS, CHAINS)
STEPS = st.builds(
    journal.Step,
    st.just("ipv6"),
    st.just("nft"),
    st.just("nat"),
    st.dictionaries(st.text(max_size=4), CHAINS, max_size=2),
    st.dictionaries(st.text(max_size=4), PLANS, max_size=2),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FOLDER", str(tmp_path))
    with journal.lock(0):
        pass
    return tmp_path


@given(st.lists(STEPS, max_size=2).map(tuple), st.text(max_size=9))
def test_what_is_written_is_read_again(steps, reason):
    entry = journal.new_entry(60, ("x:4506",), {"x:4506": (("2001:db8::1", 4506),)})._replace(
        steps=steps, reason=reason, deadline=1.5
    )
    journal.save(entry)
    assert journal.load(entry.id) == entry
    assert journal.load(entry.id, steps=False) == entry._replace(steps=())
    path = os.path.join(journal.FOLDER, "journal", entry.id + ".json")
    with open(path, encoding="ascii") as file:
        text = file.read()
    with open(path, "w", encoding="ascii") as file:
        json.dump(json.loads(text), file)  # however it is laid out
    assert journal.load(entry.id) == entry
    assert journal.load(entry.id, steps=False) == entry._replace(steps=())


def numbered(number, **changes):
    entry = journal.new_entry(0, (), {})._replace(id=f"20260714-061500-000-{number:03d}", **changes)
    journal.save(entry)
    os.makedirs(journal.watchdog_folder(entry.id))
    return entry.id


def test_old_entries_and_remains_go(folder):
    waiting = numbered(0, state="pending")
    earlier_boot = numbered(1, state="pending", boot="another")
    kept = [numbered(number, state="done") for number in range(2, 2 + journal.KEEP)]
    (folder / "journal" / "killed.json.new").write_text("{")
    journal.prune()
    assert [entry.id for entry in journal.entries()] == [waiting] + kept
    assert earlier_boot not in os.listdir(folder / "watchdog")
    assert os.listdir(folder / "watchdog") == [waiting]
    assert "killed.json.new" not in os.listdir(folder / "journal")


def test_an_unreadable_entry_is_told_of(folder):
    good = numbered(1, state="done")
    (folder / "journal" / "bad.json").write_text("{")
    assert [entry.id for entry in journal.entries()] == [good]
    (told,) = journal.damaged()
    assert str(folder / "journal" / "bad.json") in told and "then remove the file" in told
    (folder / "journal" / "bad.json").unlink()
    cut = folder / "journal" / (numbered(2) + ".json")
    assert len(journal.unfinished()) == 1 and not journal.damaged()
    for text in (cut.read_text()[:-9], cut.read_text().splitlines()[0]):
        cut.write_text(text)
        assert journal.unfinished() == []
        assert "20260714-061500-000-002" in journal.damaged()[0]


def test_the_order_is_that_of_the_updates_not_of_the_clock(folder, monkeypatch):
    """Set back an hour, and a later update is the later one, and is not forgotten before all others."""
    made = []
    for clock in (7200 + number if number % 2 else number for number in range(journal.KEEP + 3)):
        monkeypatch.setattr(journal.time, "time", lambda clock=clock: clock)
        journal.save(journal.new_entry(0, (), {})._replace(state="done"))
        made.append(journal.entries()[-1].id)
        journal.prune()
    assert len(set(made)) == len(made)
    assert [entry.id for entry in journal.entries()] == made[-journal.KEEP :]


def test_only_root_may_look(folder):
    identifier = numbered(1, state="done")
    assert os.stat(folder).st_mode & 0o077 == 0
    assert os.stat(folder / "journal" / f"{identifier}.json").st_mode & 0o077 == 0


def test_an_identifier_is_no_path(folder):
    (folder / "other.json").write_text("{}")
    assert journal.load("../other") is None


def test_one_run_at_a_time(folder):
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}; import _iptlive_journal as journal; "
        f"journal.FOLDER = {str(folder)!r}\nwith journal.lock(0):\n    print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(HostError, match=rf"another iptlive run \(process {other.pid}\)"), journal.lock(0):
            pass
        other.kill()
    with journal.lock(0):  # a killed run holds nothing
        pass
