"""A request taken apart: one form for every route, so that counting, images, lanes and relay exist once."""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.requests.answer_form import AnswerForm
from server.requests.conversation import Conversation
from server.requests.parameters import Parameters


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose names, shape and text were checked; of its images only their places are known."""

    parameters: Parameters
    """What the gateway itself acts on."""
    conversation: Conversation
    engine_parameters: Mapping[str, Any]
    """What the engine is asked beside the messages, by name; values of `msgspec.Raw` are the client's own JSON."""
    engine_path: str = "/v1/chat/completions"
    """Where in the engine this is answered."""
    form: AnswerForm | None = None
    """How the engine's answer is put for the client; None: as it is."""
