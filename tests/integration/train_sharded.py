"""Run as a script, on one rank or by torchrun on several: a loop of one's own, over a base that FSDP2 has sharded.

train_sharded.py OUT METHOD RULE
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

import lorachord as lc
from lorachord.distributed import is_sharded
from lorachord.training.sharded import average_gradients
from tests.tiny_models import perturb, tiny, token_ids

TASKS = [0, 0, 1, 2]
"""Of the samples of a global batch; on two ranks the first has task 0 alone, and the second does not have it."""


def main(out: str, method: str, rule: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = lc.attach(tiny("llama").double(), method, tasks=["a", "b", "c"], r=4)
    perturb(model, 0.1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rank, num_ranks = 0, 1
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        for block in (*model.get_base_model().model.layers, model):
            fully_shard(block, ignored_params=set(trained.values()))
        assert is_sharded(model)
    surgeon = lc.Surgeon(model, rule)
    collected = {id(parameter) for parameter in surgeon.gradients.parameters.values()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    share = len(TASKS) // num_ranks
    mine = slice(rank * share, (rank + 1) * share)
    weights = torch.tensor([num_ranks / TASKS.count(task) for task in TASKS], dtype=torch.float64)
    for step in range(3):
        with lc.on_task(model, torch.tensor(TASKS[mine])):
            logits = model(input_ids=token_ids(seed=step)[mine]).logits
        (logits.logsumexp(-1).mean(1) * weights[mine]).sum().backward()
        if is_sharded(model):
            average_gradients(p for p in trained.values() if id(p) not in collected)
        surgeon.operate()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in trained.items():
        if num_ranks > 1:
            copies = [torch.empty_like(value) for _ in range(num_ranks)]
            dist.all_gather(copies, value.detach())
            assert all(torch.equal(copy, copies[0]) for copy in copies), f"{name} differs between ranks"
    if rank == 0:
        save_file({name: value.detach().clone() for name, value in trained.items()}, Path(out, "trained.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # All is done and saved; on a busy machine gloo's threads now and then abort the interpreter's own way out.
    os._exit(0)
