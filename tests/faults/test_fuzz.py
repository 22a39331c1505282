"""A short run of the fuzz and soak tools: nothing harmed ends in another error than a sentence."""

from pathlib import Path

import pytest

from tests.faults.fuzz import KINDS, fuzz
from tests.faults.soak import flat, served

pytestmark = pytest.mark.filterwarnings("ignore")
NUMBERS = {"recipes": 300, "adapters": 100, "data": 300, "runs": 12}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_harmed_is_refused_or_used_with_finite_numbers(kind: str, tmp_path: Path) -> None:
    counts = fuzz(kind, range(NUMBERS[kind]), 7, tmp_path)
    assert counts["refused"]
    assert counts["refused"] + counts["fine"] == NUMBERS[kind]


def test_eight_threads_are_served_right() -> None:
    assert served("mtl_lora", 1.0)


def test_growth_is_seen() -> None:
    assert flat([50, 100, 100, 100, 101, 100, 100, 101])
    assert not flat([50, 100, 100, 110, 115, 120, 125, 130])
