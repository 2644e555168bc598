"""A stand-in for the module that runs Triton's kernels, which computes in plain torch and can be made to fail."""

from triton_kernels import reference


class Kernels:
    """``triton_kernels.gpu`` on a CPU.

    Attributes:
        calls: products and gradients so far. failing: kernels by name -> what they raise.
    """

    def __init__(self):
        self.calls, self.failing = [], {}

    def takes(self, dtype, matrix):
        return True

    def kernel_name(self, x, matrix):
        return f"dot {8 if len(x) <= 8 else 64}x128"

    def multiply(self, x, matrix, epilogue):
        return self._run(self.kernel_name(x, matrix), lambda: reference.multiply(x, matrix, epilogue))

    def multiply_transposed(self, grad_out, matrix):
        return self._run("transposed", lambda: reference.multiply_transposed(grad_out, matrix))

    def _run(self, kernel, product):
        self.calls.append(kernel)
        if kernel in self.failing:
            raise self.failing[kernel]
        return product()
