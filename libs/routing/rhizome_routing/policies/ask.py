"""What a policy needs to know of a request, whichever face it came in by."""

from __future__ import annotations

from typing import Self

from rhizome_routing.prefix.chain import TEXT_BLOCK, TEXT_TOKEN_BYTES, Chain, chain_of, chain_of_text
from rhizome_transport.packed_ids import TokenArray, unpack_ids
from rhizome_transport.split_request import SplitRequest


class Ask:
    """A prompt to be placed.

    Args:
        prompt: [n] token ids, or a serialised TokenIds, read when it has to be; text where `is_text`.
        namespace: requests share cached prefixes only within one.
        affinity_key: requests with the same one should meet at one backend; empty for none.
        is_text: nobody has tokenised the prompt.
    """

    __slots__ = ("_chains", "_prompt", "affinity_key", "is_text", "namespace")

    def __init__(
        self,
        prompt: TokenArray | bytes,
        *,
        namespace: str = "",
        affinity_key: str = "",
        is_text: bool = False,
    ) -> None:
        self._prompt = prompt
        self.namespace = namespace
        self.affinity_key = affinity_key
        self.is_text = is_text
        self._chains: dict[int, Chain] = {}

    @classmethod
    def of_text(cls, text: bytes, *, namespace: str = "", affinity_key: str = "") -> Self:
        """A prompt as text, such as a serialised conversation: what comes first must come first in `text`."""
        return cls(text, namespace=namespace, affinity_key=affinity_key, is_text=True)

    @classmethod
    def of_generation(cls, request: SplitRequest) -> Self:
        """A request of the gRPC face; without an affinity key its tenant stands in, or its namespace."""
        head = request.head
        namespace = head.cache_namespace
        key = head.affinity_key or head.tenant or namespace
        match head.WhichOneof("input"):
            case "text":
                return cls.of_text(head.text.encode(), namespace=namespace, affinity_key=key)
            case "messages":
                turns = head.messages.SerializeToString(deterministic=True)
                return cls.of_text(turns, namespace=namespace, affinity_key=key)
        return cls(request.prompt or b"", namespace=namespace, affinity_key=key)

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is; a guess where it is text.

        Raises:
            DecodeError: it was given as bytes that are no TokenIds.
        """
        if self.is_text:
            return len(self._prompt) // TEXT_TOKEN_BYTES
        return len(self._read())

    def chain(self, block_size: int) -> Chain:
        """The prompt's prefixes in blocks of `block_size` tokens; computed once.

        Raises:
            DecodeError: the prompt was given as bytes that are no TokenIds.
        """
        if self.is_text:
            block_size = TEXT_BLOCK
        chain = self._chains.get(block_size)
        if chain is None:
            if self.is_text:
                assert isinstance(self._prompt, bytes)
                chain = chain_of_text(self._prompt, self.namespace)
            else:
                chain = chain_of(self._read(), block_size, self.namespace)
            self._chains[block_size] = chain
        return chain

    def _read(self) -> TokenArray:
        if isinstance(self._prompt, bytes):
            self._prompt = unpack_ids(self._prompt)
        return self._prompt
