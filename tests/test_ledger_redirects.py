"""Which redirect addresses are registered ones (RFC 6749 3.1.2.3, RFC 8252 7.3, RFC 9700 4.1.3)."""

import pytest

from ledger.redirects import registered

REGISTERED = (
    "https://app.example/callback",
    "https://app.example/with?a=b",
    "com.example.app:/oauth2redirect",
    "http://127.0.0.1/callback",
    "http://[::1]:9000/callback",
    "http://localhost/",
)


@pytest.mark.parametrize(
    "uri",
    [
        *REGISTERED,
        "http://127.0.0.1:1/callback",
        "http://127.0.0.1:65535/callback",
        "http://127.0.0.1:51004/callback",
        "http://[::1]/callback",
        "http://[::1]:51004/callback",
        "http://localhost:3000/",
    ],
)
def test_what_is_registered_may_be_answered(uri: str) -> None:
    """Letter by letter, but for the port of a program on the person's own machine."""
    assert registered(uri, REGISTERED)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://app.example/callback/",
        "https://app.example/callback?x=1",
        "https://app.example/Callback",
        "https://APP.example/callback",
        "https://app.example:443/callback",
        "https://app.example/callback#x",
        "https://app.example.evil/callback",
        "http://app.example/callback",
        "https://app.example/with?a=c",
        "com.example.app:/oauth2redirect/",
        "https://127.0.0.1:51004/callback",
        "http://127.0.0.1:51004/callback?x",
        "http://127.0.0.1:51004/other",
        "http://127.0.0.2:51004/callback",
        "http://127.0.0.1.evil:80/callback",
        "http://127.0.0.1:80@evil/callback",
        "http://x@127.0.0.1:80/callback",
        "http://127.0.0.1:port/callback",
        "http://127.0.0.1:/callback",
        "http://127.0.0.1:123456/callback",
        "http://127.0.0.1:65536/callback",
        "http://127.0.0.1:99999/callback",
        "http://127.0.0.1:0/callback",
        "http://127.0.0.1:00000/callback",
        "http://127.0.0.1:80/callback\n",
        "http://localhost:3000",
        "http://localhost.evil:3000/",
        "HTTP://127.0.0.1:80/callback",
    ],
)
def test_what_is_not_registered_may_not(uri: str) -> None:
    """Each is one step away from one that is: whoever compares loosely sends codes to strangers."""
    assert not registered(uri, REGISTERED)


def test_a_client_that_registered_none_is_answered_nowhere() -> None:
    """No client has a default address."""
    assert not registered("https://app.example/callback", ())
