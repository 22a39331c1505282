"""Speed alone: the operations of the equation, each as one autograd function. Knows no method.

Every function here computes what a line or two of plain torch would, and its tests hold it to those lines.
`docs/kernels.md` says what each costs to read and what it was measured to gain. A method may use them or not.

- `linear.py`, `inner.py`, `products.py`: products of rows with narrow factors, and a weight's gradient per task.
- `blocks.py`: a weight of its own for each block of rows, as where tasks have matrices of their own.
- `route.py`, `rank_one.py`, `pairs.py`: a router's gates and their products.
- `contrast.py`, `overlap.py`: the sums behind MoELoRA's and ThanoRA's penalties.
- `devices.py`: what differs between a CPU and an accelerator.

>>> import torch
>>> from lorachord.kernels import rows_linear
>>> x, weight = torch.randn(2, 3, 8), torch.randn(4, 8)      # 2 samples of 3 rows
>>> torch.allclose(rows_linear(x, weight), x @ weight.T, atol=1e-6)
True

A probe, zeros with a task axis, receives the weight's gradient of each task's rows:

>>> probe = torch.zeros(2, 4, 8, requires_grad=True)         # two tasks
>>> y = rows_linear(x, weight, probe_TOI=probe, row_runs=((0, 0, 3), (1, 3, 6)))     # rows 0 to 3 are of task 0
>>> y.sum().backward()
>>> torch.allclose(probe.grad[1], x[1].sum(0).expand(4, 8), atol=1e-6)
True
"""

from lorachord.kernels.blocks import blocks_linear
from lorachord.kernels.contrast import contrastive_loss, gram_of, spread_tokens
from lorachord.kernels.inner import inner_products
from lorachord.kernels.linear import rows_linear
from lorachord.kernels.overlap import overlap
from lorachord.kernels.pairs import choose_pairs
from lorachord.kernels.rank_one import gate_rank_one
from lorachord.kernels.route import Routed, route

__all__ = [
    "Routed",
    "blocks_linear",
    "choose_pairs",
    "contrastive_loss",
    "gate_rank_one",
    "gram_of",
    "inner_products",
    "overlap",
    "route",
    "rows_linear",
    "spread_tokens",
]
