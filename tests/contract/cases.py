"""The methods under contract: options that reach every branch, and how each one's parameters enter its reference."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import lorachord as lc
from lorachord.core.adapter import Adapter
from lorachord.core.context import Context
from tests.reference import (
    comol,
    hydralora,
    lora,
    malora,
    mixlora,
    mode,
    moelora,
    mor1e,
    mosld,
    mtl_lora,
    multilora,
    thanora,
)
from tests.tiny_models import token_ids

PROMPT_MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()
"""The prompts of a layer's four samples of five tokens, padded on either side."""
Reference = Callable[[Adapter, Tensor, Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class Case:
    """One method with one choice of options.

    Attributes:
        method: registered name.
        reference: (adapter, x_ND, W0_OD, task of each row) -> y_NO, the naive formula on the adapter's parameters.
        options: the method's options.
        context: (adapter, context of the tasks) -> the same with what else a layer needs to know of `PROMPT_MASK`.
        fit: what a model needs after `lc.attach`.
        scales: factors of parameters of one layer that live on another scale than 1.
    """

    method: str
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    context: Callable[[Any, Context], Context] = lambda adapter, ctx: ctx
    fit: Callable[[PeftModel], object] = lambda model: None
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])


def blocks(up_OS: Tensor, r: int) -> list[Tensor]:
    """The up-projections that lie side by side in a stacked one."""
    return list(up_OS.split(r, dim=1))


def scale_of(adapter: Any) -> dict[str, Any]:
    return {"r": adapter.config.r, "alpha": adapter.config.alpha}


def of_lora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    return lora.forward(x, weight, A=adapter.down, B=adapter.up, **scale_of(adapter))


def of_multilora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    r = adapter.config.r
    scales = [column.squeeze() for column in adapter.scaling.split(1, dim=1)]
    downs = list(adapter.down.split(r))
    return multilora.forward(x, weight, A=downs, B=blocks(adapter.up, r), scale=scales, **scale_of(adapter))


def of_mtl_lora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    return mtl_lora.forward(
        x,
        weight,
        A=adapter.down,
        B=blocks(adapter.up, adapter.config.r),
        Lambda=adapter.transform,
        w=adapter.mixture,
        task_ids=tasks,
        tau=adapter.config.temperature,
        **scale_of(adapter),
    )


def of_hydralora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    ups = blocks(adapter.up, adapter.config.r)
    return hydralora.forward(x, weight, A=adapter.down, B=ups, router=adapter.router.weight, **scale_of(adapter))


def of_comol(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    matrices = blocks(adapter.matrices, adapter.config.r)
    return comol.forward(
        x, weight, A=adapter.down, B=adapter.up, M=matrices, W_r=adapter.router.weight, **scale_of(adapter)
    )


def of_mosld(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    p = adapter.config.weight_dropout
    dropping = adapter.training and p > 0
    adapter.down_weight()  # draws the mask of this step
    return mosld.forward(
        x,
        weight,
        A=adapter.down,
        B=blocks(adapter.up, adapter.config.r),
        router=adapter.router.weight,
        k=adapter.config.top_k,
        mask=(adapter.mask > 0).to(x) if dropping else None,
        p=p,
        **scale_of(adapter),
    )


def of_mode(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    r, groups = adapter.config.r, adapter.config.r // adapter.config.block
    routers = [adapter.router.weight[block::groups] for block in range(groups)]
    return mode.forward(x, weight, A=adapter.down, B=blocks(adapter.up, r), routers=routers)


def of_mode_with_one_expert(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    return lora.forward(x, weight, A=adapter.down, B=adapter.up, r=1, alpha=1)


def of_malora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    config = adapter.config
    return malora.forward(
        x,
        weight,
        S_A=adapter.down,
        P=list(adapter.coefficients),
        B=blocks(adapter.up, config.expert_rank),
        router=adapter.router.weight,
        k=config.top_k,
        alpha=config.alpha,
    )


def of_moelora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    r = adapter.config.r
    downs, ups = list(adapter.down.split(r)), blocks(adapter.up, r)
    router, k = adapter.router.weight, adapter.config.top_k
    return moelora.forward(x, weight, A=downs, B=ups, router=router, k=k, **scale_of(adapter))


def of_thanora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    sizes = [*adapter.ranks, adapter.config.r - adapter.own]
    kept = adapter.config.init == "svd"
    return thanora.forward(
        x,
        weight,
        A=list(adapter.down.split(sizes)),
        B=list(adapter.up.split(sizes, dim=1)),
        A0=[adapter.down_start] if kept else [],
        B0=[adapter.up_start] if kept else [],
        s=adapter.scale,
    )


def prompt_masked(adapter: Any, ctx: Context) -> Context:
    return replace(ctx, prompt_mask_BL=PROMPT_MASK)


def of_mixlora(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    W_A, W_B = adapter.router.chunk(2)
    return mixlora.forward(
        x.view(*PROMPT_MASK.shape, -1),
        weight,
        prompt_mask=PROMPT_MASK,
        a=adapter.down,
        b=adapter.up.T,
        W_A=W_A,
        W_B=W_B,
        W_AB=adapter.router_pairs.unflatten(0, (adapter.config.r, -1)).mT,
        selection=adapter.config.selection,
        alpha=adapter.config.alpha,
    ).flatten(0, 1)


def clusters(adapter: Any, num_clusters: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings of the four prompts, and centroids."""
    generator = torch.Generator().manual_seed(7)
    num_clusters = adapter.config.r1 * adapter.config.r2 if num_clusters is None else num_clusters
    made = torch.randn(4 + num_clusters, 6, generator=generator, dtype=torch.float64)
    return made[:4], made[4:]


def with_cosines(adapter: Any, ctx: Context, num_clusters: int | None = None) -> Context:
    embeddings, centroids = clusters(adapter, num_clusters)
    return replace(ctx, cosines_BC=torch.cosine_similarity(embeddings[:, None], centroids, dim=-1))


def fit_clusters(model: PeftModel) -> Tensor:
    return lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=4, seed=5)}])


def of_mor1e(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    embeddings, centroids = clusters(adapter)
    return mor1e.forward(
        x,
        weight,
        A=adapter.down,
        B=adapter.up,
        router=adapter.router,
        g=adapter.gate.squeeze(),
        omega=adapter.share.squeeze(),
        embeddings=embeddings.repeat_interleave(len(x) // 4, dim=0),
        centroids=centroids,
    )


MOR1E = dict(context=with_cosines, fit=fit_clusters, scales={"gate": 0.05, "share": 0.05})
CASES = [
    Case("lora", of_lora, {"r": 3}),
    Case("multilora", of_multilora, {"r": 2, "num_loras": 3}),
    Case("multilora", of_multilora, {"r": 2, "scaling": "scalar"}),
    Case("mtl_lora", of_mtl_lora, {"r": 3, "num_ups": 2}),
    Case("mtl_lora", of_mtl_lora, {"r": 4, "transform": "diagonal", "unknown_task": "mean"}),
    Case("hydralora", of_hydralora, {"r": 3, "num_experts": 4, "balance": 0.1}),
    Case("comol", of_comol, {"r": 3, "num_experts": 4}),
    Case("comol", of_comol, {"r": 2, "num_experts": [2, 3], "balance": 0.1, "z": 0.1}),
    Case("mosld", of_mosld, {"r": 3, "num_experts": 4, "balance": 0.1, "weight_dropout": 0.3}),
    Case("mosld", of_mosld, {"r": 2, "num_experts": [2, 3], "balance": 0.0, "weight_dropout": 0.0}),
    Case("mode", of_mode, {"r": 4, "num_experts": 3}),
    Case("mode", of_mode, {"r": 6, "num_experts": 3, "block": 2, "balance": 0.1, "z": 0.1}),
    Case("mode", of_mode_with_one_expert, {"r": 3, "num_experts": 1, "balance": 0.1}),
    Case("malora", of_malora, {"r": 3, "expert_rank": 2, "num_experts": 4, "balance": 0.1}),
    Case("malora", of_malora, {"r": 2, "expert_rank": 3, "num_experts": [2, 3], "balance": 0.0, "init": "svd"}),
    Case("moelora", of_moelora, {"r": 2, "num_experts": 4, "contrastive": 0.5}),
    Case("moelora", of_moelora, {"r": 3, "num_experts": 3, "balance": 0.0, "contrastive": 0.0}),
    Case("thanora", of_thanora, {"r": 8}),
    Case("allot", of_mtl_lora, {"r": 3, "num_ups": 2, "choose": "all"}),
    Case("allot", of_lora, {"r": 3, "warmup_steps": 2}),
    Case("thanora", of_thanora, {"r": 5, "init": "kaiming", "allocation": "uniform", "side": "both"}),
    Case("mixlora", of_mixlora, {"r": 3, "num_experts": 5}, context=prompt_masked),
    Case("mixlora", of_mixlora, {"r": 2, "num_experts": 4, "selection": "frozen_hash"}, context=prompt_masked),
    Case("mor1e", of_mor1e, {"r1": 2, "r2": 3}, **MOR1E),
]
