"""A Lark grammar while it is put together."""

from __future__ import annotations

from collections.abc import Sequence

from rhizome_grammar.spec import Grammar


class Rules:
    """Rules and parts of one grammar.

    Attributes:
        params: the field of the request from which each part came, by the part's name.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[Grammar, str] = {}
        self.params: dict[str, str] = {}

    def add(self, name: str, body: str) -> None:
        """Add a rule; an element of a body is never text of a client unless it is quoted."""
        self._lines.append(f"{name}: {body}")

    def add_choice(self, name: str, bodies: Sequence[str]) -> None:
        """Add a rule with alternatives."""
        self.add(name, "\n  | ".join(bodies))

    def add_part(self, kind: str, grammar: Grammar, param: str) -> str:
        """Add a grammar of its own, equal ones once; returns how a rule refers to it."""
        name = self._names.setdefault(grammar, f"{kind}_{len(self._names)}")
        self.params.setdefault(name, param)
        return f"@{name}"

    def grammar(self) -> Grammar:
        """All of it.

        Raises:
            ValueError: it is too large, or has too many parts.
        """
        parts = tuple(sorted((name, grammar) for grammar, name in self._names.items()))
        return Grammar("lark", "\n".join(self._lines) + "\n", parts=parts)
