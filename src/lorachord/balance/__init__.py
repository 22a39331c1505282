"""Balances: weights of the tasks' losses, before the backward pass.

One task's loss may be ten times another's, or fall ten times as fast, and then it owns the shared adapter. A balance
turns the mean losses of a batch's tasks into one loss:

    loss = 1/|P| sum_{t in P} c_t (w_t L_t + o_t)

over the tasks P of the batch, with your own weights c_t, and w_t and o_t from the balance.

>>> import torch
>>> from lorachord.balance import make_balance
>>> loss_a, loss_b = torch.tensor(4.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
>>> balance = make_balance("running_scale", ["a", "b"])    # 1: once; balance.parameters() go to the optimizer
>>> loss = balance({"a": loss_a, "b": loss_b})             # 2: each step, the mean losses of the tasks that occur
>>> loss.backward()                                        # 3: as ever
>>> balance.weights_T
tensor([0.2500, 2.0000])

`equal` and `fixed` are constant. `uncertainty` learns its weights. `running_scale` divides by a loss's running mean.
`dwa` looks at how fast losses fall. `famo` lets them fall alike, and wants `balance.after(losses)` after the step of
the optimizer. `popart` rescales the heads of regressions, and wants `balance.before(answers)` before the forward pass.

TorchJD has DWA, FAMO and uncertainty as well. Its classes take every task in every batch, and their `state_dict` leaves
out the past losses and Adam's moments, so they do not serve mixed batches or runs that resume.
"""

from lorachord.balance.base import Balance
from lorachord.balance.by_loss import DWA, FAMO, Equal, Fixed, RunningScale, Uncertainty
from lorachord.balance.make import balance_names, check_balance, make_balance
from lorachord.balance.popart import PopArt

__all__ = [
    "DWA",
    "FAMO",
    "Balance",
    "Equal",
    "Fixed",
    "PopArt",
    "RunningScale",
    "Uncertainty",
    "balance_names",
    "check_balance",
    "make_balance",
]
