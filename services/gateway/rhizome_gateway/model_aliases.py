"""Other names under which clients may ask for the served model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ANY = "*"


class ModelAliases:
    """What a name stands for.

    Args:
        entries: `NAME=TARGET`, where the target is a served name; `*=TARGET` takes every other name, and `*`
            alone every name for whatever is served.

    Raises:
        ValueError: an entry is not of this form, or one name has two targets.
    """

    def __init__(self, entries: Sequence[str] = ()) -> None:
        targets: dict[str, str] = {}
        for entry in entries:
            name, _, target = (part.strip() for part in entry.partition("="))
            if not name or not (target or entry.strip() == ANY):
                raise ValueError(
                    f"'{entry}' is no alias; write NAME=TARGET, or '*' for a server that takes any name"
                )
            if targets.setdefault(name, target) != target:
                raise ValueError(f"the alias '{name}' is given twice, with different targets")
        self._wildcard = targets.pop(ANY, None)
        self._targets: Mapping[str, str] = targets

    def means(self, name: str, served: str) -> bool:
        """Whether a client that asks for `name` gets the model that is served as `served`."""
        if name == served:
            return True
        target = self._targets.get(name, self._wildcard)
        return target is not None and target in ("", served)

    def names(self, served: str) -> list[str]:
        """What `served` can be called: first that, then its aliases; a wildcard has no name."""
        return [served, *(name for name, target in self._targets.items() if target == served != name)]
