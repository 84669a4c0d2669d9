"""The name under which the engine caches an image: its content, and whose it is."""

import base64
import secrets

from blake3 import blake3

# Twenty bytes are 32 letters; by chance alone, two images of one tenant never share them.
DIGEST_BYTES = 20
CONTEXT = "LAid gateway 2026-11 image identity"


class Identity:
    """Names images by a keyed hash.

    Without the secret nobody can tell the name of an image, and two tenants' names of the same image differ: neither
    a guessed name nor a timing tells one tenant what another has sent.
    """

    def __init__(self, secret: str | None) -> None:
        """`secret`: the same for all gateways whose names must agree; None makes one for this process alone."""
        material = secrets.token_bytes(32) if secret is None else secret.encode()
        self._key = blake3(material, derive_key_context=CONTEXT).digest()

    def of(self, content: bytes, tenant: str) -> str:
        """The name of an image's bytes for this tenant: 32 characters of base32, in lower case."""
        tenant_key = blake3(tenant.encode(), key=self._key).digest()
        return base64.b32encode(blake3(content, key=tenant_key).digest(DIGEST_BYTES)).decode().lower()
