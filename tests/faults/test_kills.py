"""A killed run is resumed bit for bit, or starts anew; `kill.py` has more points."""

import os
from pathlib import Path

import pytest

from tests.faults.kill import METHODS, Kills, main

pytestmark = pytest.mark.filterwarnings("ignore:This process")


def test_a_run_that_is_killed_while_it_writes_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    kills = Kills(tmp_path, "mtl_lora")
    assert all(kills.at_write(number) for number in (4, kills.writes // 2, kills.writes - 1))


@pytest.mark.slow
def test_no_kill_loses_a_run() -> None:
    assert len(METHODS) == 5
    assert os.name == "posix"
    assert main() == 0
