"""What a misspelt name probably means."""

import difflib
import unicodedata
from collections.abc import Iterable


def plain(name: str) -> str:
    """Without what people do not see: upper and lower case, how an accent is encoded, blanks around it."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most alike, None if none is."""
    by_form = {plain(one): one for one in sorted(known)}
    near = difflib.get_close_matches(plain(name), by_form, 1)
    return by_form[near[0]] if near else None


def did_you_mean(name: str | None) -> str:
    """A question to end a message with, nothing without a name."""
    return f" Did you mean {name}?" if name else ""
