"""Run as a script, on one rank or by torchrun on several: trains a tiny model, and the first rank saves what it became.

train_on_ranks.py OUT METHOD RULE [BALANCE [sharded]]
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from safetensors.torch import save_file
from transformers import TrainingArguments

import lorachord as lc
from lorachord.balance.make import make_balance
from lorachord.data.mixture import TaskMixture
from lorachord.data.sources import from_rows
from lorachord.distributed import from_first, is_sharded
from lorachord.surgery.surgeon import Surgeon
from lorachord.training.trainer import MultiTaskTrainer
from tests.tiny_data import own, rows, task_of, tokenizer
from tests.tiny_models import perturb, tiny

TASKS = tuple(task_of(fields) for fields in own("colour", "size", "number", "choice"))
OPTIONS: dict[str, dict[str, float]] = {
    # Weights large enough to see: what is a mean over all ranks' rows is not the mean of the ranks' means.
    "mosld": {"r": 4, "num_experts": 4, "balance": 2.0, "z": 0.5},
    "moelora": {"r": 4, "num_experts": 4, "balance": 2.0, "contrastive": 2.0, "contrastive_sequences": 64},
    "mode": {"r": 4, "balance": 2.0},
    "mor1e": {"r1": 2, "r2": 3},
    "lora+align": {"r": 4, "align": 0.5},
}
BATCH = 6
"""Rows of a global batch of four tasks: some tasks are absent from a batch, and more from a rank's share of it."""


SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}


def main(out: str, method: str, rule: str, name: str = "equal", placing: str = "whole") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = lc.add_heads(tiny("bert").double(), {task.name: task.num_outputs for task in TASKS})
    model = lc.attach(
        base.double(), method.partition("+")[0], tasks=[task.name for task in TASKS], **OPTIONS.get(method, {"r": 4})
    )
    # Only the first rank's values count.
    perturb(model, 0.1, seed=2 + int(os.environ.get("RANK", "0")))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    balance = make_balance(name, [task.name for task in TASKS], model=model, regressions=["number"])
    args = TrainingArguments(
        output_dir=out,
        max_steps=4,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **(SHARDED if placing == "sharded" and dist.is_torchelastic_launched() else {}),
    )
    if placing == "sharded" and args.world_size > 1:
        # Accelerate shards on accelerators alone: it is told that these are some.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    parts = [from_rows(task, {"train": rows(task, 80, 1)}) for task in TASKS]
    sizes = [len(part.train) for part in parts]
    trainer = MultiTaskTrainer(
        model,
        args,
        tasks=TASKS,
        tokenizer=tokenizer(),
        train_data=[part.train for part in parts],
        eval_data=[part.val for part in parts],
        mixture=TaskMixture(sizes, batch_size=BATCH, rank=args.process_index, world_size=args.world_size),
        surgeon=None if rule == "none" else Surgeon(model, rule),
        balance=balance,
    )
    trainer.train()
    assert from_first(args.process_index) == 0
    assert is_sharded(trainer.model) == (placing == "sharded" and args.world_size > 1)
    found = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    state = balance.state_dict().items()
    # What is not known yet is NaN.
    found |= {key: value.nan_to_num() for key, value in state if isinstance(value, torch.Tensor)}
    found["weights"] = balance.weights_T
    found |= {name: torch.tensor(value) for name, value in trainer.evaluate().items()}
    if dist.is_initialized():
        for name, value in found.items():
            copies = [torch.empty_like(value) for _ in range(dist.get_world_size())]
            dist.all_gather(copies, value)
            assert all(torch.equal(copy, copies[0]) for copy in copies), f"{name} differs between ranks"
    if args.process_index == 0:
        model.save_pretrained(Path(out) / "adapter")
        save_file({name: value.clone() for name, value in found.items()}, Path(out) / "trained.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    # All is done and saved; on a busy machine gloo's threads now and then abort the interpreter's own way out.
    os._exit(0)
