"""MoELoRA (arXiv 2402.12851).

S = topk(softmax(W x), k), renormalised to sum to 1
y = W0 x + s * sum_e S_e B_e A_e x,  s = alpha / r

Balance loss: MoSLD's, on this router.

Contrastive loss, within one sequence: q_{n,e} = B_e A_e x_n for every token n and each of its experts e, divided by
sqrt(|q|^2 + 1e-6). Positives k+ of q_{n,e} are the outputs of the same expert for other tokens, negatives are all
outputs of other experts:

    mean over q of  -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

An output without a positive is a negative for others, but no term of the mean.
"""

import torch
from torch import Tensor

from tests.reference.mosld import balance_loss as balance_loss


def forward(
    x: Tensor, weight: Tensor, *, A: list[Tensor], B: list[Tensor], router: Tensor, k: int, r: int, alpha: float
) -> Tensor:
    """x (N, D), weight (O, D), A_e (r, D), B_e (O, r), router (E, D); returns y (N, O)."""
    s = alpha / r
    rows = []
    for x_n in x:
        prob = torch.softmax(router @ x_n, dim=0)
        chosen = prob.topk(k).indices.tolist()
        total = sum(prob[e] for e in chosen)
        y_n = weight @ x_n
        for e in chosen:
            y_n = y_n + s * (prob[e] / total) * (B[e] @ (A[e] @ x_n))
        rows.append(y_n)
    return torch.stack(rows)


def contrastive_terms(
    x: Tensor, *, A: list[Tensor], B: list[Tensor], chosen: list[list[int]], tau: float
) -> list[Tensor]:
    """The terms of one sequence; x (N, D) its tokens, A_e (r, D), B_e (O, r), the k experts chosen for each token."""
    outputs = []
    for n, experts in enumerate(chosen):
        for e in experts:
            q = B[e] @ (A[e] @ x[n])
            outputs.append((n, e, q / torch.sqrt(q @ q + 1e-6)))
    terms = []
    for n, e, q in outputs:
        # An expert appears once a token, so that (m, f) names one output.
        similar = {(m, f): torch.exp(q @ key / tau) for m, f, key in outputs if (m, f) != (n, e)}
        positive = [value for (_, f), value in similar.items() if f == e]
        if positive:
            terms.append(-torch.log(torch.stack(positive).sum() / torch.stack(list(similar.values())).sum()))
    return terms


def contrastive_loss(
    x: list[Tensor], *, A: list[Tensor], B: list[Tensor], chosen: list[list[list[int]]], tau: float
) -> Tensor:
    """The mean over sequences x_b (N_b, D) of each one's mean; one without a term is left out. Returns a scalar."""
    means = []
    for x_b, chosen_b in zip(x, chosen, strict=True):
        terms = contrastive_terms(x_b, A=A, B=B, chosen=chosen_b, tau=tau)
        if terms:
            means.append(torch.stack(terms).mean())
    return torch.stack(means).mean() if means else torch.zeros((), dtype=A[0].dtype)
