"""What layers share in reading a prompt, and what they must not."""

import torch

from lorachord.core.reading import Reading, shares_of


def test_the_mean_is_of_this_very_tensor_as_it_was() -> None:
    reading, x, mean = Reading(), torch.ones(2, 3), torch.ones(3)
    assert reading.mean_of(x) is None
    reading.keep(x, mean)
    assert reading.mean_of(x) is mean
    assert reading.mean_of(x.clone()) is None
    with torch.no_grad():
        # It may have no graph that this one needs, or one that this must not hold.
        assert reading.mean_of(x) is None
    x += 1
    assert reading.mean_of(x) is None


def test_in_inference_mode_where_changes_are_not_counted_nothing_is_kept() -> None:
    with torch.inference_mode():
        reading, x = Reading(), torch.ones(2, 3)
        reading.keep(x, torch.ones(3))
        assert reading.mean_of(x) is None


def test_it_keeps_the_last_mean_alone_and_in_the_end_nothing() -> None:
    reading, x, other, mask = Reading(), torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    reading.keep(x, torch.ones(3))
    reading.keep(other, torch.zeros(3))
    assert reading.mean_of(x) is None
    shares = reading.shares(mask, torch.float32)
    reading.end()
    assert reading.mean_of(other) is None
    assert reading.shares(mask, torch.float32) is not shares


def test_shares_are_made_once_for_a_mask_and_a_dtype() -> None:
    reading, mask = Reading(), torch.tensor([[True, False, True], [False, False, False]])
    shares = reading.shares(mask, torch.float32)
    assert shares.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    assert reading.shares(mask, torch.float32) is shares
    assert torch.equal(reading.shares(mask, torch.float64), shares_of(mask, torch.float64))
    assert reading.shares(~mask, torch.float64)[1].tolist() == [1 / 3] * 3
