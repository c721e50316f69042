"""Tokens bound to a client's certificate (RFC 8705 3, 4): by real handshakes on the server's own TLS."""

import json
from collections.abc import Iterator

import pytest

from tests.certificate_clients import Parties, check_invalid_client, events, native
from tests.certificates import Party
from tests.jwts import claims_of
from tests.mutual_tls import Ledger
from tests.servers import CALLBACK, VERIFIER
from tests.serving import PARSERS
from tests.signers import registered
from tests.wire import Answer


@pytest.fixture(scope="module", params=PARSERS)
def ledger(
    request: pytest.FixtureRequest, parties: Parties, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ledger]:
    """One server a parser."""
    with native(tmp_path_factory.mktemp("native"), parties, request.param) as served:
        yield served


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
