"""Embeddings of exported LoRAs by stock sentence-transformers, in a process without this library.

Reads JSON from standard input: `base`, `folders` by name, `texts`. Writes, by name, the embeddings of the whole folder
and those of the LoRA on the base.
"""

import json
import sys

from sentence_transformers import SentenceTransformer


def main() -> None:
    told = json.load(sys.stdin)
    found = {}
    for name, folder in told["folders"].items():
        onto = SentenceTransformer(told["base"], device="cpu")
        onto.load_adapter(folder)
        models = (SentenceTransformer(folder, device="cpu"), onto)
        found[name] = [model.encode(told["texts"], show_progress_bar=False).tolist() for model in models]
    assert not any(name.startswith("lorachord") for name in sys.modules)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
