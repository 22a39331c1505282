"""Words of the command line's help that are longer than a line. Like the parser, it imports nothing heavy."""

from __future__ import annotations

FUSION_METHODS = ("average", "task_arithmetic", "ties", "dare", "adamerging", "concrete", "collapse", "r_mtllmf")
"""The names of `lorachord.fusion.METHODS`, which a test compares: importing them would import torch."""
EXAMPLES = {
    "methods": """
lorachord methods              all of them, a sentence each
lorachord methods mtl_lora     its equation, paper, options, and when to take it
""",
    "tasks": """
lorachord tasks glue           the tasks of a suite
lorachord tasks recipe.yaml    the tasks that a recipe would train on
""",
    "runs": """
lorachord runs                 the runs below runs/, with their scores on dev
lorachord runs sweeps --json   those below another folder, as JSON
""",
    "check": """
lorachord check recipe.yaml                  data, parameters by method, memory, time, and what to know before
lorachord check recipe.yaml --data DIR       with the tasks' rows from DIR/TASK
lorachord check recipe.yaml --set method.r=4 --no-time --json

The exit status is 0 where the recipe can be trained, with warnings or without, and 2 where it cannot.
""",
    "train": """
lorachord train recipe.yaml --out runs/first
lorachord train recipe.yaml --set method.r=4 --set seed=1 --out runs/second
lorachord train recipe.yaml --out runs/first --resume      go on with a run that was stopped
lorachord train recipe.yaml --set start_from=runs/first --out runs/more        go on with a finished one
lorachord train runs/first --add-task new.yaml --out runs/more                 a new core for each new task
lorachord train runs/first --add-task new.yaml --how replay --out runs/more    or all tasks' rows again

--how with --add-task, and its price:
  core     all that is there is frozen; old tasks keep every prediction, new ones have no other directions
  replay   the adapter goes on with the rows of all tasks; old scores may change
  fuse     an adapter of the new tasks' own is averaged with the old one; some of both scores is lost
""",
    "evaluate": """
lorachord evaluate runs/first                              from its saved predictions, without the model
lorachord evaluate runs/first --split test --data DIR      other rows, which have labels
lorachord evaluate runs/first --beside runs/second

Rows without labels are for `lorachord predict`.
""",
    "predict": """
lorachord predict runs/first --task team --input new.csv --out answers.csv
echo "My parcel is late." | lorachord predict runs/first --task team
lorachord predict runs/first --task-column task --input mixed.jsonl > answers.jsonl
lorachord predict loras/team --input new.csv               an exported LoRA, or a merged model

Each answer stands beside the columns of its row: prediction, probability, probabilities, and for a decoder's numbers
the text they were read from, written.
""",
    "compare": """
lorachord compare support.yaml --methods mtl_lora,lora+ortho_lora
lorachord compare support.yaml --methods 'mtl_lora[num_ups=1],hydralora' --seeds 5 --jobs 2 --time 2h
lorachord compare support.yaml --methods mtl_lora --claims mtl_lora:lora+name
""",
    "merge": """
lorachord merge runs/first --task team --out model         a plain transformers model
""",
    "export": """
lorachord export runs/first --out loras                    one plain LoRA, or one a task
lorachord export runs/first --out loras --task team        of one task alone, in loras/team
lorachord export runs/chat --out loras --for vllm          and the command that serves them
""",
    "distill": """
lorachord distill runs/hydra --to lora --out loras         one plain LoRA a task, and what that costs in score
lorachord distill runs/hydra --to lora --rank 8 --out small
""",
    "fuse": """
lorachord fuse --method collapse --out fused runs/single
lorachord fuse --method ties --set density=0.3 --out fused team=loras/team urgent=loras/urgent --base minilm
""",
    "inspect": """
lorachord inspect runs/first                               what there is to see of a run
lorachord inspect runs/multilora --against runs/lora       the spectra of two, beside each other
lorachord inspect fused --json                             an adapter that `lorachord fuse` has made
lorachord inspect runs/first --max-rows 0 --out arrays     without a pass over rows; arrays for numpy
""",
    "report": """
lorachord report runs/first                                runs/first/report.html: open it in a browser
lorachord report comparisons/support -o support.html
lorachord report runs/multilora --against runs/lora --max-rows 0
""",
}
"""Shown below the options of a command."""
COMPARE = """Trains each method with several learning rates and seeds at equal parameters, beside rows that
every comparison needs: the base untrained, LoRA for each task alone, joint LoRA, joint LoRA with the
task's name in the text, joint LoRA of high rank, and a front of fixed task weights. It ends with a
verdict: which method to take, that joint LoRA will do, or what so few seeds cannot show.

The recipe is that of joint LoRA; its rank sets the budget. A comparison that was stopped or killed
goes on with the same command.
"""
INSPECT = """Shows what each method's paper claims to see: singular values and effective ranks of the
updates, overlap of the tasks' updates, experts that each task's prompts use, ThanoRA's entropies and
ranks, the density of Concrete's masks, conflicts by layer and step, and interference of tasks. Each
figure has its threshold and its meaning in words, and a figure that is missing has a reason.
"""
REPORT = """Writes one HTML page with everything in it: scores and intervals first, then training curves,
what the adapter does, the recipe and the versions. The page needs no network, fits a phone, has a
light and a dark theme, and a table beside each figure.
"""
