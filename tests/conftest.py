"""What all tests share. Fixtures of a subject live in `fix_*.py` files beside this one; each is loaded from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
pytest_plugins = sorted(f"tests.{path.stem}" for path in HERE.glob("fix_*.py"))

# The same examples in every run and on every machine, however busy it is; `--hypothesis-profile=explore` looks for others.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None)
settings.load_profile("same")

TEST_DATA_DEFAULT = HERE.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def trajectories() -> Path:
    """The folder of real agent trajectories: tau-bench, swe-agent, who-and-when. Missing is a failure: no test runs on pretended input."""
    folder = Path(os.environ.get("PERDURE_TEST_DATA", TEST_DATA_DEFAULT)) / "trajectories"
    if not (folder / "tau-bench").is_dir():
        pytest.fail(f"there are no trajectories in {folder}: set PERDURE_TEST_DATA to the folder that holds trajectories/", pytrace=False)
    return folder


def pytest_configure() -> None:
    """Tests interrupt what they start. Where the run itself was told to ignore interrupts (`nohup`, `&`), its children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
