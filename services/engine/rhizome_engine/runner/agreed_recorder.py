"""Recording steps on all ranks or on none: a recorded step and one that is not call other operations."""

from __future__ import annotations

from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.runner.recording import Compute, Recorder, Recording, RecordingError


class AgreedRecorder:
    """See `Recorder`.

    Args:
        recorder: of this rank.
        group: the ranks, which record the same steps in the same order.
    """

    def __init__(self, recorder: Recorder, group: RankGroup) -> None:
        self.name = f"{recorder.name} on {group.size} ranks"
        self._recorder = recorder
        self._group = group

    def record(self, compute: Compute) -> Recording:
        """See `Recorder.record`.

        Raises:
            RecordingError: this rank could not record it, or another one could not.
        """
        try:
            recording = self._recorder.record(compute)
        except RecordingError:
            self._group.least(0)
            raise
        if not self._group.least(1):
            raise RecordingError("another rank could not record it; its log says why")
        return recording
