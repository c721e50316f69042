"""Scope words (RFC 6749 3.3, 6; V11–V19) and resources (RFC 8707), as sets in the granted order."""

from collections.abc import Callable
from itertools import combinations
from typing import get_args

import pytest

from ledger.events import Words
from ledger.policy import ScopeMode
from ledger.refusals import Refusal, Refused
from ledger.scope import (
    OFFLINE_ACCESS,
    distinct,
    granted_resource,
    granted_scope,
    narrowed_resource,
    parse,
    resolve,
    within,
)

GRANTED = ("read", "openid", "profile")
ALLOWED = ("write", "profile", "openid", "read")
MODES: tuple[ScopeMode, ...] = get_args(ScopeMode)


def refusal_of(call: Callable[..., object], *arguments: object) -> Refusal:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert "secret-word" not in str(caught.value), "what was sent is never echoed (V18)"
    return caught.value.refusal


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), ""),
        (("read",), "read"),
        (("read", "openid", "profile"), "read openid profile"),
        (("read",), "read read"),
        (("b", "a"), "b a b"),
        (("urn:x:y/z?a=b#c", "!#[]~"), "urn:x:y/z?a=b#c !#[]~"),
        (("READ", "read"), "READ read"),
    ],
)
def test_a_scope_is_words_with_one_space_between(words: Words, text: str) -> None:
    """RFC 6749 3.3: order kept, each word once, case told apart."""
    assert words == parse(text)


@pytest.mark.parametrize(
    "text",
    [" ", "read  profile", " read", "read ", 're"ad', "re\\ad", "re\x7fad", "réad", "a\tb", "a\nb", "read\n", "\x00",
     "secret-word\u2028", "a\u00a0b", "\ufeffread"],
)  # fmt: skip
def test_any_other_syntax_is_refused(text: str) -> None:
    """V17, V18: doubled, leading and trailing spaces included, the same every time."""
    assert Refusal.INVALID_SCOPE == refusal_of(parse, text)


def test_a_malformed_scope_is_not_said_to_go_beyond_the_grant() -> None:
    """RFC 6749 5.2: who sends two spaces in a refresh is told of the syntax, who asks for more of the grant."""
    for asked, said in ((("read", "", "openid"), "one space between"), (("read", "admin"), "goes beyond")):
        with pytest.raises(Refused, match=said):
            resolve(asked, GRANTED, GRANTED, ALLOWED, "sticky")


def test_within_keeps_the_order_of_its_first_argument() -> None:
    """Clamping cuts and never sorts; the same question again gives the very object: the hot path allocates nothing."""
    assert GRANTED == within(GRANTED, ALLOWED)
    assert within(GRANTED, ALLOWED) is within(GRANTED, ALLOWED)
    assert ("read", "profile") == within(GRANTED, ("profile", "read", "x"))
    assert () == within(GRANTED, ())
    assert ("a", "b") == distinct(("a", "b", "a", "b"))


def test_a_new_grant_has_what_was_asked_within_what_the_client_may_have() -> None:
    """RFC 6749 3.3; without scope, as in the tutorial's first example, it has none."""
    assert ("profile", "read") == granted_scope(("profile", "read", "profile"), ALLOWED)
    assert () == granted_scope((), ALLOWED)
    assert Refusal.INVALID_SCOPE == refusal_of(granted_scope, ("read", "admin"), ALLOWED)


# ---------------------------------------------------------------- one access token's scope

NARROW = ("read", "profile")


@pytest.mark.parametrize(
    ("mode", "carried", "asked", "scope", "carried_after"),
    [
        # omitted or empty: what is carried
        ("sticky", GRANTED, None, GRANTED, GRANTED),
        ("sticky", NARROW, (), NARROW, NARROW),
        ("rfc6749", NARROW, None, NARROW, NARROW),
        ("ratchet", NARROW, None, NARROW, NARROW),
        # a subset: narrowed
        ("sticky", GRANTED, ("profile", "read"), NARROW, NARROW),
        ("rfc6749", GRANTED, ("profile", "read"), NARROW, GRANTED),
        ("ratchet", GRANTED, ("profile", "read"), NARROW, NARROW),
        # wider than carried, within the ceiling
        ("sticky", ("read",), ("openid", "read"), ("read", "openid"), ("read", "openid")),
        ("rfc6749", ("read",), ("openid", "read"), ("read", "openid"), ("read",)),
        ("ratchet", ("read",), ("openid", "read"), Refusal.INVALID_SCOPE, None),
        # some words dropped, others added
        ("sticky", ("read", "openid"), ("profile",), ("profile",), ("profile",)),
        ("rfc6749", ("read", "openid"), ("profile",), ("profile",), ("read", "openid")),
        ("ratchet", ("read", "openid"), ("profile",), Refusal.INVALID_SCOPE, None),
        # the same set: nothing changes, whatever the order, however often
        ("sticky", GRANTED, ("profile", "openid", "read", "read"), GRANTED, GRANTED),
        ("ratchet", NARROW, ("profile", "read"), NARROW, NARROW),
        # beyond the ceiling: what the client may have but was not granted, or never existed
        ("sticky", GRANTED, ("read", "write"), Refusal.INVALID_SCOPE, None),
        ("rfc6749", GRANTED, ("read", "admin"), Refusal.INVALID_SCOPE, None),
        ("sticky", GRANTED, ("READ",), Refusal.INVALID_SCOPE, None),
    ],
)
def test_scope_modes(
    mode: ScopeMode, carried: Words, asked: Words | None, scope: Words | Refusal, carried_after: Words | None
) -> None:
    """The table of modes: sticky as the tutorial has it, RFC 6749 6 to the letter, and a ratchet."""
    if isinstance(scope, Refusal):
        assert scope == refusal_of(resolve, asked, GRANTED, carried, ALLOWED, mode)
    else:
        assert (scope, carried_after) == resolve(asked, GRANTED, carried, ALLOWED, mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_clients_ceiling_clamps_and_changes_nothing_that_is_carried(mode: ScopeMode) -> None:
    """A word that the client may not have now comes back with its right to it, unless less was asked for since."""
    assert (NARROW, GRANTED) == resolve(None, GRANTED, GRANTED, ("profile", "read"), mode)
    after = GRANTED if mode == "rfc6749" else NARROW
    assert (NARROW, after) == resolve(("profile", "read"), GRANTED, GRANTED, ("profile", "read"), mode)
    assert Refusal.INVALID_SCOPE == refusal_of(resolve, ("openid",), GRANTED, GRANTED, ("profile", "read"), mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_ceiling_that_empties_what_is_carried_leaves_no_scope(mode: ScopeMode) -> None:
    """Refused where the client's ceiling emptied it, served empty where the grant was issued without scope."""
    assert Refusal.NO_SCOPE_LEFT == refusal_of(resolve, None, GRANTED, ("read",), ("openid",), mode)
    assert Refusal.NO_SCOPE_LEFT == refusal_of(resolve, (), GRANTED, GRANTED, (), mode)
    assert ((), ()) == resolve(None, (), (), ALLOWED, mode)
    assert Refusal.INVALID_SCOPE == refusal_of(resolve, ("read",), (), (), ALLOWED, mode)


WITH_OFFLINE = ("read", OFFLINE_ACCESS, "openid")


@pytest.mark.parametrize(
    ("granted", "carried", "asked", "mode", "scope"),
    [
        (GRANTED, GRANTED, ("read", OFFLINE_ACCESS), "sticky", ("read",)),
        (GRANTED, NARROW, (OFFLINE_ACCESS,), "sticky", NARROW),  # dropped, nothing is left: as omitted
        (GRANTED, GRANTED, (*GRANTED, OFFLINE_ACCESS), "ratchet", GRANTED),
        (WITH_OFFLINE, WITH_OFFLINE, ("openid", OFFLINE_ACCESS, "read"), "sticky", WITH_OFFLINE),
        (WITH_OFFLINE, WITH_OFFLINE, ("read",), "sticky", ("read",)),
        (WITH_OFFLINE, ("read",), ("read", OFFLINE_ACCESS), "sticky", ("read", OFFLINE_ACCESS)),
        (WITH_OFFLINE, ("read",), ("read", OFFLINE_ACCESS), "ratchet", ("read",)),
        (WITH_OFFLINE, WITH_OFFLINE, None, "sticky", WITH_OFFLINE),
    ],
)
def test_offline_access_never_makes_a_request_fail(
    granted: Words, carried: Words, asked: Words | None, mode: ScopeMode, scope: Words
) -> None:
    """Libraries add it to every refresh: dropped before the check, echoed only if granted."""
    assert scope == resolve(asked, granted, carried, (*ALLOWED, OFFLINE_ACCESS), mode)[0]


def test_offline_access_that_the_client_may_not_have_any_more_is_dropped() -> None:
    """Granted once, cut from the client since."""
    assert ("read",) == resolve(("read", OFFLINE_ACCESS), WITH_OFFLINE, WITH_OFFLINE, ("read", "openid"), "sticky")[0]


def subsets(words: Words) -> list[Words]:
    return [chosen for size in range(len(words) + 1) for chosen in combinations(words, size)]


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_stays_within_ceiling_and_rules(mode: ScopeMode) -> None:
    """All carried × asked × allowed of a small world: never beyond the ceiling, always in granted order (I-08)."""
    world = ("c", "a", "b")
    answers = 0
    for carried in subsets(world)[1:]:
        for asked in [None, *subsets(("b", "c", "a", "x"))]:
            for allowed in subsets(("a", "b", "c", "x")):
                try:
                    scope, after = resolve(asked, world, carried, allowed, mode)
                except Refused:
                    continue
                answers += 1
                ceiling = set(world) & set(allowed)
                assert set(scope) <= ceiling
                assert set(scope) == set(asked or within(carried, allowed))
                assert list(scope) == [word for word in world if word in scope]
                assert set(after) <= set(world)
                if mode == "ratchet":
                    assert set(scope) <= set(carried)
                    assert set(after) <= set(carried)
                if mode == "rfc6749" or not asked:
                    assert after == carried
    assert answers > 100


# ---------------------------------------------------------------- resources

ONE, TWO = "https://one.example", "https://two.example/api/"


def test_a_grant_without_resource_has_the_clients_first_or_the_issuer() -> None:
    """The first is the default audience; none is the issuer."""
    assert (ONE,) == granted_resource(None, (ONE, TWO))
    assert (ONE,) == granted_resource((), (ONE, TWO))
    assert (ONE, TWO) == granted_resource((TWO, ONE, TWO), (ONE, TWO))
    assert granted_resource(None, ()) is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((ONE,), (ONE,)),
        ((TWO, ONE), (ONE, TWO)),
        ((ONE + "/",), (ONE,)),  # a client's URL type adds the slash
        ((ONE, ONE + "/"), (ONE,)),
        ((TWO.removesuffix("/"),), None),  # a path that is not empty is told apart
        (("https://three.example",), None),
        ((ONE, "https://three.example"), None),
        ((ONE + "/#here",), None),
        ((ONE.upper(),), None),
    ],
)
def test_a_resource_must_have_been_granted(asked: Words, found: Words | None) -> None:
    """RFC 8707 2.2: a subset, as it was spelled when granted; anything else is no target."""
    if found is None:
        assert Refusal.INVALID_TARGET == refusal_of(narrowed_resource, asked, (ONE, TWO))
    else:
        assert found == narrowed_resource(asked, (ONE, TWO))


def test_a_slash_is_lenient_both_ways() -> None:
    """RI-3: granted with the slash, asked without."""
    assert (ONE + "/",) == narrowed_resource((ONE,), (ONE + "/",))


@pytest.mark.parametrize(
    ("granted", "asked"),
    [("https://x.example/a", "https://x.example/b"), ("https://x.example/a", "https://x.example/a/")],
)
def test_a_path_is_part_of_a_resource(granted: str, asked: str) -> None:
    """Only an empty path is read two ways."""
    assert Refusal.INVALID_TARGET == refusal_of(narrowed_resource, (asked,), (granted,))
