"""Frames that wait: order, credit, control first."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_transport.frame_queue import FrameQueue

STEPS = st.lists(st.one_of(st.just("event"), st.just("control"), st.integers(1, 5)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(credit=st.integers(0, 5), steps=STEPS)
def test_never_exceeds_credit_keeps_order_and_holds_no_control_frame_back(credit, steps):
    async def run() -> None:
        queue = FrameQueue(credit)
        written: list[bytes] = []

        async def write() -> None:
            while (item := await queue.next()) is not None:
                written.append(item[0])

        writer = asyncio.create_task(write())
        allowed, events, controls = credit, [], []
        for number, step in enumerate(steps):
            if step == "event":
                events.append(b"e%d" % number)
                queue.put_events(events[-1])
            elif step == "control":
                controls.append(b"c%d" % number)
                queue.put_control(controls[-1])
            else:
                allowed += step
                queue.add_credit(step)
            for _ in range(3):
                await asyncio.sleep(0)
            assert [frame for frame in written if frame.startswith(b"c")] == controls
            assert [frame for frame in written if frame.startswith(b"e")] == events[:allowed]
        queue.add_credit(len(events))
        await asyncio.wait_for(queue.flushed(), 5)
        assert [frame for frame in written if frame.startswith(b"e")] == events
        queue.put_control(b"late")
        queue.close()
        await asyncio.wait_for(writer, 5)
        assert b"late" not in written

    asyncio.run(run())
