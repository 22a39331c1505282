"""Training and scoring one model on many tasks, over transformers' Trainer."""
