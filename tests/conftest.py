"""Property tests draw the same examples in every run, however slow the machine is.

So a change fails for what it changes, not for what chance finds. `pytest --hypothesis-profile=explore` draws
new examples each time, to look for more.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")
