"""A GenerateRequest of which the prompt's token ids stay bytes, as they came and as they will be sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_transport.packed_ids import TokenArray, count_ids, ids_array, unpack_ids
from rhizome_transport.wire import cut, field

_TOKEN_IDS = GenerateRequest.DESCRIPTOR.fields_by_name["token_ids"].number


@dataclass(slots=True)
class SplitRequest:
    """A request in two parts.

    Attributes:
        head: the request without its token ids.
        prompt: its token ids, a serialised TokenIds; `None` where the prompt is something else.
    """

    head: GenerateRequest
    prompt: bytes | None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read a serialised GenerateRequest.

        Raises:
            DecodeError: it is none.
        """
        rest, prompt = cut(payload, _TOKEN_IDS)
        head = GenerateRequest.FromString(rest)
        if prompt is not None and head.WhichOneof("input"):
            # Two prompts, of which the later one counts; no library writes that.
            return cls.parse(GenerateRequest.FromString(payload).SerializeToString())
        return cls(head, prompt)

    @property
    def token_ids(self) -> TokenArray:
        """[n] the prompt.

        Raises:
            DecodeError: it is no TokenIds.
        """
        return ids_array(self.head.token_ids) if self.prompt is None else unpack_ids(self.prompt)

    @property
    def prompt_tokens(self) -> int:
        """How many token ids the prompt has.

        Raises:
            DecodeError: it is no TokenIds.
        """
        return len(self.head.token_ids.ids) if self.prompt is None else count_ids(self.prompt)

    def append(self, token_ids: Iterable[int]) -> None:
        """Make the prompt longer."""
        self.prompt = (self.prompt or b"") + TokenIds(ids=token_ids).SerializeToString()

    def serialize(self) -> bytes:
        """The whole request."""
        head = self.head.SerializeToString()
        return head if self.prompt is None else head + field(_TOKEN_IDS, self.prompt)


AnyRequest = GenerateRequest | SplitRequest
"""A request that is to be sent; which it is makes no difference to who receives it."""
