"""Grammars in GBNF, rewritten as Lark.

GBNF has rules only, over characters; Lark as llguidance reads it has rules over terminals. A rule that does
not reach itself is a regular expression and becomes a terminal; of a rule that does, the longest runs without
such a rule in them become terminals. So a grammar without recursion is followed exactly. With recursion, a
terminal takes as many characters as it can: every output belongs to the grammar, but where one terminal could
swallow the beginning of the next (`[a-z]+` before `"end"`), some texts of the grammar cannot come out. A rule
that ends in a loop over characters that may also follow it (white space before a line break) can keep a text
from ending: its author leaves them out of the loop, or writes loop and end into one rule without recursion.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rhizome_grammar.gbnf import Either, Name, Node, Regex, Sequence, Text, Times, read_gbnf
from rhizome_grammar.spec import lark_string


def gbnf_to_lark(text: str) -> str:
    """Rewrite a grammar; it begins with the rule `root`.

    Raises:
        ValueError: it is no GBNF, has no such rule, or refers to one that it does not have.
    """
    rules = read_gbnf(text)
    if "root" not in rules:
        raise ValueError("grammar has no rule named root")
    return _Writer(rules).lark()


class _Writer:
    """Rules to Lark."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._regular = _regular_rules(rules)
        self._names = {
            name: f"T{place}" if name in self._regular else f"r{place}" for place, name in enumerate(rules)
        }
        self._parts: list[str] = []

    def lark(self) -> str:
        lines = [f"start: {self._names['root']}"]
        for name, node in self._rules.items():
            written = self._terminal(node) if name in self._regular else self._rule(node)
            lines.append(f"{self._names[name]}: {written}")
        return "\n".join([*lines, *self._parts]) + "\n"

    def _is_regular(self, node: Node) -> bool:
        return all(name in self._regular for name in _named(node))

    def _rule(self, node: Node) -> str:
        """A node of a rule that reaches itself."""
        if self._is_regular(node):
            return self._as_terminal((node,))
        match node:
            case Either():
                return "(" + " | ".join([self._rule(option) for option in node.options]) + ")"
            case Times():
                return f"({self._rule(node.node)}){_times(node)}"
            case Sequence():
                return " ".join(self._runs(node.items))
        return self._terminal(node)

    def _runs(self, items: tuple[Node, ...]) -> Iterator[str]:
        for regular, run in groupby(items, self._is_regular):
            if regular:
                yield self._as_terminal(tuple(run))
            else:
                yield from map(self._rule, run)

    def _as_terminal(self, nodes: tuple[Node, ...]) -> str:
        node = nodes[0] if len(nodes) == 1 else Sequence(nodes)
        written = self._terminal(node)
        if isinstance(node, Text | Regex | Name):
            return written
        name = f"P{len(self._parts)}"
        self._parts.append(f"{name}: {written}")
        return name

    def _terminal(self, node: Node) -> str:
        match node:
            case Text():
                return lark_string(node.text)
            case Regex():
                return f"/{node.pattern}/"
            case Name():
                return self._names[node.name]
            case Sequence():
                return " ".join(map(self._terminal, node.items)) or '""'
            case Either():
                return "(" + " | ".join(map(self._terminal, node.options)) + ")"
            case Times():
                return f"({self._terminal(node.node)}){_times(node)}"


def _times(node: Times) -> str:
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


def _named(node: Node) -> Iterator[str]:
    """The rules that a node refers to."""
    pending = [node]
    while pending:
        match pending.pop():
            case Name(name):
                yield name
            case Sequence(nodes) | Either(nodes):
                pending += nodes
            case Times(repeated, _, _):
                pending.append(repeated)


def _regular_rules(rules: dict[str, Node]) -> frozenset[str]:
    """Rules that lead to no recursion: those without references first, then those that need only such."""
    needed = {name: set(_named(node)) for name, node in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, names in needed.items():
        for one in names:
            if one not in users:
                raise ValueError("grammar refers to a rule that it does not have")
            users[one].append(name)
    missing = {name: len(names) for name, names in needed.items()}
    ready = [name for name, count in missing.items() if not count]
    for name in ready:  # grows while it is read
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return frozenset(ready)
