"""The body that the engine gets for a draft."""

import msgspec

from server.requests.draft import Draft


def engine_body(draft: Draft) -> bytes:
    """JSON of the parameters and messages; values that are the client's own JSON are copied, not read again."""
    return msgspec.json.encode({**draft.engine_parameters, "messages": draft.conversation.messages})
