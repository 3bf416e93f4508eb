"""What a policy needs to know of a request, whichever face it came in by."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_routing.prefix.chain import TEXT_BLOCK, Chain, chain_of, text_tokens

TokenArray = NDArray[np.uint32]

_SHORT = 512
"""Up to so many ids a list is as fast."""


class Ask:
    """A prompt to be placed.

    Args:
        token_ids: [n] the prompt; four bytes each where it is text. A message is read when it has to be.
        namespace: requests share cached prefixes only within one.
        affinity_key: requests with the same one should meet at one backend; empty for none.
        is_text: nobody has tokenised the prompt.

    Attributes:
        prompt_tokens: how long the prompt is; a guess where it is text.
    """

    __slots__ = ("_chains", "_token_ids", "affinity_key", "is_text", "namespace", "prompt_tokens")

    def __init__(
        self,
        token_ids: TokenArray | TokenIds,
        *,
        namespace: str = "",
        affinity_key: str = "",
        is_text: bool = False,
    ) -> None:
        self._token_ids = token_ids
        self.prompt_tokens = len(token_ids.ids) if isinstance(token_ids, TokenIds) else len(token_ids)
        self.namespace = namespace
        self.affinity_key = affinity_key
        self.is_text = is_text
        self._chains: dict[int, Chain] = {}

    @classmethod
    def of_text(cls, text: bytes, *, namespace: str = "", affinity_key: str = "") -> Self:
        """A prompt as text, such as a serialised conversation: what comes first must come first in `text`."""
        return cls(text_tokens(text), namespace=namespace, affinity_key=affinity_key, is_text=True)

    @classmethod
    def of_generation(cls, request: GenerateRequest, affinity_key: str = "") -> Self:
        """A request of the gRPC face; without `affinity_key` its tenant is the key, or its namespace."""
        namespace = request.cache_namespace
        key = affinity_key or request.tenant or namespace
        match request.WhichOneof("input"):
            case "text":
                return cls.of_text(request.text.encode(), namespace=namespace, affinity_key=key)
            case "messages":
                turns = request.messages.SerializeToString(deterministic=True)
                return cls.of_text(turns, namespace=namespace, affinity_key=key)
        return cls(request.token_ids, namespace=namespace, affinity_key=key)

    def chain(self, block_size: int) -> Chain:
        """The prompt's prefixes in blocks of `block_size` tokens; computed once."""
        if self.is_text:
            block_size = TEXT_BLOCK
        chain = self._chains.get(block_size)
        if chain is None:
            if isinstance(self._token_ids, TokenIds):
                self._token_ids = read_token_ids(self._token_ids)
            chain = self._chains[block_size] = chain_of(self._token_ids, block_size, self.namespace)
        return chain


def read_token_ids(message: TokenIds) -> TokenArray:
    """The ids as an array.

    Protobuf hands out one Python integer at a time; to read a long prompt's wire format is twice as fast.
    """
    if len(message.ids) <= _SHORT:
        return np.array(message.ids[:], np.uint32)
    wire = np.frombuffer(message.SerializeToString() + b"\0\0\0", np.uint8)
    start = 1
    while wire[start] & 0x80:  # the length, after the field's tag
        start += 1
    wire = wire[start + 1 :]
    last = np.flatnonzero(wire[:-3] < 0x80)
    first = np.empty_like(last)
    first[0] = 0
    first[1:] = last[:-1] + 1
    sizes = last - first
    if sizes.max() > 3:  # an id from 2^28 on; no vocabulary is as large
        return np.array(message.ids[:], np.uint32)
    # Four bytes from each id's first on, without those of the next id; seven bits of each move together.
    four = np.ndarray((len(wire) - 3,), "<u4", wire.data, strides=(1,))[first]
    four &= _MASKS[sizes]
    joined: TokenArray = four & np.uint32(0x7F)
    joined |= (four & np.uint32(0x7F00)) >> np.uint32(1)
    joined |= (four & np.uint32(0x7F0000)) >> np.uint32(2)
    joined |= (four & np.uint32(0x7F000000)) >> np.uint32(3)
    return joined


_MASKS = np.array([0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF], np.uint32)
