"""Run as a script, on one rank or by torchrun on several: trains by TRL's trainers, and the first rank saves.

train_trl_on_ranks.py OUT plain | packed | preferences
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from trl import DPOConfig, SFTConfig

import lorachord as lc
from lorachord.trl import MultiTaskDPOTrainer, MultiTaskSFTTrainer
from tests.tiny_data import tokenizer
from tests.tiny_models import perturb, tiny

WORDS = ("red", "blue", "up", "down", "one", "two", "big")
ROWS = {
    "colour": [{"prompt": f"{a} {b} ", "completion": f"yes {b}"} for a in WORDS[:2] for b in WORDS],
    "size": [{"prompt": f"big {word} ", "completion": "small"} for word in WORDS],
    "rare": [{"text": "one two one two no"}] * 2,
}
PREFERENCES = {
    name: [{"prompt": f"{a} {name} ", "chosen": "yes", "rejected": f"no {a}"} for a in words]
    for name, words in (("colour", WORDS), ("size", WORDS[:3]), ("rare", WORDS[:1]))
}


def main(out: str, what: str) -> None:
    torch.set_num_threads(1)
    model = lc.attach(tiny("llama"), "mtl_lora", tasks=list(ROWS), r=2)
    # Only the first rank's values count.
    perturb(model, 0.1, seed=2 + int(os.environ.get("RANK", "0")))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    settings: dict[str, Any] = dict(
        output_dir=out,
        max_steps=3,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        per_device_train_batch_size=4 // ranks,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=what == "plain",
    )
    given: dict[str, Any] = dict(processing_class=tokenizer(), surgery="ortho_lora", balance="uncertainty")
    trainer: Any
    if what == "preferences":
        args = DPOConfig(**settings)
        trainer = MultiTaskDPOTrainer(model, args, train_dataset=PREFERENCES, eval_dataset=PREFERENCES, **given)
    else:
        args = SFTConfig(**settings, packing=what == "packed", max_length=16)
        trainer = MultiTaskSFTTrainer(model, args, train_dataset=ROWS, eval_dataset=ROWS, **given)
    trainer.train()
    found = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    found["balance"] = trainer.balance.log_variance.detach()
    found |= {name: torch.tensor(value) for name, value in trainer.evaluate().items() if name.endswith("_loss")}
    if dist.is_initialized():
        for name, value in found.items():
            copies = [torch.empty_like(value) for _ in range(dist.get_world_size())]
            dist.all_gather(copies, value)
            assert all(torch.equal(copy, copies[0]) for copy in copies), f"{name} differs between ranks"
    if args.process_index == 0:
        save_file({name: value.clone() for name, value in found.items()}, Path(out) / "trained.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    # All is done and saved; on a busy machine gloo's threads now and then abort the interpreter's own way out.
    os._exit(0)
