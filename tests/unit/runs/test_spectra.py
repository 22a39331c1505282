"""Spectra and overlaps of updates that are known by hand."""

import math

import numpy as np
import pytest
import torch

from lorachord.fusion.factors import LowRank
from lorachord.runs.inspect import Spectra, beside, overlap, spectra


def diagonal(*values: float, d_in: int = 6, d_out: int = 5) -> LowRank:
    """An update with these singular values."""
    rank = len(values)
    return LowRank(torch.eye(rank, d_in), torch.eye(d_out, rank) * torch.tensor(values))


def of(*updates: LowRank) -> Spectra:
    return spectra({"all": {f"layers.{at}.q": update for at, update in enumerate(updates)}})


def test_an_update_of_rank_one_has_effective_rank_one() -> None:
    # Four rows of factors, which are all the same one.
    found = of(LowRank(torch.ones(4, 6), torch.ones(5, 4)))
    for values in (found.effective_rank, found.effective_rank_of_values, found.stable_rank, found.top_share()):
        assert values.item() == pytest.approx(1)
    assert found.values[0, 0] == pytest.approx([4 * math.sqrt(30), 0, 0, 0])
    assert found.ranks.item() == 4


def test_equal_values_use_every_direction() -> None:
    found = of(diagonal(3, 3, 3, 3))
    assert found.effective_rank.item() == pytest.approx(4)
    assert found.stable_rank.item() == pytest.approx(4)
    assert (found.top_share().item(), found.top_share(3).item()) == (pytest.approx(0.25), pytest.approx(0.75))


def test_each_definition_of_a_rank_is_its_own() -> None:
    found = of(diagonal(1, 2))
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    of_values = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.values[0, 0].tolist() == pytest.approx([2, 1])
    assert found.effective_rank.item() == pytest.approx(math.exp(entropy))
    assert found.effective_rank_of_values.item() == pytest.approx(math.exp(of_values))
    assert found.stable_rank.item() == pytest.approx(1.25)


def test_values_are_those_of_the_dense_update() -> None:
    torch.manual_seed(0)
    update = LowRank(torch.randn(3, 9), torch.randn(7, 3))
    assert of(update).values[0, 0] == pytest.approx(torch.linalg.svdvals(update.dense()).numpy()[:3], rel=1e-5)


def test_the_dense_update_is_never_made() -> None:
    # It would have 160 GB.
    update = diagonal(2, 1, d_in=200_000, d_out=200_000)
    assert of(update).values[0, 0].tolist() == pytest.approx([2, 1])
    assert overlap({"a": {"q": update}, "b": {"q": update}}).shares[0, 0, 0, 1] == pytest.approx(1)


def test_layers_of_several_ranks_stand_beside_each_other() -> None:
    found = of(diagonal(1, 1, 1), diagonal(1))
    assert found.ranks.tolist() == [[3, 1]]
    assert found.effective_rank[0].tolist() == pytest.approx([3, 1])
    assert found.rows()[1] == ["all", "q", "2", "0.67", "1.00", "2.0", "2.0", "2"]


def test_the_table_has_the_kinds_of_layers_and_then_the_tasks() -> None:
    updates = {"a": {"0.x.0.q": diagonal(1), "0.x.1.v": diagonal(1)}, "b": {"0.x.0.q": diagonal(1, 1)}}
    rows = spectra(updates).rows()
    assert [row[:4] for row in rows[1:]] == [
        ["all", "q", "1", "0.75"],
        ["all", "v", "1", "1.00"],
        ["a", "all", "2", "1.00"],
        # It leaves the other layer alone.
        ["b", "all", "2", "0.50"],
    ]


def test_an_update_of_nothing_is_told_as_such() -> None:
    found = of(LowRank(torch.ones(2, 6), torch.zeros(5, 2)))
    assert found.words == "The updates are zero: nothing was trained."
    assert np.isnan(found.effective_rank).all()
    assert found.rows()[1][3:7] == ["-"] * 4


def test_two_adapters_stand_beside_each_other_in_the_layers_of_both() -> None:
    own, other = of(diagonal(1, 1), diagonal(1, 1)), of(diagonal(2, 1))
    found = beside(own, other, ("multilora", "lora"))
    assert found.layers == ("layers.0.q",)
    assert found.top_share[:, 0].tolist() == pytest.approx([0.5, 0.8])
    assert "0.50 of the energy in multilora, and 0.80 in lora" in found.words
    assert "In 1 of 1 layers the first is the more even one" in found.words
    with pytest.raises(ValueError, match="no layer in common"):
        beside(own, spectra({"all": {"other": diagonal(1)}}), ("a", "b"))


# Overlap


def turned(degrees: float) -> LowRank:
    """One direction of the inputs, turned from the first axis to the second, onto one output."""
    down = torch.zeros(1, 6)
    down[0, :2] = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    return LowRank(down, torch.eye(5, 1))


@pytest.mark.parametrize(("degrees", "share"), [(0, 1), (45, 0.5), (60, 0.25), (90, 0)])
def test_the_overlap_is_the_squared_cosine_of_the_angle(degrees: float, share: float) -> None:
    found = overlap({"a": {"q": turned(0)}, "b": {"q": turned(degrees)}})
    assert found.shares[0, 0] == pytest.approx(np.array([[1, share], [share, 1]]), abs=1e-6)
    assert found.angles[0, 0, 0, 1, 0] == pytest.approx(degrees, abs=1e-3)
    # The outputs are the same ones.
    assert found.shares[0, 1, 0, 1] == pytest.approx(1)
    assert found.chance[0, :, 0, 1].tolist() == pytest.approx([1 / 6, 1 / 5])


def test_orthogonal_subspaces_do_not_overlap() -> None:
    axes = torch.eye(6)
    one, other = LowRank(axes[:2], torch.eye(5)[:, :2]), LowRank(axes[2:5], torch.eye(5)[:, 2:5])
    found = overlap({"a": {"q": one}, "b": {"q": other}})
    assert np.abs(found.shares[0, :, 0, 1]).max() < 1e-12
    assert found.directions.tolist() == [[2, 3]]
    assert np.isnan(found.angles[0, 0, 0, 1]).tolist() == [False, False, True]
    assert "overlap by 0.00" in found.words
    assert "no more than chance" in found.words


def test_weak_directions_are_left_out_unless_all_count() -> None:
    # One has .96 of its energy on the first axis, and shares it with none of the other's.
    updates = {"a": {"q": diagonal(5, 1)}, "b": {"q": LowRank(torch.eye(6)[1:2], torch.eye(5)[:, 1:2])}}
    assert overlap(updates).shares[0, 0, 0, 1] == pytest.approx(0)
    assert overlap(updates, energy=1).shares[0, 0, 0, 1] == pytest.approx(1)


def test_an_overlap_needs_two_tasks_and_a_layer_of_both() -> None:
    with pytest.raises(ValueError, match="one task alone"):
        overlap({"a": {"q": turned(0)}})
    with pytest.raises(ValueError, match="no layer in common"):
        overlap({"a": {"q": turned(0)}, "b": {"v": turned(0)}})
