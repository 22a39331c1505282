import json
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option


@dataclass(frozen=True, kw_only=True)
class Example(RankConfig):
    """One field of each kind."""

    experts: int = option((2, 4, 6, 8), low=2, per_layer=True)
    rate: float = option(0.5, above=0, high=1)
    mode: str = option("soft", choices=("soft", "hard"))
    flag: bool = option(False, per_module=True)
    parts: tuple[int, ...] = option((), items=int, low=1, per_module=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "r = 0.*integer, at least 1"),
        ({"r": 2.0}, r"r = 2\.0.*integer"),
        ({"r": True}, "r = True.*integer"),
        ({"r": []}, "r = .*integer"),
        ({"experts": [2, 1]}, "experts.*at least 2"),
        ({"rate": 0}, "rate = 0.*at most 1, above 0"),
        ({"rate": "much"}, "rate = 'much'.*a number"),
        ({"rate": [0.5, 0.6]}, "rate"),
        ({"dropout": 1}, "dropout = 1.*below 1"),
        ({"mode": "sort"}, "mode = 'sort'.*soft, hard"),
        ({"flag": 1}, "flag = 1.*true or false"),
        ({"flag": {"layer": 1}}, r"flag\['layer'\] = 1.*true or false"),
        ({"rate": {"layer": 0.5}}, "rate = .*a number"),
        ({"parts": 2}, "parts = 2.*a list of which each is an integer, at least 1, or a mapping"),
        ({"parts": [1, 0]}, "parts = .*at least 1"),
        ({"parts": {"layer": [1, 0]}}, r"parts\['layer'\] = .*at least 1"),
        ({"rat": 1}, "no option 'rat'.*'rate'"),
    ],
)
def test_wrong_values_say_what_was_found_and_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example.from_dict(values)


def test_a_tuple_is_spread_evenly_over_the_blocks() -> None:
    config = Example.from_dict({"r": [1, 2]})
    at = [config.at(LayerSpec("layer", index, 8, 4, 4)) for index in range(8)]
    assert [layer.experts for layer in at] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert [layer.r for layer in at] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert {layer.rate for layer in at} == {0.5}


def test_a_mapping_gives_modules_values_of_their_own_and_the_others_the_default() -> None:
    config = Example.from_dict(json.loads(json.dumps({"flag": {"one": True}, "parts": {"one": [2, 1], "two": [3]}})))
    one, two, three = (config.at(LayerSpec(name, 0, 1, 4, 4)) for name in ("one", "two", "three"))
    assert [layer.flag for layer in (one, two, three)] == [True, False, False]
    assert [layer.parts for layer in (one, two, three)] == [(2, 1), (3,), ()]
    assert config.modules == {"one", "two"}
    assert Example.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Example.from_dict({"parts": [1, 2]}).at(LayerSpec("one", 0, 2, 4, 4)).parts == (1, 2)


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        Example().r = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Example(3)  # type: ignore[misc]
    assert issubclass(Example, MethodConfig)
