"""What an upload asks for: its fields checked, and its file an image that every request could use."""

from dataclasses import dataclass

from server.errors import BadRequestError, Reason
from server.files.form import Form
from server.media.images import read_header, verify_pixels
from server.media.source import ImageError
from server.settings import Settings

PURPOSES = ("vision", "user_data")
MIN_LIFETIME_SECONDS = 3600
"""The shortest that OpenAI's API takes."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A checked upload."""

    content: bytes
    filename: str
    purpose: str
    lifetime_seconds: int


def check_upload(form: Form, settings: Settings) -> Upload:
    """Checks the fields, then decodes the image; blocking, so for a worker thread.

    Raises:
        BadRequestError: names the field.
    """
    if form.content is None:
        raise BadRequestError(Reason.INVALID_REQUEST, "Form field 'file' is missing.", param="file")
    purpose = form.texts.get("purpose")
    if purpose not in PURPOSES:
        told = "is missing" if purpose is None else f"is {purpose[:64]!r}"
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            f"Form field 'purpose' {told}, expected {' or '.join(PURPOSES)}: images are all that is kept here.",
            param="purpose",
        )
    lifetime_seconds = _lifetime_seconds(form, settings)
    content = bytes(form.content)
    try:
        read_header(content, settings.max_image_pixels)
        verify_pixels(content, settings.max_image_pixels)
    except ImageError as error:
        raise BadRequestError(Reason.INVALID_IMAGE, f"file: {error}.", param="file") from None
    return Upload(content=content, filename=form.filename, purpose=purpose, lifetime_seconds=lifetime_seconds)


def _lifetime_seconds(form: Form, settings: Settings) -> int:
    anchor, seconds = form.texts.get("expires_after[anchor]"), form.texts.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return settings.file_lifetime_seconds
    if anchor != "created_at":
        raise BadRequestError(
            Reason.INVALID_REQUEST, "expires_after[anchor]: expected created_at.", param="expires_after[anchor]"
        )
    longest = settings.file_lifetime_seconds
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
    if not is_number or not MIN_LIFETIME_SECONDS <= int(seconds or 0) <= longest:
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            f"expires_after[seconds]: expected {MIN_LIFETIME_SECONDS} to {longest}.",
            param="expires_after[seconds]",
        )
    return int(seconds or 0)
