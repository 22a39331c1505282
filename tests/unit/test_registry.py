from dataclasses import dataclass

import pytest
from torch import nn

import lorachord as lc
from lorachord.core.registry import get_method, register


def make_class(class_name: str = "Made", **attributes: object) -> type[lc.Adapter]:
    @dataclass(frozen=True, kw_only=True)
    class Config(lc.RankConfig):
        """None of its own."""

    full = dict(method="made", paper="none", mixing=lc.Mixing.STATIC, parameters_formula="0", Config=Config)
    return type(class_name, (lc.Adapter,), {"build": lambda self: None, **full, **attributes})


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'lora' is taken by lorachord\.methods\.lora\.LoRA"):
        register(make_class(method="lora"))
    with pytest.raises(ValueError, match="taken"):
        register(make_class("LoRA", method="lora"))


@pytest.mark.parametrize("name", ["method", "paper", "mixing", "parameters_formula", "Config"])
def test_a_missing_attribute_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        register(make_class(**{name: None}))


def test_a_config_without_its_decorator_is_refused() -> None:
    class Config(lc.RankConfig):
        extra: int = lc.option(1)

    with pytest.raises(TypeError, match="dataclass"):
        register(make_class(Config=Config))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'hydralora'"):
        get_method("hydra_lora")


def test_every_method_documents_its_options() -> None:
    for method in lc.all_methods().values():
        own = vars(method.Config).get("__annotations__", {})
        for name in own:
            assert f"{name}:" in (method.Config.__doc__ or ""), f"{method.__name__}.Config.{name}"
        assert issubclass(method, nn.Module)
