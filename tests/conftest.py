"""
Fixtures: throw-away hosts for every test that runs iptables, Salt or Docker.  Nothing here touches the machine itself.
"""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

from lab.docker import Docker
from lab.host import BACKENDS, ENVIRONMENT, Host

# Quick by default; thorough in CI, and with --hypothesis-profile=thorough. A real kernel and a real Salt answer when
# they answer, examples are made as fast as a busy machine makes them; ``host`` is a function's only to be reset.
for name, examples in (("quick", 20), ("thorough", 100)):
    hypothesis.settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("thorough" if os.environ.get("CI") == "true" else "quick")

NO_DOCKER = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=8, help="rounds of each race (a campaign has hundreds)")
    parser.addoption("--corpus", type=Path, help="a folder of stored files to plan both ways, NAME.v4 and NAME.v6")
    parser.addoption("--every-step", action="store_true", help="kill at every step of an update, not only the decisive")


@pytest.fixture(scope="session")
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture(scope="session")
def corpus(request):
    """The tests' own stored files, and those of ``--corpus``."""
    folders = [Path(__file__).parent / "functional", request.config.getoption("--corpus")]
    return [path for folder in folders if folder for path in sorted(folder.glob("*.v[46]"))]


def pytest_collection_modifyitems(config, items):
    """Without Docker its tests are left out, and it is said; in CI they run, and fail where it is missing."""
    if shutil.which("dockerd", path=ENVIRONMENT["PATH"]) or os.environ.get("CI") == "true":
        return
    left_out = [item for item in items if item.get_closest_marker("docker")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    config.stash[NO_DOCKER] = len(left_out)


def pytest_terminal_summary(terminalreporter, config):
    number = config.stash.get(NO_DOCKER, 0)
    if number:
        terminalreporter.write_line(
            f"{number} tests left out: Docker is not installed here (./dev test --docker installs it)", yellow=True
        )


@pytest.fixture(scope="session")
def hosts():
    """Make further throw-away hosts: ``hosts("nft")``; they end with the session."""
    made = []

    def make(backend="nft"):
        made.append(Host(backend))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture(scope="session", params=BACKENDS)
def kept_host(request, hosts):
    """One host per backend for the whole session; ``host`` is the one to ask for."""
    return hosts(request.param)


@pytest.fixture
def host(kept_host):
    """A throw-away host as if new, once with each backend; a hypothesis test resets it itself for each example."""
    kept_host.reset()
    return kept_host


@pytest.fixture(params=BACKENDS)
def new_host(request):
    """A throw-away host on which nothing was ever done, not even a table made; once with each backend."""
    with Host(request.param) as host:
        yield host


@pytest.fixture(scope="module", params=BACKENDS)
def docker_host(request):
    """A host with a running Docker daemon and a container published as port 8080, once with each backend."""
    with Host(request.param) as host, Docker(host) as docker:
        docker.start()
        docker.publish(8080)
        yield docker
