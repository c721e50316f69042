"""Source address and User-Agent: the peer's, or what a trusted proxy has seen, never what anyone may write."""

import ipaddress
from typing import Any

import pytest

from api.context import Contexts

PROXIES = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "127.0.0.1", "fd00::/8")]


def scope(peer: str | None, *forwarded: bytes, agent: bytes | None = b"curl/8") -> dict[str, Any]:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value) for value in forwarded)]
    if agent is not None:
        headers.append((b"user-agent", agent))
    return {"client": (peer, 1234) if peer else None, "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("2001:db8:1:2:3::4", [], "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("fe80::1%eth0", [], "fe80::/64"),
        (None, [], "local"),
        (None, [b"192.0.2.9"], "local"),
        # nobody but a trusted proxy is believed
        ("192.0.2.1", [b"198.51.100.7"], "192.0.2.1"),
        ("127.0.0.2", [b"198.51.100.7"], "127.0.0.2"),
        ("127.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        # from the right, over trusted proxies, to the first that is none
        ("10.0.0.1", [b"203.0.113.5, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ("10.0.0.1", [b"203.0.113.5", b"198.51.100.7", b"10.9.9.9"], "198.51.100.7"),
        ("10.0.0.1", [b"203.0.113.5,, 198.51.100.7 ,"], "198.51.100.7"),
        ("fd00::5", [b"2001:db8:9:9::1"], "2001:db8:9:9::/64"),
        # ports, brackets, mapped addresses
        ("10.0.0.1", [b"198.51.100.7:5555"], "198.51.100.7"),
        ("10.0.0.1", [b"[2001:db8:9:9::1]:443"], "2001:db8:9:9::/64"),
        ("10.0.0.1", [b"[2001:db8:9:9::1]"], "2001:db8:9:9::/64"),
        ("10.0.0.1", [b"::ffff:198.51.100.7"], "198.51.100.7"),
        # a proxy trusted by its IPv4 address is trusted when the socket shows it mapped
        ("::ffff:10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        # what is no address counts as the peer's, and nothing left of it is believed
        ("10.0.0.1", [b"203.0.113.5, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"203.0.113.5, \xff\xfe, 10.9.9.9"], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"10.1.1.1, 10.2.2.2"], "10.0.0.1"),
    ],
)
def test_the_source_address_is_the_peers_or_what_a_trusted_proxy_saw(
    peer: str | None, forwarded: list[bytes], expected: str
) -> None:
    """Right-most X-Forwarded-For entry that is no trusted proxy, port stripped, IPv6 by its /64; else the peer's."""
    contexts = Contexts(PROXIES)
    assert expected == contexts.of(scope(peer, *forwarded))[0]
    assert expected == contexts.of(scope(peer, *forwarded))[0]  # remembered


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    """The default believes nobody, loopback included."""
    assert "127.0.0.1" == Contexts().of(scope("127.0.0.1", b"198.51.100.7"))[0]


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (None, ""),
        (b"curl/8.5", "curl/8.5"),
        ("ü".encode() * 600, "ü" * 512),
        (b"a" * 70_000, "a" * 512),
        (b"\xff\x80x", "��x"),
    ],
)
def test_the_user_agent_is_its_first_512_characters(agent: bytes | None, expected: str) -> None:
    """Characters, not bytes; what is no UTF-8 is replaced, so that any of it can be kept as text."""
    assert expected == Contexts().of(scope("192.0.2.1", agent=agent))[1]


def test_the_same_place_is_the_same_tuple() -> None:
    """What is made of a context once can be kept by it."""
    contexts = Contexts()
    assert contexts.of(scope("192.0.2.1")) is contexts.of(scope("192.0.2.1"))


def test_memory_stays_bounded_whoever_comes() -> None:
    """An attacker who changes his User-Agent with each request fills nothing."""
    contexts = Contexts()
    for number in range(10_000):
        contexts.of(scope("192.0.2.1", agent=b"%d" % number))
    contexts.of(scope("192.0.2.1", agent=b"x" * 60_000))
    assert len(contexts._kept) <= 4096
    assert all(len(agent) < 10_000 for _, _, agent in contexts._kept)
