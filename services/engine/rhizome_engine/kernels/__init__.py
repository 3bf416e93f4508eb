"""The computations that models are written over: a PyTorch reference and the CPU's own kernels."""
