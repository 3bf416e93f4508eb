"""What an exchange needs from the client's connection."""

from __future__ import annotations

from typing import Protocol


class Client(Protocol):
    """The client's connection.

    Attributes:
        deadline: when `Exchange.expire` is called, in the loop's time.
        write_paused: whether the client reads too slowly.
    """

    deadline: float
    write_paused: bool

    def write(self, data: bytes) -> None:
        """Send to the client."""

    def hold_upload(self, held: bool) -> None:
        """Stop reading the request's body, or go on."""

    def done(self, keep_alive: bool) -> None:
        """The response is complete."""

    def break_off(self, *, reset: bool) -> None:
        """End the connection in the middle of a response.

        Args:
            reset: whether an orderly end would look like the end of the response.
        """
