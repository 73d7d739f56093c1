"""What a user typed, as text. Python hands on bytes that are no text as lone surrogates, which nothing can encode."""

from __future__ import annotations

import os

from mlx_ltx2.errors import RequestError


def valid_text(what: str, text: str) -> str:
    """The text itself; what a terminal with another locale garbled, as the UTF-8 that it was typed in.

    what: the noun of the message, such as "prompt". Raises: RequestError for bytes that are no UTF-8.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        place = error.start
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise RequestError(
            f"the {what} holds a byte at character {place + 1} that is no UTF-8; write it in UTF-8."
        ) from None
