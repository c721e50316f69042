"""Client certificates on the server's own TLS (RFC 8705): real handshakes, real clients, real refreshes."""

import contextlib
import ipaddress
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509

from api.server import Parser
from tests.certificates import FOR_CLIENTS, FOR_SERVERS, Party, authority, certificate
from tests.jwts import claims_of
from tests.mutual_tls import Ledger, mutual
from tests.servers import CALLBACK, SECRETS, VERIFIER, basic
from tests.serving import PARSERS
from tests.signers import registered
from tests.wire import Answer, request_bytes

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
NAMES: list[x509.GeneralName] = [
    x509.DNSName("app.example"),
    x509.UniformResourceIdentifier("spiffe://example/app"),
    x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
    x509.RFC822Name("ops@example.org"),
]


class Parties(NamedTuple):
    """Who holds certificates in these tests."""

    ca: Party
    app: Party
    own: Party
    spa: Party


def client(client_id: str, auth: str, *more: str) -> str:
    """One client as a clients file says it."""
    return "\n".join(("[[client]]", f'id = "{client_id}"', f'auth = "{auth}"', 'scope = "read"', *more, ""))


def jwks(*parties: Party) -> str:
    return "jwks = { keys = [" + ", ".join(f'{{ x5c = ["{each.x5c}"] }}' for each in parties) + "] }"


BOUND = "tls_client_certificate_bound_access_tokens = true"


def clients(parties: Parties) -> str:
    return "\n".join(
        (
            client("dn", "tls_client_auth", 'tls_client_auth_subject_dn = "CN=app,O=Example"', BOUND),
            client("dns", "tls_client_auth", 'tls_client_auth_san_dns = "app.example"'),
            client("uri", "tls_client_auth", 'tls_client_auth_san_uri = "spiffe://example/app"'),
            client("ip", "tls_client_auth", 'tls_client_auth_san_ip = "2001:db8::7"'),
            client("email", "tls_client_auth", 'tls_client_auth_san_email = "ops@example.org"'),
            client("own", "self_signed_tls_client_auth", jwks(parties.own)),
            client("page", "none", jwks(parties.spa), BOUND, 'policy = "strict"'),
            client(
                "site",
                "none",
                jwks(parties.spa),
                BOUND,
                'grant_types = ["authorization_code", "refresh_token"]',
                f'redirect_uris = ["{CALLBACK}"]',
                'policy = { access_token_format = "jwt" }',
            ),
            client("sec", "client_secret", 'secret = "S3cret-and-bound"', BOUND, jwks(parties.spa)),
        )
    )


@pytest.fixture(scope="module")
def parties() -> Parties:
    ca = authority()
    app = certificate("CN=app,O=Example", by=ca, names=NAMES, usage=FOR_CLIENTS)
    # As `openssl req -x509` makes it: an authority by its extensions.
    return Parties(ca, app, certificate("CN=own", authority=True), certificate("CN=page"))


@pytest.fixture(scope="module", params=PARSERS)
def ledger(
    request: pytest.FixtureRequest, parties: Parties, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ledger]:
    """One server a parser, on uvloop or on asyncio."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "ca.pem").write_text(parties.ca.pem)
    parser: Parser = request.param
    with mutual(
        folder, clients(parties), parser=parser, fast_loop=parser == "httptools", tls_client_ca=folder / "ca.pem"
    ) as served:
        yield served


def check_invalid_client(answer: Answer) -> None:
    assert (400, "invalid_client") == (answer.status, answer.json()["error"]), answer.body


# ---------------------------------------------------------------- authentication


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["dn", "dns", "uri", "ip", "email", "own"])
def test_a_certificate_is_the_whole_authentication(
    ledger: Ledger, parties: Parties, name: str, version: ssl.TLSVersion
) -> None:
    """CA-10, RFC 8705 2: with `client_id` in the body it refreshes, again over the same connection, and is bound."""
    party = parties.own if name == "own" else parties.app
    grant = ledger.issue(name)
    token = grant["refresh_token"]
    with ledger.connect(ledger.context(party, version=version)) as connection:
        for _ in range(5):  # from the fourth on no head is parsed any more
            answer = ledger.refresh(name, token, connection)
            assert 200 == answer.status, answer.body
            assert answer.header("Ledger-Position") is not None
            token = answer.json()["refresh_token"]
    active = ledger.introspect(answer.json()["access_token"])
    assert ({"x5t#S256": party.x5t_s256}, "bearer") == (active["cnf"], active["token_type"])
    redeemed = events(ledger, grant["grant_id"], "grant.token_redeemed")[-1]
    method = "self_signed_tls_client_auth" if name == "own" else "tls_client_auth"
    assert (method, party.x5t_s256) == (redeemed["auth_method"], redeemed["proof_x5t_s256"])


def events(ledger: Ledger, grant_id: str, topic: str) -> list[dict[str, object]]:
    found = ledger.operator("auditor", "GET", f"/grants/{grant_id}/events").json()["events"]
    return [event["data"] for event in found if event["topic"] == topic]


def test_without_a_certificate_or_with_anothers_nobody_is_let_in(ledger: Ledger, parties: Parties) -> None:
    """CA-10: `invalid_client`, and nothing is consumed; the certificate of one client is not that of another."""
    for name, wrong in (("dn", (None, parties.own, parties.spa)), ("own", (None, parties.app, parties.spa))):
        token = ledger.issue(name)["refresh_token"]
        for shown in wrong:
            check_invalid_client(ledger.refresh(name, token, shown))
        check_invalid_client(ledger.refresh("nobody", token, parties.app))
        answer = ledger.refresh(name, token, parties.app if name == "dn" else parties.own)
        assert 200 == answer.status, answer.body


def test_the_client_is_the_one_named_in_the_body(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 2: `client_id` must be there; the certificate does not stand in for it."""
    grant = ledger.issue("dn")
    fields = {"grant_type": "refresh_token", "refresh_token": grant["refresh_token"]}
    check_invalid_client(ledger.form("/token", fields, parties.app))
    foreign = ledger.refresh("dns", grant["refresh_token"], parties.app)  # of its own, by the same certificate
    assert (400, "invalid_grant") == (foreign.status, foreign.json()["error"])
    assert ledger.topics(grant["grant_id"])[-1] in ("grant.issued", "grant.foreign_client_presented")


def test_exactly_one_method_a_request(ledger: Ledger, parties: Parties) -> None:
    """CA-3: a client of certificates cannot use a secret, one with a secret must, and a certificate excuses neither."""
    token = ledger.issue("dn")["refresh_token"]
    check_invalid_client(ledger.refresh("dn", token, parties.app, client_secret="S3cret"))
    used_header = ledger.refresh("dn", token, parties.app, headers={"Authorization": basic("dn", "S3cret")})
    assert (401, "invalid_client") == (used_header.status, used_header.json()["error"])
    token = ledger.issue("www")["refresh_token"]
    check_invalid_client(ledger.refresh("www", token, parties.app))
    check_invalid_client(ledger.refresh("www", token, parties.app, client_secret="wrong"))
    assert 200 == ledger.refresh("www", token, parties.app, client_secret=str(SECRETS["www"])).status


def test_the_other_endpoints_of_clients_know_them_alike(ledger: Ledger, parties: Parties) -> None:
    """RFC 7009, RFC 7662: revocation and introspection authenticate as the token endpoint does."""
    grant = ledger.issue("own")
    asked = {"token": grant["refresh_token"], "client_id": "own"}
    for path in ("/introspect", "/revoke"):
        check_invalid_client(ledger.form(path, asked, parties.app))
    assert ledger.form("/introspect", asked, parties.own).json()["active"] is True
    assert 200 == ledger.form("/revoke", asked, parties.own).status
    assert {"active": False} == ledger.form("/introspect", asked, parties.own).json()


# ---------------------------------------------------------------- who is let in, and what that is worth


@pytest.mark.parametrize("version", VERSIONS)
def test_the_handshake_refuses_what_leads_to_no_anchor(
    ledger: Ledger, parties: Parties, version: ssl.TLSVersion
) -> None:
    """Strange authorities, unregistered ones, wrong purposes and dates end the handshake; no certificate does not."""
    stranger = authority()  # with the very name of the one that is trusted
    for party in (
        certificate("CN=app,O=Example", by=stranger),
        certificate("CN=own"),
        certificate("CN=app,O=Example", by=parties.ca, days=(-9, -1)),
        certificate("CN=app,O=Example", by=parties.ca, days=(1, 9)),
        certificate("CN=app,O=Example", by=parties.ca, usage=FOR_SERVERS),
    ):
        assert not ledger.let_in(ledger.context(party, version=version))
    assert ledger.let_in(ledger.context(parties.app, version=version))
    ledger.connect().close()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_registered_certificate_signs_for_nobody(
    ledger: Ledger, parties: Parties, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trust anchor of the handshake it lets in what it has signed; that is no client for all that.

    The broken twin, which believes the handshake, takes it for the client whose name it bears.
    """
    forged = certificate("CN=app,O=Example", by=parties.own, names=NAMES)
    context = ledger.context(forged, version=version)
    assert ledger.let_in(context)
    token = ledger.issue("dn")["refresh_token"]
    check_invalid_client(ledger.refresh("dn", token, context))
    check_invalid_client(ledger.refresh("dns", token, context))
    check_invalid_client(ledger.refresh("own", token, context))
    monkeypatch.setattr("api.certificates.Authorities.vouch", lambda self, certificate, at: at + 1)
    taken = ledger.refresh("dn", token, context)
    assert 200 == taken.status
    monkeypatch.undo()
    check_invalid_client(ledger.refresh("dn", taken.json()["refresh_token"], context))


@pytest.mark.parametrize(("version", "tickets"), [*((version, True) for version in VERSIONS), (VERSIONS[0], False)])
def test_a_session_taken_up_again_has_the_same_identity(
    ledger: Ledger, parties: Parties, version: ssl.TLSVersion, tickets: bool
) -> None:
    """RFC 5246 7.3, RFC 5077, RFC 8446 4.6.1: the certificate is the first handshake's, by ticket and by session id,
    and it is judged again."""
    token = ledger.issue("own")["refresh_token"]
    contexts = {party: ledger.context(party, version=version) for party in (parties.own, parties.app)}
    for context in contexts.values():
        context.options |= ssl.Options(0) if tickets else ssl.OP_NO_TICKET
    with contextlib.ExitStack() as open_still:  # a session by id ends with a connection that is cut
        sessions = {}
        for party, context in contexts.items():
            connection = open_still.enter_context(ledger.connect(context))
            assert isinstance(connection.socket, ssl.SSLSocket)
            sessions[party] = connection.socket.session
        for party, session in sessions.items():
            with ledger.running.connect(tls=contexts[party], session=session) as connection:
                assert isinstance(connection.socket, ssl.SSLSocket)
                assert connection.socket.session_reused
                answer = ledger.refresh("own", token, connection)
                if party is parties.app:
                    check_invalid_client(answer)
                    continue
                assert 200 == answer.status, answer.body
                token = answer.json()["refresh_token"]
                told = ledger.introspect(answer.json()["access_token"])
                assert {"x5t#S256": party.x5t_s256} == told["cnf"]


# ---------------------------------------------------------------- certificate-bound tokens


def test_a_public_clients_grant_stays_with_the_certificate_it_was_issued_to(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 4: with another certificate or none its token is an unknown one; nothing is consumed, no reuse seen."""
    grant = ledger.issue("page", cnf={"x5t#S256": parties.spa.x5t_s256})
    assert {"x5t#S256": parties.spa.x5t_s256} == ledger.introspect(grant["access_token"])["cnf"]
    token = grant["refresh_token"]
    for shown in (None, parties.app, parties.own):
        refused = ledger.refresh("page", token, shown)
        assert (400, "invalid_grant") == (refused.status, refused.json()["error"]), refused.body
        assert "reason" not in refused.json()
    assert {"grant.issued"} == {*ledger.topics(grant["grant_id"])}
    first = ledger.refresh("page", token, parties.spa)
    assert 200 == first.status, first.body
    again = ledger.refresh("page", first.json()["refresh_token"], parties.spa)
    assert {"x5t#S256": parties.spa.x5t_s256} == ledger.introspect(again.json()["access_token"])["cnf"]
    # Retired by now: with another certificate it is still nobody's, and no reuse; with its own it is.
    before = ledger.topics(grant["grant_id"])
    assert 400 == ledger.refresh("page", token, parties.app).status
    assert before == ledger.topics(grant["grant_id"])
    assert 400 == ledger.refresh("page", token, parties.spa).status
    assert "grant.reuse_detected" in ledger.topics(grant["grant_id"])


def test_a_public_client_that_must_be_bound_is_issued_no_grant_without(ledger: Ledger) -> None:
    """The grant is bound at its issuance, never by whoever comes first."""
    asked = {"client_id": "page", "subject": "somebody", "scope": "read"}
    answer = ledger.operator("issuer", "POST", "/grants", json.dumps(asked))
    assert (400, "invalid_request") == (answer.status, answer.json()["error"])


def test_a_public_clients_unbound_grant_is_not_bound_by_a_refresh(ledger: Ledger, parties: Parties) -> None:
    """A certificate shown with a refresh binds that access token alone."""
    token = ledger.issue("spa")["refresh_token"]
    bound = ledger.refresh("spa", token, parties.spa)
    assert {"x5t#S256": parties.spa.x5t_s256} == ledger.introspect(bound.json()["access_token"])["cnf"]
    free = ledger.refresh("spa", bound.json()["refresh_token"])
    assert 200 == free.status, free.body
    assert "cnf" not in ledger.introspect(free.json()["access_token"])


def test_a_confidential_client_may_change_certificates_but_not_do_without(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 4, 6.3: it authenticates, so its grant is its own with any; access tokens follow the new one."""
    grant = ledger.issue("sec", cnf={"x5t#S256": parties.spa.x5t_s256})
    secret, token = {"client_secret": "S3cret-and-bound"}, grant["refresh_token"]
    for party in (parties.spa, parties.app, parties.own):
        answer = ledger.refresh("sec", token, party, **secret)
        assert 200 == answer.status, answer.body
        assert {"x5t#S256": party.x5t_s256} == ledger.introspect(answer.json()["access_token"])["cnf"]
        token = answer.json()["refresh_token"]
    before = ledger.topics(grant["grant_id"])
    refused = ledger.refresh("sec", token, None, **secret)
    assert (400, "invalid_request") == (refused.status, refused.json()["error"])
    assert before == ledger.topics(grant["grant_id"])
    assert 200 == ledger.refresh("sec", token, parties.spa, **secret).status


def test_a_certificate_counts_for_each_request_of_its_connection(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 3: whatever a connection remembers of its client, every access token is bound; over another one with the
    same secret and no certificate there is none."""
    secret, token = {"client_secret": "S3cret-and-bound"}, ledger.issue("sec")["refresh_token"]
    with ledger.connect(parties.own) as shown, ledger.connect() as bare:
        for _ in range(5):
            answer = ledger.refresh("sec", token, shown, **secret)
            assert {"x5t#S256": parties.own.x5t_s256} == ledger.introspect(answer.json()["access_token"])["cnf"]
            token = answer.json()["refresh_token"]
            assert "invalid_request" == ledger.refresh("sec", token, bare, **secret).json()["error"]


def test_a_client_that_signs_assertions_may_show_a_certificate_too(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 3: the assertion says who it is, the certificate what its access token is bound to; alone it says
    nothing of this client."""
    grant = ledger.issue("jwt")
    check_invalid_client(ledger.refresh("jwt", grant["refresh_token"], parties.own))
    signer = registered("jwt", ledger.running.server.settings.issuer)
    answer = ledger.refresh("jwt", grant["refresh_token"], parties.own, **signer.form())
    assert 200 == answer.status, answer.body
    assert {"x5t#S256": parties.own.x5t_s256} == ledger.introspect(answer.json()["access_token"])["cnf"]
    redeemed = events(ledger, grant["grant_id"], "grant.token_redeemed")[-1]
    assert ("private_key_jwt", parties.own.x5t_s256) == (redeemed["auth_method"], redeemed["proof_x5t_s256"])


def test_a_retry_with_another_certificate_gets_another_access_token(ledger: Ledger, parties: Parties) -> None:
    """One successor for one token, whatever key is shown (I-03); the access token is the shown key's."""
    token = ledger.issue("sec")["refresh_token"]
    secret = {"client_secret": "S3cret-and-bound"}
    shown = (parties.app, parties.own, parties.app)
    one, two, same = (ledger.refresh("sec", token, party, **secret).json() for party in shown)
    assert one["refresh_token"] == two["refresh_token"] == same["refresh_token"]
    assert one["access_token"] == same["access_token"] != two["access_token"]
    assert {"x5t#S256": parties.own.x5t_s256} == ledger.introspect(two["access_token"])["cnf"]


def test_a_public_client_binds_its_grant_where_it_exchanges_its_code(ledger: Ledger, parties: Parties) -> None:
    """RFC 8705 4: to the certificate of that connection; one that must be bound gets nothing without, and keeps its
    code. The JWT says what introspection says (RFC 8705 3.1)."""

    def exchanged(client_id: str, code: str, shown: Party | None) -> Answer:
        fields = {"grant_type": "authorization_code", "code": code, "client_id": client_id}
        return ledger.form("/token", {**fields, "redirect_uri": CALLBACK, "code_verifier": VERIFIER}, shown)

    code = ledger.authorize("site")
    assert 400 == exchanged("site", code, None).status
    answer = exchanged("site", code, parties.spa)
    assert 200 == answer.status, answer.body
    tokens = answer.json()
    cnf = claims_of(tokens["access_token"])["cnf"]
    assert {"x5t#S256": parties.spa.x5t_s256} == cnf == ledger.introspect(tokens["access_token"])["cnf"]
    for shown in (None, parties.app):
        refused = ledger.refresh("site", tokens["refresh_token"], shown)
        assert (400, "invalid_grant") == (refused.status, refused.json()["error"])
    assert 200 == ledger.refresh("site", tokens["refresh_token"], parties.spa).status


@pytest.mark.parametrize(("parser", "fast_loop"), [("httptools", False), ("h11", True)])
def test_each_parser_works_on_the_other_loop_too(
    parties: Parties, tmp_path: Path, parser: Parser, fast_loop: bool
) -> None:
    """uvloop and asyncio bring their own TLS protocols, which know the peer each in its own way."""
    with mutual(tmp_path, clients(parties), parser=parser, fast_loop=fast_loop) as ledger:
        token = ledger.issue("own")["refresh_token"]
        check_invalid_client(ledger.refresh("own", token, parties.spa))
        for version in VERSIONS:
            answer = ledger.refresh("own", token, ledger.context(parties.own, version=version))
            assert 200 == answer.status, answer.body
            token = answer.json()["refresh_token"]


# ---------------------------------------------------------------- what changes while it serves


@pytest.mark.parametrize("parser", PARSERS)
def test_a_change_of_clients_takes_effect_at_once(tmp_path: Path, parser: Parser) -> None:
    """SIGHUP: the first registered certificate is asked for from then on, a second let in, the first refused; also on a
    connection that was there before."""
    one, two = certificate("CN=one"), certificate("CN=two")

    def of(*parties: Party) -> str:
        return client("own", "self_signed_tls_client_auth", jwks(*parties))

    with mutual(tmp_path, "", parser=parser, fast_loop=parser == "httptools") as ledger:
        assert ledger.let_in(two)  # nobody asks, so nothing is shown
        ledger.reload(of(one))
        token = ledger.issue("own")["refresh_token"]
        with ledger.connect(one) as open_before:
            token = ledger.refresh("own", token, open_before).json()["refresh_token"]
            assert not ledger.let_in(two)
            ledger.reload(of(one, two))
            token = ledger.refresh("own", token, two).json()["refresh_token"]
            token = ledger.refresh("own", token, open_before).json()["refresh_token"]
            ledger.reload(of(two))
            check_invalid_client(ledger.refresh("own", token, open_before))
            check_invalid_client(ledger.refresh("own", token, one))
            assert 200 == ledger.refresh("own", token, two).status


def test_new_authorities_are_taken_while_serving_and_wrong_ones_are_not(tmp_path: Path) -> None:
    """SIGHUP: the old authority's clients are refused from then on, on open connections too; a wrong file changes
    nothing."""
    old, new = authority("CN=Old"), authority("CN=New")
    apps = {ca: certificate("CN=app", by=ca) for ca in (old, new)}
    file = tmp_path / "ca.pem"
    file.write_text(old.pem)
    dn = client("dn", "tls_client_auth", 'tls_client_auth_subject_dn = "CN=app"')
    with mutual(tmp_path, dn, tls_client_ca=file) as ledger:
        token = ledger.issue("dn")["refresh_token"]
        with ledger.connect(apps[old]) as open_before:
            token = ledger.refresh("dn", token, open_before).json()["refresh_token"]
            assert not ledger.let_in(apps[new])
            for wrong in ("nothing of the kind", apps[new].pem, new.pem + apps[new].pem):
                file.write_text(wrong)
                ledger.reload()
                token = ledger.refresh("dn", token, open_before).json()["refresh_token"]
            file.write_text(new.pem)
            ledger.reload()
            check_invalid_client(ledger.refresh("dn", token, open_before))
            assert 200 == ledger.refresh("dn", token, apps[new]).status


def test_intermediate_authorities_belong_into_the_file(tmp_path: Path) -> None:
    """What a client sends along is not looked at: the same certificate is judged alike however it came."""
    root = authority("CN=Root")
    below = authority("CN=Below", by=root)
    app = certificate("CN=app", by=below)
    dn = client("dn", "tls_client_auth", 'tls_client_auth_subject_dn = "CN=app"')
    file = tmp_path / "ca.pem"
    file.write_text(root.pem)
    with mutual(tmp_path, dn, tls_client_ca=file) as ledger:
        token = ledger.issue("dn")["refresh_token"]
        assert not ledger.let_in(app)
        check_invalid_client(ledger.refresh("dn", token, ledger.context(app, below)))
        file.write_text(root.pem + below.pem)
        ledger.reload()
        assert 200 == ledger.refresh("dn", token, app).status


def test_clients_whose_certificates_bear_one_name_are_each_their_own(tmp_path: Path) -> None:
    """Self-signed certificates with one subject, registered at once and one by one: found by what they are."""
    many = [certificate("CN=client") for _ in range(40)]
    tables = [client(f"own{number}", "self_signed_tls_client_auth", jwks(each)) for number, each in enumerate(many)]
    with mutual(tmp_path, "\n".join(tables)) as ledger:
        for number in (0, 17, 39):
            token = ledger.issue(f"own{number}")["refresh_token"]
            check_invalid_client(ledger.refresh(f"own{number}", token, many[number - 1]))
            assert 200 == ledger.refresh(f"own{number}", token, many[number]).status


def test_nobody_is_asked_where_no_certificate_could_be_anybodys(tmp_path: Path) -> None:
    """Some clients show whatever they have when asked, and browsers ask their person: so nobody is asked in vain."""
    with mutual(tmp_path, "") as ledger, ledger.connect(certificate("CN=whoever")) as connection:
        assert 200 == connection.exchange(request_bytes("GET", "/readyz")).status
