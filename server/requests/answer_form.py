"""What a route must know to answer in a form other than the engine's."""

from typing import Any, Protocol

from server.errors import GatewayError


class AnswerForm(Protocol):
    """Puts one answer of the engine, whole or as a stream of chunks, into the form of a route; used once.

    A stream is `opening`, any number of `chunk`, and `closing`; after `failed` nothing but an empty `closing` follows.
    """

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The client's whole answer for the engine's."""

    def opening(self) -> bytes:
        """The stream's first events."""

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """The events for one chunk of the engine's; none is the empty string."""

    def failed(self, error: GatewayError) -> bytes:
        """The events for an error inside the stream."""

    def closing(self) -> bytes:
        """The stream's last events."""
