"""Triton's interpreter beside numpy 2.4, which no longer takes an array of one element for a number.

The interpreter keeps every scalar as such an array, so a loop over a range computed on the device fails in
Triton 3.6. Nothing here matters where kernels are compiled.
"""

from __future__ import annotations

from typing import Any


def let_scalars_count() -> None:
    """Let loops in interpreted kernels run over computed ranges; does nothing the second time."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if patch.__module__ == __name__:
        return

    def patch_and_count(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_count
