"""A causal language model that answers two tasks: one chooses among classes, one writes. Save, load again, generate.

python examples/decoder.py [BASE]          # BASE: the name or folder of a decoder; default: SmolLM2 from the hub
"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import lorachord as lc

hub = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(hub)
model = lc.attach(AutoModelForCausalLM.from_pretrained(hub), "mtl_lora", tasks=["mood", "colour"], r=8)
tasks = [
    lc.Task("mood", kind="classification", text="text", label="mood"),
    lc.Task("colour", kind="generation", text="thing", label="answer", prompt="The colour of {first} is"),
]
moods = [{"text": text, "mood": mood} for text, mood in [("What a day!", "happy"), ("I miss it.", "sad")] * 6]
colours = [{"thing": thing, "answer": colour} for thing, colour in [("snow", "white"), ("coal", "black")] * 6]
args = TrainingArguments("out", max_steps=20, learning_rate=1e-3, report_to=[], save_strategy="no")
rows = {"mood": moods, "colour": colours}
trainer = lc.MultiTaskTrainer(model, args, tokenizer=tokenizer, tasks=tasks, train_data=rows, eval_data=rows)
trainer.train()
print(trainer.evaluate())

model.save_pretrained("out/adapter")
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hub), "out/adapter").eval()
prompt = tokenizer("The colour of snow is", return_tensors="pt")
with lc.on_task(loaded, "colour"):
    written = loaded.generate(**prompt, max_new_tokens=2, do_sample=False)
print(tokenizer.decode(written[0], skip_special_tokens=True))
