"""Typed access to a checkpoint's JSON files, with errors that name the file and the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rhizome_engine.checkpoint.errors import CheckpointError


class JsonFields:
    """A JSON object read from a file.

    A key whose value is null counts as absent; `nulls` is for those keys whose default is not "none".

    Args:
        values: the object.
        where: the file (and the key inside it), for messages.

    Attributes:
        nulls: keys whose value is null.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self.nulls = frozenset(key for key, value in values.items() if value is None)
        self.where = where

    @classmethod
    def read(cls, path: Path) -> JsonFields:
        """Read an object from a file.

        Raises:
            CheckpointError: the file is absent, is no JSON or holds no object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} does not exist; a checkpoint holds config.json, tokenizer.json and safetensors"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
        return cls(values, str(path))

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`.

        Raises:
            CheckpointError: absent without a default, not an integer, or too small.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.bad(key, f"an integer of at least {minimum}")
        return value

    def number(self, key: str, default: float | None = None, *, zero_allowed: bool = False) -> float:
        """Return a finite number greater than 0, or 0 where that is allowed.

        Raises:
            CheckpointError: absent without a default, not a number, or too small.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.bad(key, "a number")
        if value < 0 or (value == 0 and not zero_allowed):
            raise self.bad(key, "a number of at least 0" if zero_allowed else "a number greater than 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            CheckpointError: something else stands there.
        """
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return token ids that are written as one integer or as a list; absent gives none.

        Raises:
            CheckpointError: something else stands there.
        """
        value = self.values.get(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.bad(key, "a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))

    def section(self, key: str) -> JsonFields | None:
        """Return a nested object, None where it is absent.

        Raises:
            CheckpointError: it is not an object.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return JsonFields(value, f"{self.where}: {key}")

    def bad(self, key: str, expected: str) -> CheckpointError:
        """Say that a key's value is not what was expected."""
        found = json.dumps(self.values[key]) if key in self.values else "absent"
        return CheckpointError(f"{self.where}: {key} must be {expected}, but it is {found}")

    def _get(self, key: str, default: Any) -> Any:
        return self.values.get(key, default)
