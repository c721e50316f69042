"""Client certificates as requests bring them (RFC 8705, RFC 9440): who is believed, what is read, who vouches."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from api.answers import BadRequest
from api.certificates import DER, HEADER, Authorities, ClientCertificates
from api.server import Parser
from api.settings import SettingsError, load
from ledger.certificates import read
from ledger.clients import Client, Settings
from tests.certificate_clients import BOUND, check_invalid_client, client, jwks
from tests.certificates import DAY_SECONDS, FOR_CLIENTS, FOR_SERVERS, Party, authority, certificate
from tests.ledgers import Clock
from tests.mutual_tls import Ledger, mutual
from tests.serving import PARSERS, logged
from tests.wire import Answer

NOW = 1_800_000_000_000_000


def now(party: Party) -> int:
    """A moment inside a certificate's validity, in microseconds."""
    return int(party.certificate.not_valid_before_utc.timestamp() + DAY_SECONDS) * 1_000_000


# ---------------------------------------------------------------- what a request brings


MINE = certificate()
FORMS: dict[str, dict[str, Any]] = {
    "native": {DER: MINE.der},
    "RFC 9440": {HEADER: (MINE.rfc9440.encode(),)},
    "escaped": {HEADER: (MINE.escaped.encode(),)},
    "escaped no more than it must": {HEADER: (quote(MINE.pem, safe=" /+=").encode(),)},
    "with its chain": {HEADER: (quote(MINE.pem + authority().pem).encode(),)},  # its own comes first
}


@pytest.mark.parametrize("form", FORMS)
def test_a_certificate_is_the_same_however_it_comes(form: str) -> None:
    """RFC 9440 2.1 and URL-encoded PEM; read once and remembered."""
    certificates = ClientCertificates(lambda: now(MINE))
    first, second = (certificates.of({"tls": FORMS[form]}) for _ in range(2))
    assert first is not None
    assert first is second
    assert MINE.x5t_s256 == first.x5t_s256 == certificates.proof({"tls": FORMS[form]})


def test_other_extensions_of_a_scope_are_no_certificate() -> None:
    """ASGI: a server may say all kinds of things there."""
    certificates = ClientCertificates(lambda: NOW)
    others: tuple[dict[str, Any], ...] = ({}, {"http.response.debug": {}}, {"tls": {}})
    for extensions in others:
        assert certificates.of(extensions) is None
        assert certificates.proof(extensions) is None


GOOD = certificate()
GARBAGE: list[bytes] = [
    b":",
    b"::",
    b":!:",
    b":MIIB:",
    GOOD.rfc9440.encode()[:-1],
    GOOD.rfc9440.encode()[1:],
    b":" + GOOD.rfc9440.encode() + b":",
    GOOD.rfc9440.encode() + b", " + GOOD.rfc9440.encode(),
    GOOD.x5c.encode(),
    GOOD.escaped.encode()[:-30],
    GOOD.escaped.encode().replace(b"CERTIFICATE", b"PRIVATE%20KEY"),
    b"-----BEGIN%20CERTIFICATE-----%0A-----END%20CERTIFICATE-----%0A",
    b"%ff%fe%00",
    b"-",
    b"(null)",
    b"x" * 20_000,
    "Zertifikat ü".encode(),
]


@pytest.mark.parametrize("value", GARBAGE, ids=map(str, range(len(GARBAGE))))
def test_what_a_proxy_says_that_is_no_certificate_is_refused(value: bytes) -> None:
    """A clear refusal: a certificate that is there and cannot be read must not count as none."""
    certificates = ClientCertificates(lambda: NOW)
    for ask in (certificates.of, certificates.proof):
        with pytest.raises(BadRequest, match="the client certificate cannot be read"):
            ask({"tls": {HEADER: (value,)}})


def test_two_headers_are_refused() -> None:
    """RFC 9440 2.2: there is one; which of two a proxy meant, nobody can say."""
    certificates = ClientCertificates(lambda: NOW)
    with pytest.raises(BadRequest, match="is given twice"):
        certificates.of({"tls": {HEADER: (GOOD.rfc9440.encode(),) * 2}})


def test_what_is_remembered_is_bounded() -> None:
    """However many certificates pass: a memory that grows with them would be anybody's to fill."""
    certificates = ClientCertificates(lambda: NOW)
    key = GOOD.key
    for _ in range(1100):
        certificates.of({"tls": {DER: certificate(key=key).der}})
    assert 0 < len(certificates._read) <= 1024
    padded = quote(GOOD.pem + "x" * 10_000).encode()
    assert certificates.of({"tls": {HEADER: (padded,)}}) is not None
    assert padded not in certificates._read


# ---------------------------------------------------------------- dates


@pytest.mark.parametrize("days", [(-9, -1), (1, 9)])
def test_a_certificate_outside_its_dates_is_nobodys_and_binds_nothing(days: tuple[int, int]) -> None:
    """RFC 5280 4.1.2.5: judged at every request, self-signed or not; a proof is refused aloud, not left out."""
    ca = authority(days=(-20, 20))
    for party, settings in (
        (certificate("CN=app", by=ca, days=days), {"auth": "tls_client_auth", "tls_client_auth_subject_dn": "CN=app"}),
        (own := certificate(days=days), {"auth": "self_signed_tls_client_auth", "jwks": (own.jwk,)}),
    ):
        inside = now(party) if days[0] > 0 else now(party) - 1
        clock = Clock(now(ca) + 19 * DAY_SECONDS * 1_000_000)
        certificates = ClientCertificates(clock)
        certificates.authorities = Authorities([ca.certificate])
        shown = {"tls": {DER: party.der}}
        found, whose = certificates.of(shown), Client(client_id="c", enabled=True, settings=Settings(**settings))
        assert found is not None
        assert not certificates.authenticates(whose, found)
        with pytest.raises(BadRequest, match="has expired or is not valid yet"):
            certificates.proof(shown)
        clock.now = inside
        assert certificates.authenticates(whose, found)
        assert party.x5t_s256 == certificates.proof(shown)


def test_one_that_was_vouched_for_is_so_no_longer_than_its_authority_lives() -> None:
    """What is remembered of a chain ends with the first certificate in it that ends."""
    ca = authority(days=(-2, 1))
    party = certificate("CN=app", by=ca, days=(-2, 30))
    at = [now(party)]
    certificates = ClientCertificates(lambda: at[0])
    certificates.authorities = Authorities([ca.certificate])
    found = read(party.der)
    whose = Client(client_id="c", settings=Settings(auth="tls_client_auth", tls_client_auth_subject_dn="CN=app"))
    assert certificates.authenticates(whose, found)
    at[0] += 3 * DAY_SECONDS * 1_000_000
    assert found.valid_at(at[0])
    assert not certificates.authenticates(whose, found)


# ---------------------------------------------------------------- authorities


def vouched(party: Party, *authorities: Party) -> bool:
    return Authorities([each.certificate for each in authorities]).vouch(read(party.der), now(party)) is not None


def test_who_vouches() -> None:
    """RFC 5280 6: whoever is in the file and an authority, for what was issued to clients, within its own limits."""
    ca, same_name = authority(), authority()
    below = authority("CN=Below", by=ca)
    no_ca = certificate("CN=Below", by=ca)
    narrow = authority("CN=Narrow", path_length=0)
    under_narrow = authority("CN=Under", by=narrow)
    assert vouched(certificate(by=ca), ca)
    assert vouched(certificate(by=ca, usage=FOR_CLIENTS), same_name, ca)
    assert vouched(certificate(by=below), ca, below)
    assert vouched(certificate(by=below), below)
    assert vouched(certificate(by=ca, key=ed25519.Ed25519PrivateKey.generate()), ca)
    assert vouched(certificate(by=ca, key=rsa.generate_private_key(65537, 2048)), ca)
    assert not vouched(certificate(by=ca))
    assert not vouched(certificate(), ca)
    assert not vouched(certificate(by=same_name), ca)
    assert not vouched(certificate(by=ca, usage=FOR_SERVERS), ca)
    assert not vouched(certificate(by=below), ca)
    assert not vouched(certificate(by=no_ca), ca)
    assert vouched(certificate(by=narrow), narrow)
    assert not vouched(certificate(by=under_narrow), narrow)


def test_a_file_of_authorities_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    """The setting, the file, and which certificate in it."""
    file = tmp_path / "ca.pem"

    def said(text: str | None) -> str:
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError) as refused:
            Authorities.load(file)
        assert "\n" not in str(refused.value)
        return str(refused.value).removeprefix(f"TOKEN_LEDGER_TLS_CLIENT_CA: {file}")

    ca, edwards = authority(), authority(key=ed25519.Ed25519PrivateKey.generate())
    assert " cannot be read: No such file or directory" == said(None)
    assert " holds no certificates in PEM" == said("")
    assert " holds no certificates in PEM" == said("nothing of the kind")
    assert " holds no certificates in PEM" == said(ca.pem[:-40])
    assert ": certificate 2 is no certificate authority" == said(ca.pem + certificate().pem)
    assert ": certificate 1 is no certificate authority" == said(certificate("CN=x", authority=False).pem)
    keys = "has a key that chains are not verified with: allowed are EC and RSA with 2048 bits or more"
    assert f": certificate 2 {keys}" == said(ca.pem + edwards.pem)
    assert f": certificate 1 {keys}" == said(authority(key=rsa.generate_private_key(65537, 1024)).pem)
    file.write_text(f"# a comment\n{ca.pem}\n{authority('CN=Other', by=ca).pem}")
    assert 2 == len(Authorities.load(file).certificates)
    assert () == Authorities.load(None).certificates


def test_an_authority_constrained_to_names_vouches_for_those_alone() -> None:
    """RFC 5280 4.2.1.10: what `cryptography` checks is not switched off with the rules of the public web."""
    ca = authority(constraints=x509.NameConstraints([x509.DNSName("good.example")], None))
    assert vouched(certificate(by=ca, names=[x509.DNSName("app.good.example")]), ca)
    assert not vouched(certificate(by=ca, names=[x509.DNSName("app.bad.example")]), ca)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"TLS_CLIENT_CERT_HEADER": "Client-Cert"},
         "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER: believed from TOKEN_LEDGER_TRUSTED_PROXIES only, and there are none"),
        ({"TLS_CLIENT_CERT_HEADER": "Client Cert", "TRUSTED_PROXIES": "127.0.0.1"},
         "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER: allowed is the name of a header that means nothing else here, such as "
         "Client-Cert"),
        ({"TLS_CLIENT_CERT_HEADER": "Authorization", "TRUSTED_PROXIES": "127.0.0.1"},
         "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER: allowed is the name of a header that means nothing else here, such as "
         "Client-Cert"),
        ({"TLS_CLIENT_CERT_HEADER": "X-Request-ID", "TRUSTED_PROXIES": "127.0.0.1"},
         "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER: allowed is the name of a header that means nothing else here, such as "
         "Client-Cert"),
        ({"TLS_CLIENT_CA": "ca.pem", "ALLOW_PLAIN_HTTP": "1"},
         "TOKEN_LEDGER_TLS_CLIENT_CA: needs TOKEN_LEDGER_TLS_CERT and TOKEN_LEDGER_TLS_KEY, or "
         "TOKEN_LEDGER_TLS_CLIENT_CERT_HEADER behind a proxy"),
    ],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(changed: dict[str, str], line: str) -> None:
    """Whoever sets them must not believe that certificates are looked at."""
    with pytest.raises(SettingsError) as refused:
        load({f"TOKEN_LEDGER_{name}": value for name, value in changed.items()})
    assert line == str(refused.value)


# ---------------------------------------------------------------- behind a proxy

PROXY, STRANGER = "127.0.0.2", "127.0.0.3"
CA = authority()
APP = certificate("CN=app", by=CA)
OWN = certificate("CN=own")
CLIENTS = "\n".join(
    (
        client("dn", "tls_client_auth", 'tls_client_auth_subject_dn = "CN=app"'),
        client("own", "self_signed_tls_client_auth", jwks(OWN)),
        client("hash", "self_signed_tls_client_auth", f'jwks = {{ keys = [{{ "x5t#S256" = "{OWN.x5t_s256}" }}] }}'),
        client("page", "none", BOUND),
    )
)


def proxied(tmp_path: Path, parser: Parser = "auto", **settings: Any) -> Any:
    """Serve behind a proxy at PROXY, which speaks plain HTTP to us, or TLS where `tls` says so. It tells of
    certificates in a header unless that is said to be None."""
    (tmp_path / "ca.pem").write_text(CA.pem)
    trusted = load({"TOKEN_LEDGER_TRUSTED_PROXIES": PROXY}).trusted_proxies
    return mutual(
        tmp_path,
        CLIENTS,
        **{"tls": False, "tls_client_ca": tmp_path / "ca.pem", "tls_client_cert_header": "X-Client-Cert", **settings},
        parser=parser,
        fast_loop=parser != "h11",
        trusted_proxies=trusted,
    )


def told(ledger: Ledger, name: str, token: str, *values: str, source: str = PROXY, shown: Any = None) -> Answer:
    """Refresh through a proxy that says these certificates."""
    headers = {f"{'x-client-cert' if number else 'X-Client-Cert'}": value for number, value in enumerate(values)}
    return ledger.refresh(name, token, shown, headers=headers, source=source)


@pytest.mark.parametrize("parser", PARSERS)
def test_the_header_is_believed_from_a_trusted_proxy_and_from_nobody_else(tmp_path: Path, parser: Parser) -> None:
    """CA-10: in both forms, again on the same connection; from another address it is as if it were not there."""
    with proxied(tmp_path, parser) as ledger:
        for name, party in (("dn", APP), ("own", OWN), ("hash", OWN)):
            token = ledger.issue(name)["refresh_token"]
            for value in (party.rfc9440, party.escaped):
                check_invalid_client(told(ledger, name, token, value, source=STRANGER))
                check_invalid_client(told(ledger, name, token, value, source="127.0.0.1"))
            check_invalid_client(told(ledger, name, token))
            check_invalid_client(told(ledger, name, token, ""))
            check_invalid_client(told(ledger, name, token, (APP if party is OWN else OWN).rfc9440))
            with ledger.connect(source=PROXY) as connection:
                for value in (party.rfc9440, party.rfc9440, party.escaped, party.escaped):
                    answer = told(ledger, name, token, value, shown=connection)
                    assert 200 == answer.status, answer.body
                    token = answer.json()["refresh_token"]
                    assert {"x5t#S256": party.x5t_s256} == ledger.introspect(answer.json()["access_token"])["cnf"]
                check_invalid_client(told(ledger, name, token, shown=connection))


@pytest.mark.parametrize("parser", PARSERS)
def test_one_connection_of_a_proxy_carries_many_clients(tmp_path: Path, parser: Parser) -> None:
    """The header speaks for its request alone, the same head sent again included."""
    with proxied(tmp_path, parser) as ledger, ledger.connect(source=PROXY) as connection:
        tokens = {"dn": ledger.issue("dn")["refresh_token"], "own": ledger.issue("own")["refresh_token"]}
        for name, party, other in [("dn", APP, OWN), ("own", OWN, APP)] * 2:
            check_invalid_client(told(ledger, name, tokens[name], other.rfc9440, shown=connection))
            answer = told(ledger, name, tokens[name], party.rfc9440, shown=connection)
            assert 200 == answer.status, answer.body
            tokens[name] = answer.json()["refresh_token"]


def test_what_a_proxy_lets_through_is_verified_all_the_same(tmp_path: Path) -> None:
    """A proxy that lets every certificate through, as it must with self-signed ones, gives nobody a name."""
    forged = certificate("CN=app", by=authority(), days=(-1, 9))
    expired = certificate("CN=app", by=CA, days=(-9, -1))
    with proxied(tmp_path) as ledger:
        token = ledger.issue("dn")["refresh_token"]
        for party in (forged, expired, certificate("CN=app")):
            check_invalid_client(told(ledger, "dn", token, party.rfc9440))
        assert 200 == told(ledger, "dn", token, APP.rfc9440).status


def test_without_authorities_no_name_is_believed_and_thumbprints_are(tmp_path: Path) -> None:
    """TLS_CLIENT_CA is what a name rests on; that it lacks is a line of warning at the start."""
    with logged() as lines, proxied(tmp_path, tls_client_ca=None) as ledger:
        (told_of,) = [record for record in lines.records if record.msg == "clients_cannot_sign_in"]
        lacks = "TOKEN_LEDGER_TLS_CLIENT_CA, or any way to see certificates"
        assert {"auth": "tls_client_auth", "lacks": lacks} == getattr(told_of, "fields", {})
        check_invalid_client(told(ledger, "dn", ledger.issue("dn")["refresh_token"], APP.rfc9440))
        assert 200 == told(ledger, "own", ledger.issue("own")["refresh_token"], OWN.rfc9440).status


def test_garbage_and_two_certificates_are_refused_and_consume_nothing(tmp_path: Path) -> None:
    """400 `invalid_request`, whoever asks; never a 500, and from a stranger it is not even read."""
    with proxied(tmp_path) as ledger:
        own, www = ledger.issue("own")["refresh_token"], ledger.issue("www")["refresh_token"]
        secret = {"client_secret": "Secr3t!"}
        for values in (("garbage",), (OWN.rfc9440, OWN.rfc9440), (OWN.rfc9440, "")):
            assert "invalid_request" == told(ledger, "own", own, *values).json()["error"]
            headers = {f"{'x-client-cert' if number else 'X-Client-Cert'}": each for number, each in enumerate(values)}
            refused = ledger.refresh("www", www, headers=headers, source=PROXY, **secret)
            assert (400, "invalid_request") == (refused.status, refused.json()["error"])
            for path in ("/revoke", "/introspect"):
                fields = {"client_id": "own", "token": own}
                assert 400 == ledger.form(path, fields, headers=headers, source=PROXY).status
        strange = ledger.refresh("www", www, headers={"X-Client-Cert": "garbage"}, source=STRANGER, **secret)
        assert 200 == strange.status, strange.body
        assert 200 == told(ledger, "own", own, OWN.rfc9440).status


def test_a_public_client_behind_a_proxy_is_bound_to_whatever_it_showed(tmp_path: Path) -> None:
    """RFC 8705 4: any certificate will do, registered or not, as long as it is the same one."""
    mine, other = certificate("CN=mine"), certificate("CN=mine")
    with proxied(tmp_path) as ledger:
        token = ledger.issue("page", cnf={"x5t#S256": mine.x5t_s256})["refresh_token"]
        for values in ((), (other.rfc9440,)):
            refused = told(ledger, "page", token, *values)
            assert (400, "invalid_grant") == (refused.status, refused.json()["error"])
        expired = certificate("CN=mine", days=(-9, -1))
        assert "invalid_request" == told(ledger, "page", token, expired.rfc9440).json()["error"]
        assert 200 == told(ledger, "page", token, mine.escaped).status


def test_a_proxys_own_certificate_is_not_the_clients(tmp_path: Path) -> None:
    """Where proxy and server know each other by TLS: its header speaks, its connection does not; for others their
    connection does, and no header."""
    with proxied(tmp_path, tls=True) as ledger:
        dn, own = ledger.issue("dn")["refresh_token"], ledger.issue("own")["refresh_token"]
        with ledger.connect(APP, source=PROXY) as connection:
            check_invalid_client(told(ledger, "dn", dn, shown=connection))
            check_invalid_client(told(ledger, "dn", dn, OWN.rfc9440, shown=connection))
            assert 200 == told(ledger, "own", own, OWN.rfc9440, shown=connection).status
        with ledger.connect(APP, source=STRANGER) as connection:
            assert 200 == told(ledger, "dn", dn, OWN.rfc9440, shown=connection).status


def test_nor_is_it_where_the_proxy_tells_of_none(tmp_path: Path) -> None:
    """Else a public client's grant would be bound to the proxy, and end when that renews its certificate."""
    with proxied(tmp_path, tls=True, tls_client_cert_header=None) as ledger:
        dn = ledger.issue("dn")["refresh_token"]
        with ledger.connect(APP, source=PROXY) as connection:
            check_invalid_client(told(ledger, "dn", dn, shown=connection))
        with ledger.connect(APP, source=STRANGER) as connection:
            assert 200 == told(ledger, "dn", dn, shown=connection).status
