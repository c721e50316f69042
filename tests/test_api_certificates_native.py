"""Client certificates on the server's own TLS (RFC 8705): real handshakes, real clients, real refreshes."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.server import Parser
from tests.certificate_clients import (
    NAMES,
    VERSIONS,
    Parties,
    check_invalid_client,
    client,
    clients,
    events,
    jwks,
    native,
)
from tests.certificates import FOR_SERVERS, Party, authority, certificate
from tests.mutual_tls import Ledger, mutual
from tests.servers import SECRETS, basic
from tests.serving import PARSERS
from tests.wire import request_bytes


@pytest.fixture(scope="module", params=PARSERS)
def ledger(
    request: pytest.FixtureRequest, parties: Parties, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ledger]:
    """One server a parser."""
    with native(tmp_path_factory.mktemp("native"), parties, request.param) as served:
        yield served


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


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_from_before_a_reload_is_begun_anew(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """SIGHUP: a whole handshake follows, which asks for the certificate again; what that begins is taken up as ever."""
    own = certificate("CN=own")
    with mutual(tmp_path, client("own", "self_signed_tls_client_auth", jwks(own))) as ledger:
        context = ledger.context(own, version=version)
        token = ledger.issue("own")["refresh_token"]
        for reloaded in (True, False):
            with ledger.connect(context) as connection:
                assert isinstance(connection.socket, ssl.SSLSocket)
                session = connection.socket.session
            if reloaded:
                ledger.reload()
            with ledger.running.connect(tls=context, session=session) as connection:
                answer = ledger.refresh("own", token, connection)
                assert 200 == answer.status, answer.body
                token = answer.json()["refresh_token"]
                assert isinstance(connection.socket, ssl.SSLSocket)
                assert connection.socket.session_reused is not reloaded


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
