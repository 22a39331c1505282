"""The LoRAs of `instruct.py` under vLLM, all in one batch, against transformers: docs/findings.md.

    python3.11 tests/integration/vllm_environment.py
    python benchmarks/instruct_served.py --out runs/instruct [--prompts 10] [--dtype float32]

Each LoRA writes greedily behind dev prompts of its own task. It needs the environment that the first line makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from tests.integration import vllm_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorachord.models import fetch
from lorachord.runs.serving import largest_rank

SCRIPT = Path(vllm_environment.__file__).with_name("generate_with_vllm.py")
NUM_TOKENS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="of instruct.py")
    parser.add_argument("--prompts", type=int, default=10, help="of each task; default 10")
    parser.add_argument("--dtype", default="float32", help="of both; default float32")
    given = parser.parse_args()
    python = vllm_environment.python()
    if python is None:
        sys.exit(f"There is no vLLM: run python3.11 {vllm_environment.__file__} first.")
    base = fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(base)
    loras = {f"{path.parent.parent.name}/{path.name}": path for path in sorted(given.out.glob("*/loras/*"))}
    prompts = {
        file.stem: [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines[: given.prompts]]
        for file in sorted((given.out / "tasks").glob("*.jsonl"))
        if (lines := file.read_text().splitlines())
    }
    asked = {
        "base": str(base),
        "dtype": given.dtype,
        "max_lora_rank": 8,
        "loras": {name: str(path.absolute()) for name, path in loras.items()},
        "refused": {},
        "prompts": [ids for own in prompts.values() for ids in own],
        "num_tokens": NUM_TOKENS,
    }
    assert all(largest_rank(PeftConfig.from_pretrained(str(path))) <= 8 for path in loras.values())
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "asked.json").write_text(json.dumps(asked))
        command = [str(python), str(SCRIPT), "asked.json", "told.json"]
        subprocess.run(command, cwd=scratch, env=vllm_environment.variables(), check=True)
        answers = json.loads(Path(scratch, "told.json").read_text())["answers"]
    print("| LoRA | served equal | words that differ |\n|---|---|---|")
    for name, path in loras.items():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=given.dtype), path).eval()
        model.generation_config.eos_token_id = None
        told = dict(zip(map(tuple, asked["prompts"]), answers[name], strict=True))
        pairs = []
        for ids in prompts[path.name]:
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            own = model.generate(**inputs, do_sample=False, max_new_tokens=NUM_TOKENS)[0, len(ids) :].tolist()
            pairs.append((own, told[tuple(ids)]))
        words = [one != two for own, other in pairs for one, two in zip(own, other, strict=True)]
        print(
            f"| {name} | {sum(own == other for own, other in pairs)} of {len(pairs)} | {sum(words)} of {len(words)} |"
        )


if __name__ == "__main__":
    main()
