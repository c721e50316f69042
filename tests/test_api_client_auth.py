"""Who is calling (RFC 6749 2.3): each method, the readings of Basic, one method a request, the same cost for nobody."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from api.answers import BadRequest
from api.assertions import Assertions
from api.certificates import ClientCertificates
from api.client_auth import BASIC, NONE, POST, ClientAuth, InvalidClient, TooManyFailures, authorization, presented
from api.heads import Headers
from api.metrics import Meters
from api.remote_keys import RemoteKeys
from api.throttle import UNKNOWN, Throttle
from ledger import operating
from ledger.answers import Caller
from ledger.batch import Batch
from ledger.clients import ClientSpec, Settings
from tests.asking import ISSUER_URL, Asking, Seconds, asking
from tests.servers import SECRETS


def encoded(text: str, *, scheme: str = "Basic", encoding: str = "utf-8") -> bytes:
    """The value of an Authorization header."""
    return f"{scheme} {base64.b64encode(text.encode(encoding)).decode()}".encode()


def auth_of(ledger: Asking) -> tuple[ClientAuth, Meters, Throttle, Seconds]:
    """Client authentication over a ledger, with counts and a clock of its own."""
    meters, seconds = Meters(), Seconds()
    throttle = Throttle(seconds)
    assertions = Assertions(ledger.ledger, RemoteKeys(), issuer=ISSUER_URL, endpoints=())
    certificates = ClientCertificates(ledger.ledger.memory.clock)
    return ClientAuth(ledger.ledger, throttle, meters, assertions, certificates), meters, throttle, seconds


def said(caller: Caller) -> tuple[str, bool, str]:
    return (caller.client_id, caller.authenticated, caller.auth_method)


async def test_each_method_names_itself_as_registered_for_metadata(tmp_path: Path) -> None:
    """RFC 8414: what the client is registered for decides what it may use; what it used is what is recorded."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        basic, post = SECRETS["basic"], SECRETS["post"]
        assert ("www", True, BASIC) == said(auth.caller(encoded("www:Secr3t!"), {}, "a"))
        assert ("www", True, POST) == said(auth.caller(None, {"client_id": "www", "client_secret": "Secr3t!"}, "a"))
        assert ("spa", False, NONE) == said(auth.caller(None, {"client_id": "spa"}, "a"))
        assert ("basic", True, BASIC) == said(auth.caller(encoded(f"basic:{basic}"), {}, "a"))
        assert ("post", True, POST) == said(auth.caller(None, {"client_id": "post", "client_secret": str(post)}, "a"))
        with pytest.raises(InvalidClient):
            auth.caller(None, {"client_id": "basic", "client_secret": str(basic)}, "a")
        with pytest.raises(InvalidClient):
            auth.caller(encoded(f"post:{post}"), {}, "a")


@pytest.mark.parametrize(
    "header",
    [
        encoded("w w:p%40s+w:o rd~"),
        encoded("w+w:p%2540s%2Bw%3Ao+rd%7E"),
        encoded("w%20w:p%2540s%2Bw%3Ao%20rd~"),
        encoded("w w:p%40s+w:o rd~", scheme="bAsIc"),
        encoded("w w:p%40s+w:o rd~").replace(b"Basic ", b"Basic   "),
    ],
)
async def test_basic_is_read_raw_and_form_encoded(tmp_path: Path, header: bytes) -> None:
    """CA-2, D4, V8: clients disagree on the encoding, so each reading counts; the scheme is in any case."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        assert ("w w", True, BASIC) == said(auth.caller(header, {}, "a"))


BESIDE = [
    ClientSpec(client_id=client_id, settings=Settings(scope=("read",)), secrets=(secret,))
    for client_id, secret in (("a b", "secret-1"), ("a+b", "secret-2"))
]


async def test_of_two_clients_that_one_header_may_name_it_is_the_one_whose_secret_it_is(tmp_path: Path) -> None:
    """CA-2: "a+b" form-encoded is "a b". Where the body says which, it is that one (CA-3)."""
    async with asking(tmp_path) as ledger:
        await ledger.ledger.operators.apply(BESIDE, [])
        auth, *_ = auth_of(ledger)
        assert ("a b", True, BASIC) == said(auth.caller(encoded("a+b:secret-1"), {}, "a"))
        assert ("a+b", True, BASIC) == said(auth.caller(encoded("a+b:secret-2"), {}, "a"))
        assert ("a+b", True, BASIC) == said(auth.caller(encoded("a+b:secret-2"), {"client_id": "a+b"}, "a"))
        with pytest.raises(InvalidClient):
            auth.caller(encoded("a+b:secret-2"), {"client_id": "a b"}, "a")
        for _ in range(9):
            with pytest.raises(InvalidClient):
                auth.caller(encoded("a+b:secret-3"), {}, "a")
        with pytest.raises(TooManyFailures):
            auth.caller(encoded("a+b:secret-3"), {}, "a")
        for right in ("a+b:secret-1", "a+b:secret-2", "a%20b:secret-1"):
            with pytest.raises(TooManyFailures):
                auth.caller(encoded(right), {}, "a")  # it was a guess at both


@pytest.mark.parametrize(
    "header",
    [
        b"Basic !!!",
        b"Basic",
        b"",
        b"Bearer x",
        b"DPoP x",
        encoded("www"),
        encoded("www:secr3t!"),
        encoded("www:"),
        encoded(":Secr3t!"),
        encoded("nobody:Secr3t!"),
        encoded("spa:"),
        encoded("spa:x"),
        encoded("www:Secr3t!é", encoding="latin-1"),
        b"Basic \xff\xfe",
    ],
)
async def test_a_header_that_proves_nothing_is_a_challenge(tmp_path: Path, header: bytes) -> None:
    """V35, V37, V40, D11: whoever used the header is told by 401 how to use it."""
    async with asking(tmp_path) as ledger:
        auth, meters, *_ = auth_of(ledger)
        with pytest.raises(InvalidClient) as caught:
            auth.caller(header, {}, "a")
        assert (True, 1) == (caught.value.challenge, meters.failed_clients)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"client_id": "www"},
        {"client_id": "nobody"},
        {"client_id": "www", "client_secret": "secr3t!"},
        {"client_id": "nobody", "client_secret": "Secr3t!"},
        {"client_secret": "Secr3t!"},
        {"client_id": "spa", "client_secret": "x"},
        {"client_id": "www", "client_secret": "\ud800"},
    ],
)
async def test_a_body_that_proves_nothing_is_no_challenge(tmp_path: Path, form: dict[str, str]) -> None:
    """V36, V38, V39, V48, CA-4: a public client sends no secret, a confidential one does."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        with pytest.raises(InvalidClient) as caught:
            auth.caller(None, form, "a")
        assert not caught.value.challenge


@pytest.mark.parametrize(
    ("header", "form"),
    [
        (encoded("www:Secr3t!"), {"client_secret": "Secr3t!"}),
        (encoded("www:Secr3t!"), {"client_id": "www", "client_secret": "Secr3t!"}),
        (b"Bearer x", {"client_id": "www", "client_secret": "Secr3t!"}),
        (encoded("www:Secr3t!"), {"client_assertion": "x"}),
        (None, {"client_id": "www", "client_secret": "Secr3t!", "client_assertion": "x"}),
        (encoded("www:Secr3t!"), {"client_id": "oth"}),
    ],
)
def test_two_methods_or_two_clients_are_a_malformed_request(header: bytes | None, form: dict[str, str]) -> None:
    """CA-3, V41-V43: exactly one method, for one client."""
    with pytest.raises(BadRequest):
        presented(header, form)


@pytest.mark.parametrize("client_id", ["www", "w w"])
async def test_basic_with_the_same_client_in_the_body_is_one_method(tmp_path: Path, client_id: str) -> None:
    """V7: some clients name themselves twice."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        found = auth.caller(encoded(f"{client_id}:{SECRETS[client_id]}"), {"client_id": client_id}, "a")
        assert (client_id, True, BASIC) == said(found)


def test_two_authorization_headers_are_a_malformed_request() -> None:
    """What could be read in two ways is refused."""
    assert b"x" == authorization([(b"accept", b"y"), (b"authorization", b"x")])
    assert authorization([(b"accept", b"y")]) is None
    with pytest.raises(BadRequest):
        authorization([(b"authorization", b"x"), (b"authorization", b"x")])


async def test_a_client_registered_for_another_method_cannot_use_a_secret(tmp_path: Path) -> None:
    """RFC 7523: nothing else stands in for an assertion, neither a secret nor the name alone."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        for header, form in [
            (encoded("jwt:"), {}),
            (encoded("jwt:x"), {}),
            (None, {"client_id": "jwt"}),
            (None, {"client_id": "jwt", "client_secret": "x"}),
        ]:
            with pytest.raises(InvalidClient):
                auth.caller(header, form, "a")


async def test_the_tenth_failure_makes_even_a_right_secret_wait(tmp_path: Path) -> None:
    """TE-8: for this client and address; another address, another client and a public one are not affected."""
    async with asking(tmp_path) as ledger:
        auth, meters, _, seconds = auth_of(ledger)
        wrong, right = encoded("www:wrong"), encoded("www:Secr3t!")
        for _ in range(9):
            with pytest.raises(InvalidClient):
                auth.caller(wrong, {}, "a")
        with pytest.raises(TooManyFailures) as tenth:
            auth.caller(wrong, {}, "a")
        with pytest.raises(TooManyFailures):
            auth.caller(right, {}, "a")
        assert (1, 10, 1) == (tenth.value.retry_after_seconds, meters.failed_clients, meters.throttled_clients)
        assert said(auth.caller(right, {}, "b")) == ("www", True, BASIC)
        assert said(auth.caller(encoded(f"oth:{SECRETS['oth']}"), {}, "a")) == ("oth", True, BASIC)
        seconds.now += 1
        assert said(auth.caller(right, {}, "a")) == ("www", True, BASIC)


@pytest.mark.parametrize("client_id", ["basic", "post"])
async def test_a_right_secret_by_the_other_method_is_refused_and_is_no_guess(tmp_path: Path, client_id: str) -> None:
    """TE-8, D5: golang.org/x/oauth2 tries the header, then the body; a program that starts anew each minute does so
    every time, and would else never get in again after ten of them."""
    async with asking(tmp_path) as ledger:
        auth, meters, throttle, _ = auth_of(ledger)
        secret = str(SECRETS[client_id])
        by_header: tuple[bytes | None, dict[str, str]] = encoded(f"{client_id}:{secret}"), {}
        by_body: tuple[bytes | None, dict[str, str]] = None, {"client_id": client_id, "client_secret": secret}
        its_own, other = (by_header, by_body) if client_id == "basic" else (by_body, by_header)
        for _ in range(20):
            with pytest.raises(InvalidClient) as refused:
                auth.caller(other[0], other[1], "a")
            assert refused.value.challenge is (client_id == "post")
        assert (20, 0) == (meters.failed_clients, len(throttle))
        right = auth.caller(its_own[0], its_own[1], "a")
        assert (client_id, True) == (right.client_id, right.authenticated)


async def test_all_unknown_clients_count_as_one(tmp_path: Path) -> None:
    """TE-8: trying one id after the other is guessing too; saying nothing at all is not."""
    async with asking(tmp_path) as ledger:
        auth, _, throttle, _ = auth_of(ledger)
        for _ in range(20):
            with pytest.raises(InvalidClient):
                auth.caller(None, {}, "a")
        assert 0 == len(throttle)
        for number in range(9):
            with pytest.raises(InvalidClient):
                auth.caller(None, {"client_id": f"client-{number}"}, "a")
        with pytest.raises(TooManyFailures):
            auth.caller(b"Basic !!!", {}, "a")
        assert throttle.wait_seconds(UNKNOWN, "a")
        assert said(auth.caller(None, {"client_id": "spa"}, "a")) == ("spa", False, NONE)


async def test_each_secret_of_a_client_is_counted_by_its_number(tmp_path: Path) -> None:
    """Changing a secret without an outage: both work, and a count tells whether the old one is still used."""
    more = '\n[[client]]\nid = "two"\nsecret = ["n3w-secret", "0ld-secret"]\nscope = "read"\n'
    async with asking(tmp_path, more=more) as ledger:
        auth, meters, *_ = auth_of(ledger)
        for secret in ("n3w-secret", "0ld-secret", "0ld-secret"):
            auth.caller(None, {"client_id": "two", "client_secret": secret}, "a")
        assert {("two", 0): 1, ("two", 1): 2} == meters.secrets


async def test_an_unknown_client_costs_as_many_hashes_as_a_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6749 10.10: time must not tell which ids are clients. Counted in MACs, which are all the cost there is."""
    counts: list[int] = []
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        ring = ledger.ledger.desk.ring
        root_mac = type(ring).root_mac
        monkeypatch.setattr(
            type(ring),
            "root_mac",
            lambda self, *args: (counts.__setitem__(-1, counts[-1] + 1), root_mac(self, *args))[1],
        )
        for text in (
            "www:wrong", "nobody:wrong", "spa:wrong", "www:wr%6Fng+x", "nobody:wr%6Fng+x", ":", "www", "w+w:a+b",
            "n+n:a+b",
        ):  # fmt: skip
            counts.append(0)
            with pytest.raises(InvalidClient):
                auth.caller(encoded(text), {}, "a")
        assert [1, 1, 1, 3, 3, 1, 1, 2, 2] == counts


def test_what_was_presented_shows_no_secret() -> None:
    """I-20: a secret must not reach a log by way of a repr."""
    assert "Secr3t!" not in repr(presented(encoded("www:Secr3t!"), {}))


async def test_who_has_proved_who_it_is_need_not_again_while_nothing_changes(tmp_path: Path) -> None:
    """The same credentials on the same connection; anything else, and any change of the client, is looked at anew."""
    form = {"client_id": "www", "client_secret": "Secr3t!"}
    async with asking(tmp_path) as ledger:
        auth, meters, throttle, _ = auth_of(ledger)
        headers = Headers([(b"host", b"a")])
        assert None is auth.again(headers, form, "a")
        proved = auth.caller(None, form, "a", headers=headers)
        assert proved is auth.again(headers, form, "a")
        assert {("www", 0): 2} == meters.secrets
        for other in (
            {**form, "client_secret": "secr3t!"},
            {**form, "client_secret": "Secr3t!é"},
            {**form, "client_id": "post"},
            {**form, "client_assertion": "x"},
            {**form, "client_assertion_type": "x"},
            {"client_id": "www"},
            {"client_secret": "Secr3t!"},
            {},
        ):
            assert None is auth.again(headers, other, "a"), other
        for _ in range(10):
            throttle.failed("www", "elsewhere")
        assert proved is auth.again(headers, form, "a")
        assert None is auth.again(headers, form, "elsewhere"), "whoever has to wait waits, right or wrong"


async def test_a_proof_by_the_header_stands_for_that_header_alone(tmp_path: Path) -> None:
    """Beside Basic a body may name the same client again, and nothing more (CA-3)."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        headers = Headers([(b"authorization", encoded("www:Secr3t!"))])
        proved = auth.caller(authorization(headers), {}, "a", headers=headers)
        assert proved is auth.again(headers, {}, "a") is auth.again(headers, {"client_id": "www"}, "a")
        for other in ({"client_id": "post"}, {"client_secret": "Secr3t!"}, {"client_id": "www", "client_secret": "x"}):
            assert None is auth.again(headers, other, "a"), other


async def test_a_client_that_has_changed_proves_who_it_is_anew(tmp_path: Path) -> None:
    """A secret taken away, a client disabled: at once, on connections that were open before too (I-06)."""
    form = {"client_id": "www", "client_secret": "Secr3t!"}
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        headers = Headers([(b"host", b"a")])
        auth.caller(None, form, "a", headers=headers)
        www = ClientSpec(client_id="www", settings=Settings(scope=("read",)), secrets=("another", "Secr3t!"))
        await ledger.ledger.operators.apply([www], [])
        assert None is auth.again(headers, form, "a")
        proved = auth.caller(None, form, "a", headers=headers)
        assert proved is auth.again(headers, form, "a")
        await ledger.ledger.operators.apply([], [])
        assert None is auth.again(headers, form, "a")
        with pytest.raises(InvalidClient):
            auth.caller(None, form, "a", headers=headers)


AUTHORIZATIONS: tuple[list[bytes], ...] = (
    [],
    [encoded("www:Secr3t!")],
    [encoded("www:Secr3t%21")],
    [encoded("www:wrong")],
    [encoded(f"basic:{SECRETS['basic']}")],
    [encoded(f"post:{SECRETS['post']}")],
    [b"Bearer x"],
    [encoded("www:Secr3t!"), encoded("www:Secr3t!")],
)
RIGHT = {"client_id": "www", "client_secret": "Secr3t!"}
FORMS: tuple[dict[str, str], ...] = (
    {},
    {"client_id": "www"},
    {"client_id": "basic"},
    {"client_id": "spa"},
    {"client_id": "nobody"},
    {"client_secret": "Secr3t!"},
    RIGHT,
    {**RIGHT, "client_secret": "Secr3t?"},
    {**RIGHT, "client_secret": "Secr3t!\u00e9"},
    {**RIGHT, "client_id": "post"},
    {"client_id": "post", "client_secret": str(SECRETS["post"])},
    {"client_id": "basic", "client_secret": str(SECRETS["basic"])},
    {**RIGHT, "client_assertion": "x"},
    {"client_id": "www", "client_assertion": "x"},
)


def unlike(auth: ClientAuth, throttle: Throttle) -> list[object]:
    """Each pair of requests with the same headers whose second is told otherwise than it would be alone."""

    def told(headers: Headers, form: dict[str, str], *, again: bool) -> object:
        throttle._failed.clear()
        try:
            found = auth.again(headers, form, "a") if again else None
            return said(found or auth.caller(authorization(headers), form, "a", headers=headers if again else None))
        except (BadRequest, InvalidClient) as refusal:
            return type(refusal), str(refusal), getattr(refusal, "challenge", None)

    found: list[object] = []
    for values in AUTHORIZATIONS:
        plain = [(b"authorization", value) for value in values]
        alone = [told(Headers(plain), form, again=False) for form in FORMS]
        for first in FORMS:
            for second, expected in zip(FORMS, alone, strict=True):
                headers = Headers(plain)
                told(headers, first, again=True)
                if expected != told(headers, second, again=True):
                    found.append((values, first, second))
    return found


async def test_what_was_proved_before_changes_no_answer(tmp_path: Path) -> None:
    """Whatever two requests of one connection show, one after the other: the second is judged as if it came alone."""
    async with asking(tmp_path) as ledger:
        auth, _, throttle, _ = auth_of(ledger)
        assert [] == unlike(auth, throttle)


def _any_form(headers: Headers, form: Mapping[str, str]) -> bool:
    return True


def _any_client(headers: Headers, form: Mapping[str, str]) -> bool:
    assert headers.proven is not None
    return form.get("client_secret") == headers.proven.secret


def _any_secret(headers: Headers, form: Mapping[str, str]) -> bool:
    assert headers.proven is not None
    return form.get("client_id", "www") == headers.proven.caller.client_id


@pytest.mark.parametrize("believes", [_any_form, _any_client, _any_secret])
async def test_believing_too_much_of_what_was_proved_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, believes: Callable[[Headers, Mapping[str, str]], bool]
) -> None:
    """The broken twins of the above."""

    def again(self: ClientAuth, headers: Headers, form: Mapping[str, str], address: str) -> Caller | None:
        return headers.proven.caller if headers.proven is not None and believes(headers, form) else None

    async with asking(tmp_path) as ledger:
        auth, _, throttle, _ = auth_of(ledger)
        monkeypatch.setattr(ClientAuth, "again", again)
        assert [] != unlike(auth, throttle)


async def test_a_key_ring_that_was_read_again_makes_every_client_prove_itself_anew(tmp_path: Path) -> None:
    """What a secret was compared under is another ring then."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        headers = Headers([(b"host", b"a")])
        proved = auth.caller(None, RIGHT, "a", headers=headers)
        assert proved is auth.again(headers, RIGHT, "a")
        await ledger.ledger.operators.keys_rotate()
        assert None is auth.again(headers, RIGHT, "a")
        assert proved == auth.caller(None, RIGHT, "a", headers=headers)


async def test_a_change_that_did_not_happen_is_forgotten_by_what_was_proved(tmp_path: Path) -> None:
    """I-12: a secret of a batch that failed opens nothing, and a client of one is as it was."""
    async with asking(tmp_path) as ledger:
        auth, *_ = auth_of(ledger)
        headers = Headers([(b"host", b"a")])
        new = {**RIGHT, "client_secret": "another-secret"}

        def changed(batch: Batch) -> None:
            www = ClientSpec(client_id="www", settings=Settings(scope=("read",)), secrets=("another-secret",))
            operating.apply(batch, ledger.ledger.desk, [www], [], serial=None, dry_run=False)
            auth.caller(None, new, "a", headers=headers)  # between the decision and its commit
            assert None is not auth.again(headers, new, "a")
            raise RuntimeError("a defect")

        with pytest.raises(RuntimeError):
            await ledger.ledger.commits.submit(changed)
        assert None is auth.again(headers, new, "a")
        assert None is auth.again(headers, RIGHT, "a")
        with pytest.raises(InvalidClient):
            auth.caller(None, new, "a", headers=headers)
        auth.caller(None, RIGHT, "b", headers=headers)
