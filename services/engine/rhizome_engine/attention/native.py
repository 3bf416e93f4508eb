"""Attention in the CPU's own kernels: one call per layer from the QKV projection to the output projection.

Keys and values are stored in their pages and read there, so nothing is gathered, padded or masked in Python.
A row's result does not depend on the other rows of the step, nor on the number of threads, bit for bit.

The kernels rely on what the scheduler guarantees anyway: a page that a row writes in a step belongs to it
alone. (A row of one new token stores its key when it reads the others, while other rows are being read.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.kernels.native.library import Function, Library, load_library
from rhizome_engine.layers.rotary import Rope

MAX_HEAD_DIM = 256
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Layer(ctypes.Structure):
    """`AttentionLayer` of attention.h."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("rope", ctypes.c_int32),
        ("element", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("norm_eps", ctypes.c_float),
    )


class _RopeTable(ctypes.Structure):
    """`RopeTable` of attention.h."""

    _fields_ = (("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("rotary_dim", ctypes.c_int64))


class _StepArrays(ctypes.Structure):
    """`StepArrays` of attention.h."""

    _fields_ = (
        ("query_start", ctypes.c_void_p),
        ("context_len", ctypes.c_void_p),
        ("page_table", ctypes.c_void_p),
        ("slot_mapping", ctypes.c_void_p),
        ("ropes", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("table_width", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("num_pages", ctypes.c_int64),
    )


class _Functions:
    """The library's attention functions, with their signatures declared."""

    def __init__(self, library: Library) -> None:
        loaded = ctypes.CDLL(str(library.path))
        pointer, int64 = ctypes.c_void_p, ctypes.c_int64
        self.new_step = _declare(loaded.rhizome_attention_step_new, pointer)
        self.free_step = _declare(loaded.rhizome_attention_step_free, None, pointer)
        self.plan = _declare(loaded.rhizome_attention_plan, int64, pointer, pointer)
        self.attend = _declare(loaded.rhizome_attention_attend, None, pointer, pointer, pointer, pointer)


def _declare(function: Any, result: type[Any] | None, *arguments: type[Any]) -> Function:
    function.restype, function.argtypes = result, arguments
    declared: Function = function
    return declared


class _LayerCall:
    """A layer as the kernels see it.

    Attributes:
        layer: what it was made from; its tensors stay alive with it.
        address: of the structure.
        width: of `qkv`.
        out_width: of the result.
    """

    __slots__ = ("_structure", "address", "layer", "out_width", "width")

    def __init__(self, layer: AttentionLayer, kv: PagedKV) -> None:
        keys, values = kv.layer(layer.index)
        if keys.shape[-2:] != (layer.num_kv_heads, layer.head_dim):
            raise ValueError(
                f"layer {layer.index} has {layer.num_kv_heads} key-value heads of {layer.head_dim}, "
                f"but the KV pool was made for {keys.shape[-2]} of {keys.shape[-1]}"
            )
        if layer.num_heads % layer.num_kv_heads:
            raise ValueError(
                f"{layer.num_heads} heads cannot share {layer.num_kv_heads} key-value heads evenly"
            )
        self.layer = layer
        self.out_width = layer.num_heads * layer.head_dim
        self.width = self.out_width + 2 * layer.num_kv_heads * layer.head_dim
        self._structure = _Layer(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            q_norm=_gain_address(layer.q_norm, layer.head_dim),
            k_norm=_gain_address(layer.k_norm, layer.head_dim),
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_dim=layer.head_dim,
            window=layer.window,
            rope=-1 if layer.rope is None else layer.rope,
            element=ELEMENTS[kv.data.dtype],
            scale=layer.scale,
            softcap=layer.softcap,
            norm_eps=layer.norm_eps,
        )
        self.address = ctypes.addressof(self._structure)


def _gain_address(gain: Tensor | None, head_dim: int) -> int | None:
    if gain is None:
        return None
    if gain.dtype != torch.float32 or gain.shape != (head_dim,) or not gain.is_contiguous():
        raise ValueError(
            f"a head's gain must be {head_dim} contiguous float32, not {gain.dtype} {gain.shape}"
        )
    return gain.data_ptr()


class _Step:
    """A step in the kernels: how its work is cut, and memory for parts of results; used again and again."""

    __slots__ = ("_free", "address")

    def __init__(self, functions: _Functions) -> None:
        self._free = functions.free_step
        self.address: int = functions.new_step()

    def __del__(self) -> None:
        self._free(self.address)


class NativePlan:
    """See `AttentionPlan`."""

    __slots__ = ("_attend", "_backend", "_kept", "_num_tokens", "_outs", "_step", "_step_address")

    def __init__(
        self, backend: NativeBackend, step: _Step, num_tokens: int, kept: tuple[object, ...]
    ) -> None:
        self._backend = backend
        self._attend = backend.functions.attend
        self._step = step
        self._step_address = step.address
        self._num_tokens = num_tokens
        self._kept = kept
        self._outs: dict[int, tuple[Tensor, int]] = {}

    def __del__(self) -> None:
        self._backend.spare_steps.append(self._step)

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Store the new keys and values and attend; shapes as in `AttentionPlan.attend`.

        Raises:
            ValueError: `qkv` is not contiguous float32 of the right size.
        """
        call = self._backend.calls[layer.index]
        if call is None or call.layer is not layer:
            call = self._backend.describe(layer)
        if (
            qkv.numel() != self._num_tokens * call.width
            or qkv.dtype is not torch.float32
            or not qkv.is_contiguous()
        ):
            raise ValueError(
                f"qkv must be contiguous float32 [{self._num_tokens}, {call.width}], "
                f"not {qkv.dtype} {list(qkv.shape)}"
            )
        width = call.out_width
        out = self._outs.get(width)
        if out is None:
            tensor = self._backend.output(self._num_tokens, width)
            out = self._outs[width] = tensor, tensor.data_ptr()
        self._attend(self._step_address, call.address, qkv.data_ptr(), out[1])
        return out[0]


class NativeBackend:
    """Attention in C++, for float32 activations on the CPU.

    Args:
        kv: where keys and values live, in float32, bfloat16 or float16.
        ropes: the model's rotary tables.
        library: the kernels; by default those for this processor.

    Raises:
        ValueError: the pool is none that the kernels can read, or there are no kernels for this processor.
    """

    name = "native"

    def __init__(self, kv: PagedKV, ropes: Sequence[Rope], library: Library | None = None) -> None:
        if kv.data.device.type != "cpu" or kv.data.dtype not in ELEMENTS or not kv.data.is_contiguous():
            raise ValueError(f"native attention cannot read a KV pool of {kv.data.dtype} on {kv.data.device}")
        head_dim = kv.data.shape[-1]
        if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
            raise ValueError(f"native attention needs heads of 8, 16, ... {MAX_HEAD_DIM}, not {head_dim}")
        library = library or load_library()
        if library is None:
            raise ValueError("native attention needs the CPU kernels, and there are none for this processor")
        self.functions = _Functions(library)
        self.calls: list[_LayerCall | None] = [None] * len(kv.data)
        self.spare_steps: list[_Step] = []
        self._kv = kv
        self._ropes = list(ropes)
        self._out = torch.empty(0)

    def plan(self, inputs: AttentionInputs) -> NativePlan:
        """See `AttentionBackend`.

        Raises:
            ValueError: the arrays contradict each other, or name pages that the pool does not have.
        """
        tables = [rope.table(inputs.positions) for rope in self._ropes]
        ropes = (_RopeTable * max(1, len(tables)))()
        for of_rope, rope, (cos, sin) in zip(ropes, self._ropes, tables, strict=False):
            of_rope.cos, of_rope.sin = cos.data_ptr(), sin.data_ptr()
            of_rope.rotary_dim = rope.rotary_dim
        query_start = np.ascontiguousarray(inputs.query_start, np.int32)
        context_len = np.ascontiguousarray(inputs.context_len, np.int32)
        page_table = np.ascontiguousarray(inputs.page_table, np.int32)
        slot_mapping = inputs.slot_mapping.contiguous()
        arrays = _StepArrays(
            query_start=_address(query_start),
            context_len=_address(context_len),
            page_table=_address(page_table),
            slot_mapping=slot_mapping.data_ptr(),
            ropes=ctypes.addressof(ropes),
            num_rows=len(context_len),
            num_tokens=len(slot_mapping),
            table_width=page_table.shape[1],
            page_size=self._kv.page_size,
            num_pages=self._kv.num_pages,
        )
        step = self.spare_steps.pop() if self.spare_steps else _Step(self.functions)
        wrong = self.functions.plan(step.address, ctypes.addressof(arrays))
        if wrong >= 0:
            self.spare_steps.append(step)
            raise ValueError(f"row {wrong} of the step has tokens, pages or slots that do not fit together")
        kept = (tables, ropes, query_start, context_len, page_table, slot_mapping)
        return NativePlan(self, step, len(slot_mapping), kept)

    def static_plan(self, inputs: StaticInputs) -> None:
        """There is none: its work is cut on the host."""

    def describe(self, layer: AttentionLayer) -> _LayerCall:
        """Prepare a layer's call; done when the layer is first seen.

        Raises:
            ValueError: the layer does not fit the pool or the model's rotary tables.
        """
        if layer.rope is not None and not 0 <= layer.rope < len(self._ropes):
            raise ValueError(f"layer {layer.index} uses rotary table {layer.rope} of {len(self._ropes)}")
        call = self.calls[layer.index] = _LayerCall(layer, self._kv)
        return call

    def output(self, num_tokens: int, width: int) -> Tensor:
        """Return [num_tokens, width] float32 of the buffer that all results are written to."""
        if self._out.numel() < num_tokens * width:
            self._out = torch.empty(num_tokens * width)
        return self._out[: num_tokens * width].view(num_tokens, width)


def _address(array: NDArray[np.int32]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
