"""The computations of a GPU in Triton, each beside the plain PyTorch that it is held to."""
