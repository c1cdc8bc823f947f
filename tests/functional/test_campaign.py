"""A short run of ``lab.campaign``, whose long one is ``python3 -m lab.campaign --updates 200``."""

import pytest

from lab import campaign
from lab.host import BACKENDS


@pytest.mark.docker
@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_beside_docker_and_fail2ban_at_work(backend):
    rounds = campaign.run(backend, updates=4, seed=7)
    assert [one.wrong for one in rounds] == [[]] * 4
    assert sum(one.edits for one in rounds) > 10
