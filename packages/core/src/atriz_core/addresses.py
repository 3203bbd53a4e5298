"""E-mail addresses: in one form, so that the same means the same, and nothing that only looks like one."""

from __future__ import annotations

import re
import unicodedata

from atriz_core.errors import InputError
from atriz_core.models import EMAIL_FORM

_LONGEST = 254
_FORM = re.compile(EMAIL_FORM.replace("''", "'"))  # as in SQL, where a quote is doubled


def normalised(email: str) -> str:
    """Return an address as it is stored: in lower case, without white space around it.

    Nothing else is changed. A letter outside of ASCII is refused, and never folded to one that looks alike: that would
    make somebody else's address of it. Domains of other scripts are written in their ``xn--`` form.

    Raise `InputError` if it is no address, or has such a letter.

    >>> normalised(" Ada@Example.com ")
    'ada@example.com'
    """
    text = email.strip(" \t\r\n")
    for character in text[:_LONGEST]:
        if not character.isascii():
            name = unicodedata.name(character, "a character without a name")
            raise InputError(
                "email",
                f"The e-mail address has {name} in it, and only ASCII can be taken. Write another address, or a domain "
                "of another script in its xn-- form.",
            )
    text = text.lower() if text.isascii() else text
    if len(text) > _LONGEST or _FORM.fullmatch(text) is None:
        raise InputError("email", "This is not an e-mail address. One looks like ada@example.com.")
    return text
