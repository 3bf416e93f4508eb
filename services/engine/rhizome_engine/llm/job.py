"""One call of the library: its requests in the core, and what came of them so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import Event, FailedEvent, FinishedEvent
from rhizome_engine.llm.answer import Answer
from rhizome_engine.llm.outputs import Delta

AnswerT = TypeVar("AnswerT", bound=Answer)


class Job(Generic[AnswerT]):
    """Stands where its requests have their peer, so that events find back to it.

    Everything but `deltas`, `done` and `error` is for whoever steps the core.

    Args:
        answers: one per request, in order; the ids of the requests are their places.
        streams: keep what is added to the first answer; else only the ends matter.

    Attributes:
        answers: the same.
        deltas: what was added and nobody has taken yet.
        done: nothing more will come.
        error: why it failed, if it did.
    """

    def __init__(self, answers: Sequence[AnswerT], *, streams: bool = False) -> None:
        self.answers = answers
        self.deltas: deque[Delta] = deque()
        self.done = not answers
        self.error: BaseException | None = None
        self._streams = streams
        self._left = len(answers)
        for answer in answers:
            answer.request.peer = self

    def start(self, core: EngineCore) -> None:
        """Queue all requests; where one is refused, none runs and the job failed."""
        requests = [answer.request for answer in self.answers]
        try:
            if requests and requests[0].embedding is not None:
                core.add_together(requests)
            else:
                for request in requests:
                    core.add(request)
        except Exception as error:
            self.end(core, error)

    def end(self, core: EngineCore, error: BaseException | None = None) -> None:
        """Give up what is still open."""
        core.drop_peer(self)
        self.error = error
        self.done = True

    def take(self, event: Event, core: EngineCore) -> bool:
        """Note an event of one of the requests; True when whoever waits has something to look at."""
        if self.done:
            return False
        if isinstance(event, FailedEvent):
            self.end(core, event.error)
            return True
        answer = self.answers[int(event.request.request_id)]
        had_stopped = answer.found_stop
        delta = answer.take(event)
        if answer.found_stop and not had_stopped:
            core.cancel(event.request.request_id, self, satisfied=True)
        if delta is not None and self._streams:
            self.deltas.append(delta)
        if isinstance(event, FinishedEvent):
            self._left -= 1
            self.done = not self._left  # last of all: another thread may be looking
        return self.done or bool(self.deltas)
