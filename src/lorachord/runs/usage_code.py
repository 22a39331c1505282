"""Code that loads and uses what left a run, as text for people: transformers and PEFT, nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorachord.data.task import Task
from lorachord.runs.recipe import Recipe

CLASSES = {"encoder": "AutoModelForSequenceClassification", "decoder": "AutoModelForCausalLM"}


def _quoted(value: Any) -> str:
    # JSON's texts and lists are Python's as well.
    return json.dumps(value, ensure_ascii=False)


def load_code(folder: Path, recipe: Recipe, task: Task, base: str | None) -> str:
    """Lines that make `tokenizer` and `model`.

    Args:
        folder: of the LoRA, or of the whole model.
        task: one of those that are served.
        base: of the LoRA; None for a whole model.
    """
    part = recipe.model
    kind, own = CLASSES[part.kind], _quoted(str(folder.absolute()))
    options = f"dtype=torch.{part.dtype}"
    peft = "" if base is None else "from peft import PeftModel\n"
    head = f"import torch\n{peft}from transformers import {kind}, AutoTokenizer\n\n"
    if base is None:
        return (
            f"{head}FOLDER = {own}\n"
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
            f"model = {kind}.from_pretrained(FOLDER, {options}).eval()\n"
        )
    if part.kind == "encoder":
        # The base's own head has another width, and is replaced.
        options += f", num_labels={task.num_outputs}, ignore_mismatched_sizes=True"
    return (
        f"{head}BASE = {_quoted(base)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(BASE)\n"
        f"model = {kind}.from_pretrained(BASE, {options})\n"
        f"model = PeftModel.from_pretrained(model, {own}).eval()\n"
    )


def predict_code(recipe: Recipe, task: Task) -> str:
    """A function `predict` of one example, which returns a label's name, an option, a number or a text."""
    arguments = ["first", "second"][: len(task.text)]
    if task.kind == "multiple_choice":
        arguments.append("choices")
    head = f"def predict({', '.join(arguments)}):\n"
    if task.prefix:
        head += f"    first = {_quoted(task.prefix)} + first\n"
    if recipe.model.kind == "encoder":
        return _encoder(recipe, task, head)
    texts = ", ".join(f"{name}={name}" for name in ("first", "second")[: len(task.text)])
    if task.kind == "chat":
        return _chatting(recipe, task)
    if task.kind in ("generation", "regression"):
        return _writing(recipe, task, head, texts)
    return _choosing(recipe, task, head, texts)


def _encoder(recipe: Recipe, task: Task, head: str) -> str:
    how = f'truncation=True, max_length={recipe.model.max_length}, return_tensors="pt"'
    if task.kind == "multiple_choice":
        question = '" ".join(text for text in (first, second) if text)' if len(task.text) == 2 else "first"
        return (
            f"{head}    batch = tokenizer([{question}] * len(choices), choices, padding=True, {how})\n"
            "    with torch.no_grad():\n"
            "        scores = model(**batch).logits[:, 0]\n"
            "    return choices[int(scores.argmax())]\n"
        )
    labels = f"LABELS = {_quoted(list(task.labels))}\n\n\n" if task.labels else ""
    found = "LABELS[int(scores.argmax())]" if task.labels else "float(scores[0])"
    return (
        f"{labels}{head}    batch = tokenizer({', '.join(('first', 'second')[: len(task.text)])}, {how})\n"
        "    with torch.no_grad():\n"
        "        scores = model(**batch).logits[0]\n"
        f"    return {found}\n"
    )


def _choosing(recipe: Recipe, task: Task, head: str, texts: str) -> str:
    """The most likely of some answers."""
    if task.kind == "multiple_choice":
        constants, answers, found = "", "choices", "choices"
        shown = '"\\n".join(f"- {choice}" for choice in choices)'
    else:
        constants = f"LABELS = {_quoted(list(task.labels))}\nANSWERS = {_quoted(list(task.answers))}\n"
        answers, found = "ANSWERS", "LABELS"
        shown = _quoted(" or ".join([", ".join(task.answers[:-1]), *task.answers[-1:]]))
    return (
        f"PROMPT = {_quoted(task.prompt)}\n{constants}\n\n{head}"
        f"    prompt = PROMPT.format({texts}, options={shown}).strip()\n"
        '    prompt = tokenizer(prompt)["input_ids"]\n'
        "    scores = []\n"
        f"    for answer in {answers}:\n"
        '        answer = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]\n'
        f"        row = prompt[-max(1, {recipe.model.max_length} - len(answer)) :] + answer\n"
        "        with torch.no_grad():\n"
        "            logits = model(input_ids=torch.tensor([row])).logits[0, -len(answer) - 1 : -1].float()\n"
        "        scores.append(float(logits.log_softmax(-1)[range(len(answer)), answer].sum()))\n"
        f"    return {found}[scores.index(max(scores))]\n"
    )


def _chatting(recipe: Recipe, task: Task) -> str:
    """The assistant's next turn."""
    head = "" if recipe.model.chat_template is None else f"TEMPLATE = {_quoted(recipe.model.chat_template)}\n\n\n"
    template = "" if recipe.model.chat_template is None else "chat_template=TEMPLATE, "
    prefixed = f"    messages[0]['content'] = {_quoted(task.prefix)} + messages[0]['content']\n" if task.prefix else ""
    return (
        f"{head}def predict(messages):\n{prefixed}"
        f"    text = tokenizer.apply_chat_template(messages, {template}add_generation_prompt=True, tokenize=False)\n"
        f'    ids = tokenizer(text, add_special_tokens=False)["input_ids"][-{recipe.model.max_length} :]\n'
        "    ids = torch.tensor([ids])\n"
        f"    how = dict(max_new_tokens={recipe.evaluation.max_new_tokens}, do_sample=False)\n"
        "    with torch.no_grad():\n"
        "        written = model.generate(\n"
        "            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **how\n"
        "        )\n"
        "    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()\n"
    )


def _writing(recipe: Recipe, task: Task, head: str, texts: str) -> str:
    number = (
        "    try:\n        return float(text.split()[0])\n    except (IndexError, ValueError):\n        return 0.0\n"
    )
    return (
        f"PROMPT = {_quoted(task.prompt)}\n\n\n{head}"
        f"    prompt = PROMPT.format({texts}).strip()\n"
        f'    ids = torch.tensor([tokenizer(prompt)["input_ids"][-{recipe.model.max_length} :]])\n'
        f"    how = dict(max_new_tokens={recipe.evaluation.max_new_tokens}, do_sample=False)\n"
        "    with torch.no_grad():\n"
        "        written = model.generate(\n"
        "            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **how\n"
        "        )\n"
        "    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()\n"
        f"{number if task.kind == 'regression' else '    return text'}\n"
    )
