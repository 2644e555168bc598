"""What can be trained beside a frozen model: a prefix of P-Tuning v2, or a LoRA adapter."""
