"""TRL's trainers over several tasks: instruction sets, preferences, packing, with a loss for each task.

`MultiTaskSFTTrainer` and `MultiTaskDPOTrainer` take the place of `trl.SFTTrainer` and `trl.DPOTrainer` in a script. The
data sets are given by the names of their tasks, each with the columns that TRL knows, and an adapter by `peft_config`.
Every token then has its task, in packed rows as well. The loss of a step is the mean over the tasks of their own mean
losses, plus the adapter's penalties. `evaluate` gives each task's loss, their mean and the worst.

They need TRL: `pip install "lorachord[trl]"`. docs/trl.md has a whole script.

>>> import lorachord as lc, tempfile, tokenizers, transformers, trl
>>> from datasets import Dataset
>>> from lorachord.trl import MultiTaskSFTTrainer
>>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, "red": 3}, "[UNK]"))
>>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
>>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
>>> sizes = dict(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
>>> settings = dict(max_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
>>> trainer = MultiTaskSFTTrainer(
...     transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)),
...     trl.SFTConfig(tempfile.mkdtemp(), **settings),
...     processing_class=tokenizer,
...     train_dataset={
...         "answers": Dataset.from_list([{"prompt": "red ", "completion": "red"}] * 8),
...         "stories": Dataset.from_list([{"text": "red red red"}] * 8),
...     },
...     peft_config=lc.LorachordConfig.build("mtl_lora", tasks=["answers", "stories"], r=2),
... )
>>> trainer.train().global_step  # doctest: +ELLIPSIS
{'train_runtime': ...}
1
"""

from importlib.util import find_spec

if find_spec("trl") is None:
    raise ImportError('lorachord.trl needs TRL, which is not installed: pip install "lorachord[trl]".')

from lorachord.trl.dpo import MultiTaskDPOTrainer
from lorachord.trl.sft import MultiTaskSFTTrainer

__all__ = ["MultiTaskDPOTrainer", "MultiTaskSFTTrainer"]
