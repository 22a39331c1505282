import pytest
import torch

import lorachord as lc
from lorachord.core.adapter import Adapter
from lorachord.core.context import NO_CONTEXT

LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=10, d_out=7)


def adapter(method: str, **options: object) -> Adapter:
    cls = lc.get_method(method)
    made = cls(LAYER, cls.Config.from_dict(options)).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_one_router_for_all_slots_is_a_shared_a_mixture() -> None:
    ours, hydra = adapter("mode", r=4, num_experts=3, block=4), adapter("hydralora", r=4, num_experts=3, alpha=4.0)
    hydra.load_state_dict(ours.state_dict())
    x, layer = torch.randn(2, 5, 10, dtype=torch.float64), torch.nn.Linear(10, 7).double()
    assert torch.equal(ours(x, layer, NO_CONTEXT), hydra(x, layer, NO_CONTEXT))


def test_one_expert_is_lora_without_a_router() -> None:
    ours, lora = adapter("mode", r=4, num_experts=1), adapter("lora", r=4, alpha=4.0)
    lora.load_state_dict(ours.state_dict())
    x, layer = torch.randn(2, 5, 10, dtype=torch.float64), torch.nn.Linear(10, 7).double()
    # LoRA's product is laid out in another way, and on some processors rounds in another way.
    torch.testing.assert_close(ours(x, layer, NO_CONTEXT), lora(x, layer, NO_CONTEXT), rtol=1e-12, atol=1e-12)


def test_layers_of_one_expert_may_stand_beside_others() -> None:
    counts = [
        lc.count_parameters("mode", [lc.LayerSpec("layer", index, 2, 10, 7)], options={"num_experts": [1, 3]}).routers
        for index in range(2)
    ]
    assert counts == [0, 3 * 8 * 10]


def test_a_starts_with_a_standard_deviation_of_a_hundredth() -> None:
    cls = lc.get_method("mode")
    made = cls(lc.LayerSpec("layer", 0, 1, 1000, 7), cls.Config())
    assert float(made.down.detach().std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("r", [6, [8, 6]])
def test_a_block_that_does_not_divide_the_rank_is_refused(r: object) -> None:
    with pytest.raises(ValueError, match="block = 4 does not divide r = 6"):
        lc.get_method("mode").Config.from_dict({"r": r, "block": 4})
