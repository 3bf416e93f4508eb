"""The CPU's own kernels: C++ behind a plain C interface, compiled per instruction set."""
