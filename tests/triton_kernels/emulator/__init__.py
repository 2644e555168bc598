"""PTX, the assembly that Triton compiles kernels to, run on a CPU in NumPy."""
