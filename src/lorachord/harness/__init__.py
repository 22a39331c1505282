"""The LM Evaluation Harness on runs, exported LoRAs and merged models, each of whose tasks answers its own tasks.

`lorachord evaluate RUN --harness mood=hellaswag` asks the run's task `mood` the harness's `hellaswag`; in Python it is
`score_by_harness`. Importing this room also registers the model type `lorachord` with the harness:

    lm_eval.simple_evaluate(model="lorachord", model_args={"run": "runs/glue", "task": "mood"}, tasks=["hellaswag"])

Scores are the harness's own. Its `acc_norm` divides an option's log-likelihood by the letters of the option, where
`lorachord evaluate` divides by its tokens, as `score_normalised`. It needs `pip install "lorachord[harness]"`.
"""

from importlib.util import find_spec

if find_spec("lm_eval") is None:
    raise ImportError('The harness is not installed: pip install "lorachord[harness]".')

from lorachord.harness.harness_scores import score_by_harness
from lorachord.harness.run_model import LorachordLM

__all__ = ["LorachordLM", "score_by_harness"]
