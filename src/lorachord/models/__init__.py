"""How the name of a base model becomes a model and its tokenizer. Stands alone: knows no method and no task."""
