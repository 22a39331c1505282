"""Greedy answers of vLLM, in one batch of requests with a LoRA each: run by the environment of `vllm_environment.py`.

Reads JSON from the file named first: `base`, `dtype`, `max_lora_rank`, `loras` (folders by name), `refused` (likewise),
`prompts` (lists of token ids) and `num_tokens`. Writes JSON to the second: `answers`, by name a list of token ids for
each prompt, the base's under ""; and `refused`, by name what vLLM says of the folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
# One process: all requests are there at the first step.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch


def main(given: dict[str, Any]) -> dict[str, Any]:
    # Another environment has it.
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    # vLLM's kernels for bfloat16 use AMX, and leave it to others to ask the system for it.
    torch.cpu._init_amx()
    llm = LLM(
        given["base"],
        dtype=given["dtype"],
        skip_tokenizer_init=True,
        enable_lora=True,
        # On a CPU, vLLM 0.32 gives a request without a LoRA what is in the last place, in a batch with others.
        max_loras=len(given["loras"]) + 1,
        max_lora_rank=given["max_lora_rank"],
        max_model_len=256,
        enforce_eager=True,
        distributed_executor_backend="uni",
    )
    params = SamplingParams(temperature=0.0, max_tokens=given["num_tokens"], ignore_eos=True, detokenize=False)
    loras = {name: LoRARequest(name, index, path) for index, (name, path) in enumerate(given["loras"].items(), 1)}
    asked = [(name, prompt) for prompt in given["prompts"] for name in ("", *loras)]
    done = llm.generate(
        [{"prompt_token_ids": prompt} for _, prompt in asked],
        params,
        lora_request=[loras.get(name) for name, _ in asked],
        use_tqdm=False,
    )
    answers: dict[str, list[list[int]]] = {name: [] for name in ("", *loras)}
    for (name, _), found in zip(asked, done, strict=True):
        answers[name].append(list(found.outputs[0].token_ids))
    refused = {}
    for index, (name, path) in enumerate(given["refused"].items(), 1 + len(loras)):
        try:
            llm.llm_engine.add_lora(LoRARequest(name, index, path))
            refused[name] = ""
        except Exception as error:
            refused[name] = str(error)
    return {"answers": answers, "refused": refused}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
