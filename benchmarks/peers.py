"""Step time of other libraries' multi-task adapters over that of the closest method here.

    python benchmarks/peers.py [--quick] [--json] [--environment DIR]

All adapt one random Llama (4 blocks of 384 features; with `--quick` one) on the same batch of 16 x 64 tokens, with
adapters of rank 8, alpha 16, and 8 experts, all else frozen, float32. A step is a forward pass, the losses, a backward
pass, AdamW and zero_grad. Every row is the other library's step over ours, both in turn; ours is to be ahead, so at
least 1.

- PEFT `poly` (Polytropon) draws for each sample a mixture of its A's and one of its B's, by the logits of the sample's
  task; it has no alpha. Ours: `mtl_lora` with as many up-projections, which mixes these by task and has one A with a
  matrix a task in place of several: of 8, about two thirds of the parameters. With 4, Poly's default, and 8.
- PEFT `xlora` (X-LoRA) scales 8 LoRAs for each token and layer. Its gates come out of a first pass through the frozen
  model and one linear layer. Here its LoRAs train too. Ours: `moelora` with all 8 experts in use, whose gates come from
  a router in each layer; all else is the same function.
- MoE-PEFT `lora`. Ours: `lora`. The same function; it says what the two libraries' frames cost, and has no bound.
- MoE-PEFT `mola` uses the best 2 of 8 LoRAs for each token, in all linears, and `loramoe` all 8, in the linears of the
  MLP. Ours: `moelora` without its losses, in the same linears, with 2 and with 8 in use. The same function.
- MoE-PEFT `mixlora` routes a token once for each MLP, to 2 of 8 copies that differ by their LoRAs; the frozen
  down-projection is applied for each of the two. Ours: `moelora` with 2 of 8 in use in the linears of the MLP, each
  with a router of its own. Not the same function. Both have a balance loss.
- Adapters `mtl_lora` with 8 up-projections, in the linears of a Llama that it can adapt: q, k, v, up and down. Ours:
  `mtl_lora` with a diagonal for each task, in the same. The same function.

Where the function is the same, both sides start from the same weights, and that three steps of training give the same
losses is checked first. MoE-PEFT must have dropout, so both sides have .05 in all rows but PEFT's. Its attention is not
fused, so it is not in any row.

MoE-PEFT and Adapters need older versions of transformers: each runs in an environment of its own, which is made in the
folder that `--environment` names (once, from the package index; minutes). Without that, or where it cannot be made,
their rows are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Options, Result, Step, Took, interleave, parser_of, report

# isort: split
import torch
from peft import PeftModel

from outside import OutsideError, environment, started
from peers_pairs import DENSE, LIBRARIES, Library, Pair
from peers_work import NUM_EXPERTS, Workload
from workload import TASKS

DROPOUT = 0.05


def row(name: str, peer: Step, ours: Step, bound: float | None = 1.0) -> Result:
    rounds = interleave({"peer": peer, "ours": ours})
    return Result(name, rounds.ratio("peer", "ours"), bound=bound, better="higher")


def against_peft(work: Workload) -> Iterator[Result]:
    for num_experts in (4, NUM_EXPERTS):
        poly = work.train(work.poly(num_experts), task_ids=work.task_ids_B)
        ours = work.ours("mtl_lora", tasks=TASKS, num_ups=num_experts)
        yield row(f"PEFT poly / mtl_lora, {num_experts}", poly, work.train_ours(ours))
    ours = work.ours("moelora", **DENSE)
    yield row("PEFT xlora / moelora, all 8", work.train(work.xlora()), work.train_ours(ours))


def against(library: Library, work: Workload, python: Path) -> Iterator[Result]:
    with TemporaryDirectory() as name, started(python, Path(__file__).with_name(library.script)) as outside:
        folder = Path(name)
        work.base().save_pretrained(folder)
        batch = {"token_ids": work.token_ids_BL.tolist(), "task_ids": work.task_ids_B.tolist()}

        def build(case: str, pair: Pair, ours: PeftModel, dropout: float) -> None:
            weights = pair.start(ours)
            torch.save(weights, folder / "weights.pt")
            adapter = {**pair.adapter, library.dropout: dropout}
            file = None if weights is None else str(folder / "weights.pt")
            outside.ask(case, {"folder": str(folder), "batch": batch, "adapter": adapter, "weights": file})

        for pair in library.pairs:
            if pair.weights is not None:
                ours = work.ours(pair.method, **pair.options)
                build("checked", pair, ours, library.no_dropout)
                train = work.train_ours(ours)
                losses = [(train(), outside.ask("checked")["loss"]) for _ in range(3)]
                expected, found = torch.tensor(losses).unbind(1)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
            ours = work.ours(pair.method, **pair.options, dropout=DROPOUT)
            build("timed", pair, ours, DROPOUT)
            yield row(pair.row, lambda: Took(outside.ask("timed")["seconds"]), work.train_ours(ours), pair.bound)


def benchmark(options: Options, folder: Path | None) -> Iterator[Result]:
    work = Workload(options.quick)
    yield from against_peft(work)
    for library in LIBRARIES:
        if folder is None:
            print(f"{library.name} left out: name a folder for its environment, --environment DIR.", file=sys.stderr)
            continue
        try:
            yield from against(library, work, environment(folder / library.name.lower(), *library.installs))
        except OutsideError as error:
            print(f"{library.name} left out: {error}", file=sys.stderr)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where those of other libraries are made")
    chosen = vars(parser.parse_args())
    folder = chosen.pop("environment")
    options = Options(**chosen)
    return report(benchmark(options, folder), options)


if __name__ == "__main__":
    raise SystemExit(main())
