"""sentence-transformers with a task for each data set: one adapter, and a plain LoRA of each task.

`MultiTaskSentenceTransformerTrainer` takes the place of `SentenceTransformerTrainer` in a script. Each of its data sets
is a task with a loss of its own; the adapter is given by `peft_config`. `with lorachord.on_task(model, name)` embeds on
a task. `export_lora` writes a task's plain LoRA, which sentence-transformers loads without this library.

It needs sentence-transformers: `pip install "lorachord[sentence-transformers]"`. docs/embeddings.md has a whole script.
"""

from importlib.util import find_spec

if find_spec("sentence_transformers") is None:
    raise ImportError(
        "lorachord.sentence_transformers needs sentence-transformers, which is not installed: "
        'pip install "lorachord[sentence-transformers]".'
    )

from lorachord.sentence_transformers.adapted import export_lora
from lorachord.sentence_transformers.task_trainer import MultiTaskSentenceTransformerTrainer

__all__ = ["MultiTaskSentenceTransformerTrainer", "export_lora"]
