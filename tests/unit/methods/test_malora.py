import pytest
import torch

import lorachord as lc
from lorachord.core.adapter import Adapter


def started(d_in: int = 300, **options: object) -> Adapter:
    cls = lc.get_method("malora")
    return cls(lc.LayerSpec("layer", 0, 1, d_in, 7), cls.Config.from_dict(options))


@pytest.mark.parametrize("init", ["kaiming", "orthogonal", "svd"])
def test_all_starts_of_the_shared_subspace_are_of_one_size(init: str) -> None:
    down = started(init=init).down.detach()
    assert float(down.square().sum(1).mean()) == pytest.approx(1 / 3, rel=0.15)
    if init != "kaiming":
        torch.testing.assert_close(down @ down.T, torch.eye(8) / 3)


def test_the_svd_start_spans_what_stacked_a_share_most() -> None:
    torch.manual_seed(5)
    found = started(init="svd", num_experts=4, r=3).down.detach()
    torch.manual_seed(5)
    # The draws before it: A, the coefficients and the router.
    plain = started(init="kaiming", num_experts=4, r=3)
    stacked = torch.empty(4 * 3, 300).uniform_(-1, 1) / 300**0.5
    assert plain.down.shape == found.shape
    energy = (stacked @ found.T * 3**0.5).square().sum()
    torch.testing.assert_close(energy, torch.linalg.svdvals(stacked)[:3].square().sum())


def test_more_experts_to_use_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MALoRA.Config: top_k = 4, but some layers have only 3 experts"):
        lc.get_method("malora").Config.from_dict({"num_experts": [5, 3], "top_k": 4})


def test_the_scale_is_that_of_an_expert() -> None:
    assert started(r=4, expert_rank=2, alpha=6.0).scale == 3
