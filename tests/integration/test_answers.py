"""Every host that a job goes to is told of, whatever Salt's client makes of its silence."""

import _iptlive_fleet as fleet
import pytest


class Client:
    def __init__(self, *answers):
        self.answers = answers

    def cmd_iter(self, *args, **options):
        yield {"jid": "20260714061500123456", "minions": ["m1", "m2", "m3"]}
        yield from self.answers


def asked(*answers):
    found = list(fleet._ask_minions(Client(*answers), fleet.Targets("*"), "iptlive.plan", {}))
    assert sorted(answer.host for answer in found) == ["m1", "m2", "m3"]
    return {answer.host: answer for answer in found}


def test_who_is_left_out_gave_no_answer():
    found = asked({"m1": {"ret": {}}}, None, {"m2": {"failed": True}}, {})
    assert found["m1"] == fleet.Answer("m1", {})
    assert [found[name] for name in ("m2", "m3")] == [fleet.silence("m2"), fleet.silence("m3")]


@pytest.mark.parametrize("said", ["'iptlive.plan' is not available.", "'iptlive' is not available."])
def test_who_has_no_modules_is_told_to_sync(said):
    found = asked({"m2": {"ret": said}}, {"m3": {"ret": "'apt.plan' is not available."}})
    assert "salt m2 saltutil.sync_all" in found["m2"].error
    assert "sync" not in found["m3"].error
