"""P-Tuning v2: training a prefix on a frozen, quantized model; ``training.py`` is the way in."""

from glm_int4.tuning.loss import prefix_loss

__all__ = ["prefix_loss"]
