"""What an access token is good for: scope words (RFC 6749 3.3) and resources (RFC 8707), as sets in the granted order.

Nothing here knows a grant: each function takes what was granted, what is carried, what the client may have, and what
was asked, and says what comes of it.
"""

import re
from functools import lru_cache

from ledger.events import Words
from ledger.policy import ScopeMode
from ledger.refusals import Refusal, Refused

OFFLINE_ACCESS = "offline_access"
"""Clients add this word to every request, granted or not (OpenID Connect Core 11): it never makes one fail."""

_WORD = r"[\x21\x23-\x5b\x5d-\x7e]+"
_WORD_ALONE = re.compile(_WORD)
_SCOPE = re.compile(f"{_WORD}(?: {_WORD})*")
_MALFORMED = "scope must be words of printable ASCII with one space between"


def parse(text: str) -> Words:
    """Read a `scope` parameter: words separated by exactly one space, each once, in the order given; "" is ().

    Raises Refused(INVALID_SCOPE) for any other syntax, leading, trailing and double spaces included (RFC 6749 3.3).
    """
    if not text:
        return ()
    if _SCOPE.fullmatch(text) is None:
        raise Refused(Refusal.INVALID_SCOPE, detail=_MALFORMED)
    return distinct(tuple(text.split(" ")))


def distinct(words: Words) -> Words:
    """Each word once, where it stood first."""
    return tuple(dict.fromkeys(words))


@lru_cache(maxsize=1024)  # there are few scopes, and each is asked about all day
def within(words: Words, allowed: Words) -> Words:
    """The words that are allowed, in their order."""
    return tuple(word for word in words if word in allowed)


def granted_scope(asked: Words, allowed: Words) -> Words:
    """The scope of a new grant. Raises Refused(INVALID_SCOPE) beyond what the client may have, as what is no word of a
    scope always is."""
    for word in asked:
        if word not in allowed:
            well_formed = all(map(_WORD_ALONE.fullmatch, asked))
            detail = "scope goes beyond what the client may have" if well_formed else _MALFORMED
            raise Refused(Refusal.INVALID_SCOPE, detail=detail)
    return distinct(asked)


def resolve(
    asked: Words | None, granted: Words, carried: Words, allowed: Words, mode: ScopeMode
) -> tuple[Words, Words]:
    """The scope of one access token, and what the grant carries from then on (RFC 6749 6; V11–V19).

    `allowed` is what the client may have now: with `granted` it is the ceiling. Nothing asked is what is carried,
    clamped by the ceiling, and what is clamped comes back with the client's right to it; what is asked is carried from
    then on. Both results are in the granted order.
    Raises Refused: INVALID_SCOPE beyond the ceiling (`ratchet`: beyond what is carried), NO_SCOPE_LEFT where the
    client's ceiling has emptied what is carried.
    """
    standing = within(carried, allowed)
    if asked:
        bound = standing if mode == "ratchet" else within(granted, allowed)
        wanted = {word for word in asked if word != OFFLINE_ACCESS or word in bound}
        if wanted:
            if not wanted.issubset(bound):
                well_formed = all(map(_WORD_ALONE.fullmatch, wanted))
                detail = "scope goes beyond what this grant may have" if well_formed else _MALFORMED
                raise Refused(Refusal.INVALID_SCOPE, detail=detail)
            scope = tuple(word for word in granted if word in wanted)
            return scope, carried if mode == "rfc6749" else scope
    if carried and not standing:
        raise Refused(Refusal.NO_SCOPE_LEFT, detail="the client may have no scope of this grant any more")
    return standing, carried


def granted_resource(asked: Words | None, allowed: Words) -> Words | None:
    """The resources of a new grant: those asked for, else the client's first, else None, the issuer (RFC 8707 2)."""
    return narrowed_resource(asked, allowed) if asked else allowed[:1] or None


def narrowed_resource(asked: Words, granted: Words) -> Words:
    """Of the granted resources those asked for, as they were spelled when granted (RFC 8707 2.2).

    A slash that is the whole path may be there or not. Raises Refused(INVALID_TARGET) for any that was not granted.
    """
    wanted = {_without_empty_path(resource) for resource in asked}
    found = tuple(resource for resource in granted if _without_empty_path(resource) in wanted)
    if len({_without_empty_path(resource) for resource in found}) != len(wanted):
        raise Refused(Refusal.INVALID_TARGET, detail="resource goes beyond what was granted")
    return found


def meets(audience: Words, resources: Words) -> bool:
    """Whether one of the resources is of that audience. A slash that is the whole path may be there or not."""
    wanted = {_without_empty_path(resource) for resource in resources}
    return any(_without_empty_path(resource) in wanted for resource in audience)


def _without_empty_path(resource: str) -> str:
    return resource[:-1] if resource.endswith("/") and resource.count("/") == 3 else resource
