"""All tolerances, each with its reason."""

# The oracle's logits reach 20 and its activations 400; the official code computed them in float32 in
# another order of operations. 1e-4 is DESIGN's bound for logits; activations get the same share.
ORACLE_ABSOLUTE = 1e-4
ORACLE_RELATIVE = 1e-6

# Plain float32 sums over at most 2048 products in two orders: sqrt(2048) * 2**-24 is 3e-6.
FLOAT32_RELATIVE_RMS = 1e-5

# bfloat16 has 8 significant bits, so a rounding errs by at most 2**-9 = 0.2 %. Scale, offset, input, bias
# and twice the output are rounded: at most 1.2 %, and half of that since they are independent.
BFLOAT16_RELATIVE_RMS = 6e-3


def relative_rms(value, expected):
    """Root mean square error as a share of the expected value's root mean square."""
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()
