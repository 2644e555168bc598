"""All tolerances, each with its reason."""

# The official code's figures were computed in float32 in another order of operations. Logits, keys and
# values reach 20; 1e-4 is what the project promises for them.
ORACLE_ABSOLUTE = 1e-4

# The same figures for an adapter that was merged in float32 beforehand: peft's own unmerged forward is 9e-5 from them.
ADAPTER_ABSOLUTE = 2e-4

# Hidden states between layers reach 380, where neighbouring float32 numbers are 3e-5 apart; the official
# figures themselves are 2e-4 from a float64 computation. The bound is 16 such steps of the largest value.
ORACLE_HIDDEN_SHARE = 16 * 2**-24

# Plain float32 sums over at most 2048 products in two orders: sqrt(2048) * 2**-24 is 3e-6.
FLOAT32_RELATIVE_RMS = 1e-5

# float16 has 11 significant bits: a rounding errs by 2**-11 at most and 0.02-0.03 % on average. The result is
# rounded once, weights multiplied by their scale before the product once more (which averages out over K), a
# product in float16 before its epilogue a third time. What the kernels promise is 0.1 %.
FLOAT16_RELATIVE_RMS = 1e-3

# bfloat16 has 8 significant bits, 3 fewer than float16.
BFLOAT16_RELATIVE_RMS = 8 * FLOAT16_RELATIVE_RMS

# Inputs as 16-bit integers: 0.29 steps of 1/32767 of the largest of 128 values, which of normal ones is 2.7
# times their root mean square and of activations up to 10 times: 9e-5.
INT16_RELATIVE_RMS = 1e-4

# A head's largest of 16 normal values is about 2, and a step of its INT8 grid 1/127 of that: a uniform error
# of 0.29 steps is 0.5 % of a value. Keys and values both err, and scores err before a softmax: three times that.
INT8_CACHE_RELATIVE_RMS = 1.5e-2

# The official gradients are float32 sums in another order; 1e-4 is what the project promises for them.
GRADIENT_RELATIVE_RMS = 1e-4

# A loss is a mean over tokens of numbers that each err by a few float16 roundings (2**-11 = 0.05 %); bfloat16
# rounds 8 times as coarsely. Steps of training add their differences up: twenty roundings.
HALF_PRECISION_LOSS = 20 * 2**-11

# A gradient through two layers in float16: some thirty roundings one after the other, each of 0.03 % on average, whose
# squares add up: 0.16 %. Twice that.
HALF_PRECISION_GRADIENT = 3.2e-3


def relative_rms(value, expected):
    """Root mean square error as a share of the expected value's root mean square."""
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()
