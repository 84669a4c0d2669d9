"""Which engine a request belongs to: the one that most likely holds its images and its prefix already."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from server.requests.conversation import Conversation, ImagePart, TextPart

# Requests that begin alike for longer than this share most of their prefix, and may share an engine.
MAX_BEGINNING = 1024


def affinity_key(tenant: str, conversation: Conversation, image_names: Sequence[str]) -> bytes:
    """What a conversation's turns, and questions about the same images, have in common.

    That is the images up to the end of the first user's message or, where there are none, the beginning of its text:
    both stay as they are while a conversation grows.

    Args:
        tenant: whose request it is.
        conversation: the messages, or plain prompts, of which the first counts.
        image_names: of all its images, in order.
    """
    num_images = 0
    text = "".join(str(prompt[:MAX_BEGINNING]) for prompt in conversation.prompts[:1])
    for message in conversation.messages:
        parts = message.parts()
        num_images += sum(isinstance(part, ImagePart) for part in parts)
        text = "".join(part.text for part in parts if isinstance(part, TextPart))
        if message.role == "user":
            break
    beginning = image_names[:num_images] or [text[:MAX_BEGINNING]]
    return blake2b("\0".join([tenant, *beginning]).encode(), digest_size=16).digest()


def rank(key: bytes, names: Iterable[str]) -> list[str]:
    """The names in the order in which this key asks them: rendezvous hashing (Thaler and Ravishankar, 1998).

    Every gateway finds the same order without asking another, and an engine that comes or goes moves only the keys
    that will be, or were, its own.
    """
    return sorted(names, key=lambda name: blake2b(name.encode(), key=key, digest_size=8).digest())
