"""Run as a script, in a process without this package: answers of exported folders, and of merged models.

Reads the cases from the JSON file named first, writes their logits to the safetensors file named second, and prints the
errors of those that could not be loaded.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file

from tests.tiny_models import tiny, token_ids


def main(cases_path: str, out_path: str) -> None:
    found = {}
    for name, case in json.loads(Path(cases_path).read_text()).items():
        try:
            if case["merged"]:
                model = getattr(transformers, case["class_name"]).from_pretrained(case["folder"])
            else:
                model = PeftModel.from_pretrained(tiny(case["architecture"], **case["changes"]), case["folder"])
        except (RuntimeError, ValueError) as error:
            print(f"{name}: {error}")
            continue
        with torch.no_grad():
            found[name] = model.eval()(input_ids=token_ids()).logits.contiguous()
    assert "lorachord" not in sys.modules
    save_file(found, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
