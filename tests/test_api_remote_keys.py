"""Key sets that clients publish: fetched when wanted, kept for a while, and from nowhere inside. Over real TLS."""

import asyncio
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from api import remote_keys
from api.app import create_app
from api.remote_keys import (
    AFTER_FAILURE_SECONDS,
    AGAIN_SECONDS,
    BYTES_MAX,
    FRESH_SECONDS,
    KEPT_SECONDS,
    KEYS_MAX,
    Address,
    RemoteKeys,
    Unfetchable,
    is_public,
)
from api.settings import Settings
from ledger.refusals import Unavailable
from ledger.times import SECOND
from tests.asking import ISSUER_URL, Asking, Seconds, asking
from tests.ledgers import START
from tests.signers import Signer, derived_key

pytestmark = pytest.mark.anyio

NOW = START // SECOND
NAME = "keys.client.example"
OUTSIDE = "127.0.0.2"
"""Stands for an address out in the Internet; 127.0.0.1 for one inside."""
INSIDE = "127.0.0.1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs certificates here."""
    return trustme.CA()


class Publisher:
    """A client's own server: what it answers, and how often it was asked."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.tls = tls
        self.answer = b""
        self.slowly = False
        self.connections = 0
        self.asked: list[bytes] = []
        self.port = 0

    def publish(self, *keys: Any, status: str = "200 OK", headers: str = "") -> None:
        """Answer with these keys from now on."""
        self.answer_with(json.dumps({"keys": keys}).encode(), status=status, headers=headers)

    def answer_with(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        """Answer with this body from now on."""
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self.connections += 1
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for byte in self.answer if self.slowly else b"":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
            writer.write(b"" if self.slowly else self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def publishing(
    authority: trustme.CA, *, host: str = OUTSIDE, port: int = 0, name: str = NAME
) -> AsyncIterator[Publisher]:
    """A server for a name at an address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    publisher = Publisher(context)
    server = await asyncio.start_server(publisher.serve, host, port, ssl=context)
    publisher.port = server.sockets[0].getsockname()[1]
    try:
        yield publisher
    finally:
        server.close()
        await server.wait_closed()


class Names:
    """A name service that answers as it is told, each answer once and the last for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def only_outside(address: Address) -> bool:
    """Judge as in use, where 127.0.0.2 lies outside."""
    return str(address) == OUTSIDE or is_public(address)


def fetching(authority: trustme.CA, names: Names, *, timeout_seconds: float = 5.0) -> tuple[RemoteKeys, Seconds]:
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    seconds = Seconds()
    remote = RemoteKeys(clock=seconds, permits=only_outside, resolve=names, tls=tls, timeout_seconds=timeout_seconds)
    return remote, seconds


def jwk(kid: str) -> dict[str, Any]:
    return Signer("x", derived_key(kid), "", kid=kid).public_jwk()


def kids(keys: remote_keys.Keys) -> list[str | None]:
    return [key.kid for key in keys]


async def test_keys_are_fetched_once_and_kept(authority: trustme.CA) -> None:
    """RFC 7517 5: many at once ask once; what is fresh is not asked for again, what is not is."""
    async with publishing(authority) as publisher:
        publisher.publish(jwk("a"), {"kty": "future"}, jwk("b"))
        remote, seconds = fetching(authority, Names([OUTSIDE]))
        uri = f"https://{NAME}:{publisher.port}/keys?of=client"
        found = await asyncio.gather(*(remote.keys(uri) for _ in range(20)))
        assert [["a", "b"]] * 20 == [kids(keys) for keys in found]
        assert 1 == publisher.connections
        request = publisher.asked[0].split(b"\r\n")
        assert b"GET /keys?of=client HTTP/1.1" == request[0]
        assert f"Host: {NAME}:{publisher.port}".encode() in request
        publisher.publish(jwk("c"))
        seconds.now += FRESH_SECONDS - 1
        assert ["a", "b"] == kids(await remote.keys(uri))
        seconds.now += 1
        assert ["c"] == kids(await remote.keys(uri))


async def test_newer_ones_are_asked_for_every_so_often(authority: trustme.CA) -> None:
    """CA-9: a new key is found within half a minute, however many unknown ones are named meanwhile."""
    async with publishing(authority) as publisher:
        publisher.publish(jwk("a"))
        remote, seconds = fetching(authority, Names([OUTSIDE]))
        uri = f"https://{NAME}:{publisher.port}/"
        await remote.keys(uri)
        publisher.publish(jwk("b"))
        for _ in range(5):
            assert ["a"] == kids(await remote.newer(uri))
        assert 1 == publisher.connections
        seconds.now += AGAIN_SECONDS
        assert ["b"] == kids(await remote.newer(uri))
        assert ["b"] == kids(await remote.newer(uri))
        assert 2 == publisher.connections


async def test_keys_seen_last_outlive_their_server_for_a_day(authority: trustme.CA) -> None:
    """A client whose server is away goes on; one whose keys were never seen, or too long ago, comes again later."""
    names = Names([OUTSIDE])
    async with publishing(authority) as publisher:
        publisher.publish(jwk("a"))
        remote, seconds = fetching(authority, names)
        uri = f"https://{NAME}:{publisher.port}/"
        await remote.keys(uri)
        publisher.answer_with(b"", status="500 Oops")
        seconds.now += KEPT_SECONDS - 1
        assert ["a"] == kids(await remote.keys(uri))
        assert ["a"] == kids(await remote.newer(uri))
        assert 2 == publisher.connections
        seconds.now += 1
        with pytest.raises(Unavailable):
            await remote.keys(uri)
        publisher.publish(jwk("b"))
        seconds.now += AGAIN_SECONDS
        assert ["b"] == kids(await remote.keys(uri))


async def test_a_server_that_was_away_is_asked_again_soon(authority: trustme.CA) -> None:
    """I-24: at most every five seconds, and found again then."""
    async with publishing(authority) as publisher:
        publisher.answer_with(b"", status="503 Away")
        remote, seconds = fetching(authority, Names([OUTSIDE]))
        uri = f"https://{NAME}:{publisher.port}/"
        for _ in range(3):
            with pytest.raises(Unavailable) as away:
                await remote.keys(uri)
            assert AFTER_FAILURE_SECONDS == away.value.retry_after_seconds
        assert 1 == publisher.connections
        publisher.publish(jwk("a"))
        seconds.now += AFTER_FAILURE_SECONDS
        assert ["a"] == kids(await remote.keys(uri))


REFUSED: dict[str, tuple[bytes, str]] = {
    "a redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: https://keys.client.example/\r\nContent-Length: 0\r\n\r\n",
        "it answers 302, where 200 is expected",
    ),
    "an error": (b"HTTP/1.1 404 Nope\r\nContent-Length: 0\r\n\r\n", "it answers 404, where 200 is expected"),
    "too long": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b" " * 70_000,
        f"it is longer than {BYTES_MAX} bytes",
    ),
    "endless": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 20,
        f"it is longer than {BYTES_MAX} bytes",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "the exchange broke off: RemoteProtocolError"),
    "an endless head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "the exchange broke off: RemoteProtocolError"),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n{", "the exchange broke off: RemoteProtocolError"),
    "nothing": (b"", "the exchange broke off: RemoteProtocolError"),
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{[", "it is no key set (RFC 7517 5)"),
    "no key set": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "it is no key set (RFC 7517 5)"),
    "too deep": (b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000, "it is no key set (RFC 7517 5)"),
    "too many keys": (
        b'HTTP/1.1 200 OK\r\nContent-Length: 164\r\n\r\n{"keys":[' + b"{}," * 50 + b"{}]}     ",
        f"it has more than {KEYS_MAX} keys",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
async def test_what_is_no_key_set_is_no_key_set(authority: trustme.CA, how: str) -> None:
    """Bounded, whole, and what it says it is; a redirect is not followed."""
    answer, problem = REFUSED[how]
    async with publishing(authority) as publisher:
        publisher.answer = answer
        remote, _ = fetching(authority, Names([OUTSIDE]))
        with pytest.raises(Unfetchable) as unfetchable:
            await remote.fetched(f"https://{NAME}:{publisher.port}/")
        assert problem == str(unfetchable.value)
        assert 1 == publisher.connections


async def test_a_server_that_drips_is_given_up_on(authority: trustme.CA) -> None:
    """The time is that of the whole exchange, however lively it is."""
    async with publishing(authority) as publisher:
        publisher.publish(jwk("a"))
        publisher.slowly = True
        remote, _ = fetching(authority, Names([OUTSIDE]), timeout_seconds=0.3)
        with pytest.raises(Unfetchable, match="nothing whole came within"):
            await remote.fetched(f"https://{NAME}:{publisher.port}/")


async def test_only_a_server_that_proves_its_name_is_believed(authority: trustme.CA) -> None:
    """RFC 9110 4.3.4: a certificate of another name, or of nobody who is trusted; and http is not spoken at all."""
    async with publishing(authority, name="other.example") as publisher:
        publisher.publish(jwk("a"))
        remote, _ = fetching(authority, Names([OUTSIDE]))
        for uri in (f"https://{NAME}:{publisher.port}/", f"https://{OUTSIDE}:{publisher.port}/"):
            with pytest.raises(Unfetchable, match="its certificate cannot be trusted"):
                await remote.fetched(uri)
        with pytest.raises(Unfetchable, match="it is not https"):
            await remote.fetched(f"http://other.example:{publisher.port}/")
        trusting_others = RemoteKeys(permits=only_outside, resolve=Names([OUTSIDE]))
        with pytest.raises(Unfetchable, match="its certificate cannot be trusted"):
            await trusting_others.fetched(f"https://other.example:{publisher.port}/")
        assert [] == publisher.asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1", "169.254.169.254",
        "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::127.0.0.1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::", "2001:db8::1", "100::1",
    ],
)  # fmt: skip
def test_no_address_inside_is_public(address: str) -> None:
    """This machine, its networks and links, groups, and every way to write one of them as another."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_outside_are_public(address: str) -> None:
    """What the Internet routes, IPv4 behind an IPv6-only network too (RFC 6052)."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("answer", [[INSIDE], [OUTSIDE, INSIDE], ["::ffff:127.0.0.1"], ["169.254.169.254"], []])
async def test_a_name_that_leads_inside_is_not_followed(authority: trustme.CA, answer: list[str]) -> None:
    """Nothing is sent, not even a connection made, where any address of the name is not public."""
    async with publishing(authority, host=INSIDE) as inside:
        inside.publish(jwk("a"))
        remote, _ = fetching(authority, Names(answer))
        with pytest.raises(Unfetchable, match=r"not public|no address"):
            await remote.fetched(f"https://{NAME}:{inside.port}/")
        assert 0 == inside.connections


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "2130706433", "0", "127.1"])
async def test_no_spelling_of_this_machine_is_reached(authority: trustme.CA, host: str) -> None:
    """As it is in use: the resolver of the system, and no parameter that lets anything through."""
    async with publishing(authority, host=INSIDE, name="localhost") as inside:
        inside.publish(jwk("a"))
        with pytest.raises(Unfetchable):
            await RemoteKeys().fetched(f"https://{host}:{inside.port}/")
        assert 0 == inside.connections


async def rebound(authority: trustme.CA, fetch: Callable[[RemoteKeys, str], Any]) -> tuple[int, int, list[str]]:
    """A name leads outside when it is judged, and inside whenever it is looked up again: connections there and here."""
    # Inside first: everybody listens there, so a port that is free outside need not be.
    async with publishing(authority, host=INSIDE) as inside, publishing(authority, port=inside.port) as outside:
        outside.publish(jwk("a"))
        inside.publish(jwk("b"))
        names = Names([OUTSIDE], [INSIDE])
        remote, seconds = fetching(authority, names)
        await fetch(remote, f"https://{NAME}:{outside.port}/")
        seconds.now += FRESH_SECONDS
        await fetch(remote, f"https://{NAME}:{outside.port}/")
        return outside.connections, inside.connections, names.asked


async def test_a_name_that_changes_after_it_was_judged_leads_nowhere(authority: trustme.CA) -> None:
    """DNS rebinding: the address that was judged is connected to, and the next answer, which leads inside, is not."""

    async def fetch(remote: RemoteKeys, uri: str) -> None:
        assert ["a"] == kids(await remote.keys(uri))

    assert (1, 0, [NAME, NAME]) == await rebound(authority, fetch)


async def test_a_fetcher_that_looks_a_name_up_twice_is_caught(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the trial above: judge one answer, connect by the next."""
    connect = asyncio.open_connection

    async def by_name(host: str, port: int, **options: Any) -> Any:
        (address,) = await names_of[0]._resolve(options["server_hostname"], port)
        return await connect(address, port, **options)

    names_of: list[RemoteKeys] = []
    monkeypatch.setattr(asyncio, "open_connection", by_name)

    async def fetch(remote: RemoteKeys, uri: str) -> None:
        names_of[:] = [remote]
        await remote.keys(uri)

    _, reached_inside, _ = await rebound(authority, fetch)
    assert reached_inside


async def test_no_setting_lets_a_fetch_inside() -> None:
    """The parameters of tests are parameters: nothing of the settings has their name."""
    assert not [name for name in Settings.__dataclass_fields__ if "jwks" in name or "permit" in name or "fetch" in name]


# ---------------------------------------------------------------- with clients


@asynccontextmanager
async def remote_client(folder: Path, authority: trustme.CA) -> AsyncIterator[tuple[Asking, Publisher, Seconds]]:
    """The client `remote`, which publishes its keys."""
    async with publishing(authority) as publisher:
        uri = f"https://{NAME}:{publisher.port}/jwks.json"
        async with asking(
            folder, more=Signer("remote", derived_key("a"), ISSUER_URL).toml(jwks_uri=f'"{uri}"')
        ) as ledger:
            remote, seconds = fetching(authority, Names([OUTSIDE]))
            app = create_app(ledger.ledger, Settings(issuer=ISSUER_URL), monotonic=seconds, remote_keys=remote)
            yield Asking(ledger.opened, app, seconds), publisher, seconds


async def refreshed(ledger: Asking, kid: str, token: str) -> tuple[int, Any]:
    signer = Signer("remote", derived_key(kid), ISSUER_URL, kid=kid)
    form = {"grant_type": "refresh_token", "refresh_token": token, **signer.form(now=NOW)}
    answer = await ledger.form("/token", form)
    return answer.status_code, answer.json()


async def test_a_client_rolls_its_keys_over_and_loses_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    """V73, CA-9: a new key in the set, the old one out of it, and the refresh token is good with the new one."""
    async with remote_client(tmp_path, authority) as (ledger, publisher, seconds):
        publisher.publish(jwk("a"))
        status, answer = await refreshed(ledger, "a", (await ledger.issue("remote"))["refresh_token"])
        assert 200 == status
        publisher.publish(jwk("b"))
        seconds.now += 60
        status, answer = await refreshed(ledger, "b", answer["refresh_token"])
        assert 200 == status
        status, refusal = await refreshed(ledger, "a", answer["refresh_token"])
        assert (400, "invalid_client") == (status, refusal["error"])
        assert 200 == (await refreshed(ledger, "b", answer["refresh_token"]))[0]


async def test_a_client_whose_keys_are_away_is_told_to_come_again(tmp_path: Path, authority: trustme.CA) -> None:
    """503 spends nothing and counts against nobody; a signature that is wrong counts once the keys are there."""
    async with remote_client(tmp_path, authority) as (ledger, publisher, seconds):
        publisher.answer_with(b"", status="500 Oops")
        token = (await ledger.issue("remote"))["refresh_token"]
        signer = Signer("remote", derived_key("a"), ISSUER_URL, kid="a")
        form = {"grant_type": "refresh_token", "refresh_token": token, **signer.form(now=NOW)}
        for _ in range(12):
            answer = await ledger.form("/token", form)
            assert (503, "5") == (answer.status_code, answer.headers["retry-after"])
        publisher.publish(jwk("a"))
        seconds.now += AFTER_FAILURE_SECONDS
        assert 200 == (await ledger.form("/token", form)).status_code
