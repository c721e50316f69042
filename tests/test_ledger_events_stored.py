"""Every topic as the running program stores it, held against the table of version 1: members, types, canonical bytes.

The table is written out here by hand. What stands in a log once stays readable for ever, so a member that is missing,
misspelled or of another type must not first be noticed in somebody's archive.
"""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from api import clients_file
from ledger import times
from tests.asking import ELSEWHERE, Asking, asking, credentials
from tests.ledgers import OPTIONS, open_ledger
from tests.servers import CALLBACK, CHALLENGE, VERIFIER
from tests.wire import Json

MORE = """
[[client]]
id = "res"
secret = "W!indow-of-grace"
scope = "read openid profile"
resource = ["https://a.example/", "https://b.example/x"]
origins = ["https://app.example"]
redirect_uris = ["https://app.example/cb"]
may_introspect = ["https://a.example/"]
policy = { refresh_token_ttl_seconds = "unlimited", grant_ttl_seconds = "unlimited" }

[[client]]
id = "all"
secret = "W!indow-of-grace"
scope = "read openid profile"
policy = { preset = "strict", on_reuse = "revoke_subject" }
"""

BEGINS = "stream v at command_id prev? topic"
GRANT = f"{BEGINS} control"
TOKEN = (
    "scope resource? cnf_jkt? cnf_x5t_s256? format signing_key_id access_token_issued_at access_token_expires_at"
    " client_v"
)
PRESENTER = "context auth_method proof_jkt? proof_x5t_s256?"
POLICY = (
    "policy_rotation policy_concurrent_seconds policy_retry_window_seconds policy_retry_budget"
    " policy_unconfirmed_seconds policy_on_reuse policy_scope_mode policy_access_token_ttl_seconds"
    " policy_refresh_token_ttl_seconds? policy_grant_ttl_seconds? policy_access_token_format"
)
SETTINGS = (
    f"auth scope grant_types secret_hashes {POLICY} resource? may_introspect? origins? redirect_uris? client_id serial?"
    " requested_by jwks? jwks_uri? token_endpoint_auth_signing_alg? assertion_audience? dpop_bound_access_tokens?"
    " dpop_nonce_required? tls_client_certificate_bound_access_tokens? allow_unbound_reuse? tls_client_auth_subject_dn?"
    " tls_client_auth_san_dns? tls_client_auth_san_uri? tls_client_auth_san_ip? tls_client_auth_san_email?"
)
ENDED = f"{GRANT} reason_class reason? requested_by"
EPOCH = f"{BEGINS} epoch before? reason? reason_class requested_by"
OPERATOR = f"{BEGINS} name token_hashes roles clients? serial? requested_by"
KEYS = f"{BEGINS} key_id requested_by"

TABLE = {
    "grant.authorized": f"{GRANT} client_id subject_id client_epoch subject_epoch nonce_sha256 key_id issued_by"
    " redirect_uri challenge scope resource? dpop_jkt? session? auth_time? acr? amr? code_expires_at",
    "grant.issued": f"{GRANT} {TOKEN} {POLICY} client_id subject_id client_epoch subject_epoch nonce_sha256 key_id"
    " generation idle_seconds? idle_expires_at? absolute_expires_at? bound_jkt? bound_x5t_s256? auth_time? acr? amr?"
    " issued_by session? device?",
    "grant.token_redeemed": f"{GRANT} {TOKEN} {PRESENTER} generation idle_expires_at?",
    "grant.token_rotated": f"{GRANT} generation key_id idle_expires_at? concurrent_until? retry_until?"
    " unconfirmed_until? retry_budget",
    "grant.scope_reduced": f"{GRANT} scope_before scope_after requested_by",
    "grant.scope_restored": f"{GRANT} scope_before scope_after requested_by",
    "grant.retry_served": f"{GRANT} {PRESENTER} presented_generation kind counts"
    + "".join(f" {name.removesuffix('?')}?" for name in TOKEN.split()),
    "grant.reuse_detected": f"{GRANT} {PRESENTER} presented_generation current_generation label"
    " seconds_since_redeemed first_context action",
    "grant.suspended": ENDED,
    "grant.revoked": ENDED,
    "grant.reinstated": f"{GRANT} reason? requested_by trust?",
    "grant.expired": f"{GRANT} {PRESENTER} kind expired_at presented_generation",
    "grant.refresh_token_withheld": GRANT,
    "grant.access_token_revoked": f"{GRANT} issued_v requested_by",
    "grant.foreign_client_presented": f"{GRANT} {PRESENTER} presented_generation presenter_client_id",
    "grant.presentations_counted": f"{GRANT} count first_at last_at last_generation last_context",
    "grant.rollback_detected": f"{GRANT} {PRESENTER} presented_generation current_generation",
    "client.registered": f"{BEGINS} {SETTINGS}",
    "client.changed": f"{BEGINS} {SETTINGS}",
    "client.disabled": f"{BEGINS} client_id serial? requested_by",
    "client.revoked": f"{EPOCH} client_id",
    "subject.revoked": f"{EPOCH} subject_id",
    "subject.erased": f"{BEGINS} subject_id requested_by",
    "operator.registered": OPERATOR,
    "operator.changed": OPERATOR,
    "operator.removed": f"{BEGINS} name serial? requested_by",
    "keys.rotated": f"{KEYS} fingerprint?",
    "keys.activated": KEYS,
    "keys.distrusted": KEYS,
    "ledger.started": f"{BEGINS} requested_by",
    "ledger.stopped": f"{BEGINS} requested_by",
    "ledger.restored": f"{BEGINS} lost_position lost_at requested_by",
    "audit.read": f"{BEGINS} question grant_id? requested_by",
}
"""Topic → its members; `?` marks one that is left out where it is null."""

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
HASH = "[0-9a-f]{64}"
LISTS = {
    "scope", "scope_before", "scope_after", "resource", "amr", "grant_types", "secret_hashes", "may_introspect",
    "origins", "redirect_uris", "token_hashes", "roles", "clients", "jwks",
}  # fmt: skip
BOOLEANS = {
    "counts", "dpop_bound_access_tokens", "dpop_nonce_required", "tls_client_certificate_bound_access_tokens",
    "allow_unbound_reuse",
}  # fmt: skip
INTEGERS = re.compile(
    ".*_(seconds|generation|key_id|epoch|budget|time|redeemed|v)|v|control|generation|key_id|epoch|count|serial"
)
TEXTS = {
    "at|before|.*_(at|until)": TIME,
    "prev|nonce_sha256|context|.*_context|reason|session|device": HASH,
    "command_id|subject_id|grant_id|fingerprint": "[0-9a-f]{32}",
    "stream": "grant:[0-9a-f]{32}|subject:[0-9a-f]{32}|client:.+|operator:.+|keys|ledger|audit",
    "requested_by|issued_by": "client:.+|operator:.+|ledger:(reuse|rollback|erase)",
    "reason_class": "withdrawal|completion|termination|reuse|rollback",
    "lost_position": "[1-9][0-9]*",
    "label": "late_retry|fork",
    "action": "revoke|suspend|alert|revoke_subject",
    "trust": "current",
}


def check_type(name: str, value: Json) -> None:
    """A member's value is of the type, and a text of the form, that its name stands for."""
    if name in LISTS:
        assert isinstance(value, list), name
        assert all(isinstance(word, str) for word in value), name
    elif name in BOOLEANS:
        assert isinstance(value, bool)
    elif INTEGERS.fullmatch(name):
        assert type(value) is int, name
        assert 0 <= value < 2**53, name
    else:
        assert isinstance(value, str), name
        for names, form in TEXTS.items():
            assert not re.fullmatch(names, name) or re.fullmatch(form, value), f"{name}: {value}"


def check_event(body: str) -> str:
    """One flat object in the form of RFC 8785, no null, the members of its topic and no others; its topic."""
    event = json.loads(body)
    assert json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == body
    topic = str(event["topic"])
    members = TABLE[topic].split()
    known = {member.removesuffix("?") for member in members}
    assert event.keys() <= known, f"{topic} has more: {event.keys() - known}"
    always = {member for member in members if not member.endswith("?")}
    assert always <= event.keys(), f"{topic} lacks {always - event.keys()}"
    for name, value in event.items():
        check_type(name, value)
    assert ("prev" in event) == (event["v"] > 1), topic
    return topic


@pytest.mark.parametrize("topic", ["grant.issued", "grant.token_redeemed"])
@pytest.mark.parametrize("harm", [{"resource": None}, {"colour": "x"}, {"at": "now"}, {"v": "1"}, {"scope": "read"}])
def test_what_is_not_of_the_table_is_caught(topic: str, harm: Json) -> None:
    """The broken twins: null, a member too many, a wrong form, a wrong type."""
    golden = Path(__file__).with_name("golden") / f"{topic}.v1.json"
    body = golden.read_text("utf-8").strip()
    assert topic == check_event(body)
    event = json.loads(body) | harm
    with pytest.raises(AssertionError):
        check_event(json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


async def refreshed(ledger: Asking, client: str, token: str) -> Json:
    """Refresh as one of our own clients; they share a secret with `win`."""
    fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client}
    secret = credentials(client if client == "keep" else "win")["client_secret"]
    return (await ledger.form("/token", fields | {"client_secret": secret})).json()


async def everything_about_grants(ledger: Asking) -> None:
    """Let every event of a grant happen but the one that a restored backup brings."""
    full = await ledger.issue(
        "std", device="Ünïcode \u2028 phone", session="s", auth_time=1_764_091_130, acr="urn:x", amr=["pwd", "otp"],
        refresh_token_ttl_seconds=1_000, grant_ttl_seconds=100_000, cnf={"jkt": "k" * 43},
    )  # fmt: skip
    second = (await ledger.refresh("std", full["refresh_token"], scope="read")).json()
    for more in ({"scope": "read"}, {"scope": "read openid"}):  # the same access token, then another
        await ledger.refresh("std", full["refresh_token"], address=ELSEWHERE, **more)
    await ledger.refresh("std", second["refresh_token"], scope="read openid")
    ledger.clock.pass_seconds(20)
    for _ in range(2):
        await ledger.refresh("std", full["refresh_token"])
    suspended = await ledger.issue("susp", scope="")
    await ledger.refresh("susp", suspended["refresh_token"])
    await ledger.refresh("susp", suspended["refresh_token"])
    path = f"/grants/{suspended['grant_id']}"
    for role, act, body in (
        ("security", "reinstate", {"reason": "it was us", "trust": "current"}),
        ("admin", "suspend", {}),
        ("admin", "reinstate", {}),
    ):
        assert 200 == (await ledger.operator(role, "POST", f"{path}/{act}", body)).status_code
    await ledger.form("/revoke", {"token": suspended["access_token"], **credentials("susp")})
    await ledger.refresh("oth", suspended["refresh_token"])
    await asyncio.sleep(0.05)
    await ledger.operator("admin", "POST", f"{path}/revoke", {"reason": "over"})
    for client in ("keep", "res", "off"):
        issued = await ledger.issue(client)
        for _ in range(2):
            issued = issued if client == "off" else await refreshed(ledger, client, issued["refresh_token"])
    for lifetime in ({"refresh_token_ttl_seconds": 5}, {"grant_ttl_seconds": 5}):
        expired = await ledger.issue("www", subject=None, **lifetime)
        ledger.clock.pass_seconds(6)
        await ledger.refresh("www", expired["refresh_token"])
    agreed: Json = {
        "client_id": "code", "subject": "ann", "scope": "read", "redirect_uri": CALLBACK, "code_challenge": CHALLENGE,
        "code_challenge_method": "S256", "session": "s", "auth_time": 1_764_091_130, "acr": "urn:x", "amr": ["pwd"],
    }  # fmt: skip
    for key in ("k" * 43, None):
        body = agreed | ({} if key is None else {"dpop_jkt": key})
        code = (await ledger.operator("issuer", "POST", "/authorizations", body)).json()["code"]
        exchange = {
            "grant_type": "authorization_code",
            "code": code,
            "code_verifier": VERIFIER,
            "redirect_uri": CALLBACK,
        }
        await ledger.form("/token", exchange | credentials("code"))
    everyone = await ledger.issue("all")
    for _ in range(2):
        await refreshed(ledger, "all", everyone["refresh_token"])


async def everything_outside(ledger: Asking, file: Path) -> None:
    """Let every event of clients, persons, operators, keys and reads happen."""
    issued = await ledger.issue("www", subject="ann")
    await ledger.operator("security", "POST", "/subjects/revoke", {"subject": "ann", "reason": "left"})
    before = {"reason": "leak", "before": times.text(ledger.clock.now)}
    await ledger.operator("security", "POST", "/clients/oth/revoke", before)
    await ledger.operator("security", "GET", f"/grants/{issued['grant_id']}")
    await ledger.operator("security", "GET", "/reuse")
    assert 200 == (await ledger.ask("POST", "/local/erase", local=True, json={"subject": "ann"})).status_code
    for turn in ("rotate", "2/activate", "1/distrust"):
        assert 200 == (await ledger.ask("POST", f"/local/keys/{turn}", local=True)).status_code
    text = file.read_text("utf-8")
    changed = text.replace('secret = "Secr3t!"', 'secret = ["Secr3t!", "N3w!"]').replace(
        '["admin"]', '["admin", "issuer"]'
    )
    assert changed != text
    gone = text[: text.index('[[client]]\nid = "oth"')] + text[text.index("[[operator]]") : text.rindex("[[operator]]")]
    for serial, each in enumerate((changed, gone), start=1):
        wanted = clients_file.parsed(f"serial = {serial}\n{each}")
        await ledger.ledger.operators.apply(wanted.clients, wanted.operators, serial=wanted.serial)
    await ledger.ledger.started()
    await ledger.ledger.stopped()


async def test_every_topic_is_stored_as_the_table_says(tmp_path: Path) -> None:
    """All that can happen today, through the endpoints; then a backup put back, acknowledged and presented to."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    async with asking(folder, more=MORE) as ledger:
        await everything_about_grants(ledger)
        await everything_outside(ledger, folder / "clients.toml")
        kept = await ledger.issue("www")
        clock = ledger.clock
    shutil.copyfile(folder / "ledger.db", tmp_path / "backup.db")
    async with open_ledger(folder, clock=clock, options=OPTIONS, clients=None, seed=2) as opened:
        lost = await opened.refresh(kept["refresh_token"])
    shutil.copyfile(tmp_path / "backup.db", folder / "ledger.db")
    async with open_ledger(folder, clock=clock, options=OPTIONS, clients=None, seed=3) as opened:
        assert await opened.ledger.operators.restore_acknowledge() is not None
        await opened.refused(lost)
        bodies = [str(body) for (body,) in opened.rows("SELECT body FROM events ORDER BY position")]
    assert TABLE.keys() == set(map(check_event, bodies))
