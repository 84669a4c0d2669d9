"""What is known of one request, filled in by its steps and read by logs, metrics and traces."""

from dataclasses import dataclass, field

from server.errors import Reason
from server.telemetry.context_class import ContextClass
from server.telemetry.phases import Phases


@dataclass(slots=True)
class Record:
    """One request; in its ASGI scope as `scope["state"]["record"]`. Numbers and names only, never content."""

    request_id: str
    phases: Phases = field(default_factory=Phases)
    context_class: ContextClass = ContextClass.UNCOUNTED
    status: int | None = None
    """Of the response, once it has begun."""
    error: Reason | None = None
    """Why it failed, be it with an error response or with an event inside its stream."""
    headers: dict[str, str] = field(default_factory=dict)
    """What the answer carries, be it a success or an error."""
    engine_headers: dict[str, str] = field(default_factory=dict)
    """What the engine gets beside the request's id."""
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    num_images: int | None = None
    completion_tokens: int | None = None
    """By the engine's usage."""
