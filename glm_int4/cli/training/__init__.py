"""The commands that train: ``finetune``, and ``ptune``, which is its first name."""
