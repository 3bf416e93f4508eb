"""The route `/simulate`: how a server fails, and what it did."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from rhizome_launcher.simulate.engine import Engine
from rhizome_launcher.simulate.faults import Faults
from rhizome_launcher.simulate.heart import Heart
from rhizome_launcher.simulate.http.connection import Answer, HttpRequest

_CRASH_CODE: Final = 70


class Administration:
    """Changes what is wrong with a server.

    Args:
        engine: its engine.
        heart: drives it.
        faults: what is changed.
        refuse: lets nobody in for so many seconds; absent where the server cannot.
        changed: called after every change.
        missing: faults that this server does not know.
    """

    def __init__(
        self,
        engine: Engine,
        heart: Heart,
        faults: Faults,
        *,
        refuse: Callable[[float], None] | None = None,
        changed: Callable[[], None] = lambda: None,
        missing: frozenset[str] = frozenset(),
    ) -> None:
        self._engine = engine
        self._heart = heart
        self._faults = faults
        self._refuse = refuse
        self._changed = changed
        self._missing = missing

    def answer(self, request: HttpRequest) -> Answer:
        """GET says how it is, POST changes some faults, DELETE ends them all."""
        try:
            if request.method == "POST":
                changes = orjson.loads(request.body)
                if not isinstance(changes, dict):
                    raise ValueError("the body must be a JSON object of faults")
                self.break_down(changes)
            elif request.method == "DELETE":
                self._faults.change(dataclasses.asdict(Faults()))
                self._apply()
        except orjson.JSONDecodeError:
            return Answer.error(400, "the body must be JSON")
        except ValueError as error:
            return Answer.error(400, str(error))
        return Answer.json(self.state())

    def break_down(self, changes: Mapping[str, Any]) -> None:
        """Change what is wrong.

        Raises:
            ValueError: see `Faults.change`; or this kind of server does not know the fault.
        """
        unknown = self._missing & changes.keys()
        if unknown:
            raise ValueError(f"this kind of server does not know {', '.join(sorted(unknown))}")
        self._faults.change(changes)
        self._apply()
        if self._faults.crash:
            os._exit(_CRASH_CODE)
        if changes.get("refuse_s") and self._refuse is not None:
            self._refuse(self._faults.refuse_s)

    def state(self) -> dict[str, Any]:
        """Faults and figures."""
        engine = self._engine
        return {
            "faults": dataclasses.asdict(self._faults),
            "running": engine.running,
            "waiting": engine.waiting,
            "kv_usage": engine.kv_usage,
            "hit_rate": engine.hit_rate,
            "tokens_per_s": engine.tokens_per_s(self._heart.now()),
            "totals": dataclasses.asdict(engine.totals),
        }

    def _apply(self) -> None:
        self._engine.latency = self._faults.latency
        self._changed()
