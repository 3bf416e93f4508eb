"""The engine core: one loop of receive, schedule, run, emit."""
