"""Clients and operators: what a spec says becomes events, and nothing becomes of what already is so."""

import json
from typing import Any, get_type_hints

import msgspec
import pytest

from ledger import times
from ledger.acts import Act
from ledger.clients import LOCAL_OPERATOR, Client, ClientSpec, Operator, OperatorSpec, Settings, gathered, spread
from ledger.commands import ClientRules
from ledger.events import ClientEvent, ClientRegistered, OperatorEvent, decode, encode
from ledger.policy import PRESETS, STANDARD
from ledger.refusals import Refusal, Refused

T0 = times.micros("2026-03-01T10:00:00.000000Z")
ACT = Act(at=T0, command_id="c" * 32, requested_by="operator:local")
WWW = Settings(scope=("read", "openid"), secret_hashes=("h1$" + "a" * 64,))


def hashed(secret: str) -> str:
    return f"h1${secret.encode().hex():0>64}"


def client(*events: ClientEvent | None) -> Client:
    folded = Client()
    for event in events:
        assert event is not None
        folded.evolve(event)
    return folded


def operator(*events: OperatorEvent | None) -> Operator:
    folded = Operator()
    for event in events:
        assert event is not None
        folded.evolve(event)
    return folded


# ---------------------------------------------------------------- clients


def test_a_registration_says_every_setting_with_its_preset_expanded() -> None:
    """A later release that changes a preset must not rewrite the past; what is not set is left out."""
    settings = msgspec.structs.replace(WWW, policy=PRESETS["mobile"], resource=("https://api.example",))
    event = Client().decide_settings("www", settings, ACT, serial=7)
    assert event is not None
    assert {
        "topic": "client.registered",
        "stream": "client:www",
        "v": 1,
        "at": "2026-03-01T10:00:00.000000Z",
        "command_id": "c" * 32,
        "requested_by": "operator:local",
        "serial": 7,
        "client_id": "www",
        "auth": "client_secret",
        "scope": ["read", "openid"],
        "grant_types": ["refresh_token"],
        "secret_hashes": ["h1$" + "a" * 64],
        "resource": ["https://api.example"],
        "policy_rotation": "rotate",
        "policy_concurrent_seconds": 10,
        "policy_retry_window_seconds": 600,
        "policy_retry_budget": 3,
        "policy_unconfirmed_seconds": 604_800,
        "policy_on_reuse": "revoke",
        "policy_scope_mode": "sticky",
        "policy_access_token_ttl_seconds": 900,
        "policy_refresh_token_ttl_seconds": 7_776_000,
        "policy_grant_ttl_seconds": 63_072_000,
        "policy_access_token_format": "opaque",
    } == json.loads(encode(event))


def test_settings_that_are_so_already_give_no_event() -> None:
    """Applying a file twice writes once."""
    registered = client(Client().decide_settings("www", WWW, ACT))
    assert registered.decide_settings("www", WWW, ACT, serial=9) is None


def test_a_change_says_all_settings_and_moves_the_version_that_rules() -> None:
    """`client_v` of an access token names the event that ruled it; an epoch in between is none."""
    www = client(Client().decide_settings("www", WWW, ACT))
    ended = www.decide_revocation(ACT)
    assert ended is not None
    www.evolve(ended)
    assert (2, 1) == (www.v, www.settings_v)
    event = www.decide_settings("www", msgspec.structs.replace(WWW, scope=("read",)), ACT)
    assert event is not None
    assert ("client.changed", 3, ("h1$" + "a" * 64,)) == (event.topic, event.v, event.secret_hashes)
    www.evolve(event)
    assert (3, 3, ("read",)) == (www.v, www.settings_v, www.settings.scope)


def test_a_client_goes_and_comes_back_with_its_epoch() -> None:
    """Removed it is disabled, back it is registered again, and an end said in between is for good (I-07)."""
    www = client(Client().decide_settings("www", WWW, ACT))
    gone = www.decide_absence(ACT, serial=3)
    assert gone is not None
    assert ("client.disabled", 2, 3) == (gone.topic, gone.v, gone.serial)
    www.evolve(gone)
    assert not www.enabled
    assert www.decide_absence(ACT) is None
    ended = www.decide_revocation(ACT)
    assert ended is not None
    www.evolve(ended)
    back = www.decide_settings("www", WWW, ACT)
    assert isinstance(back, ClientRegistered)
    www.evolve(back)
    assert (True, 1, True) == (www.enabled, www.epoch.number, www.epoch.hits(0, T0))


def test_a_clients_epoch_is_the_operating_sides_termination() -> None:
    """`client.revoked` as it is stored."""
    event = client(Client().decide_settings("www", WWW, ACT)).decide_revocation(ACT, before=T0, reason="a" * 64)
    assert event is not None
    assert {
        "topic": "client.revoked",
        "stream": "client:www",
        "v": 2,
        "at": "2026-03-01T10:00:00.000000Z",
        "command_id": "c" * 32,
        "requested_by": "operator:local",
        "client_id": "www",
        "epoch": 1,
        "before": "2026-03-01T10:00:00.000000Z",
        "reason": "a" * 64,
        "reason_class": "termination",
    } == json.loads(encode(event))


def test_a_clients_epoch_that_ends_nothing_more_writes_nothing_and_none_lies_in_the_future() -> None:
    """The same rules as a person's."""
    www = client(Client().decide_settings("www", WWW, ACT))
    assert www.decide_revocation(ACT, issued_since=False) is None
    with pytest.raises(Refused) as refused:
        www.decide_revocation(ACT, before=T0 + 1)
    assert Refusal.INVALID_REQUEST is refused.value.refusal


def test_the_rules_of_a_client_are_what_bears_on_its_grants() -> None:
    """Confidential or public, bound or not, from what is registered (RFC 6749 2.1, RFC 9449, RFC 8705)."""
    spa = Settings(auth="none", scope=("read",), dpop_bound_access_tokens=True, resource=("https://api.example",))
    assert (
        ClientRules(
            client_id="spa",
            v=1,
            scope=("read",),
            resource=("https://api.example",),
            policy=STANDARD,
            authenticates=False,
            dpop_bound=True,
        )
        == client(Client().decide_settings("spa", spa, ACT)).rules()
    )
    rules = client(Client().decide_settings("www", WWW, ACT)).rules()
    assert (True, False, False, ()) == (
        rules.authenticates, rules.dpop_bound, rules.certificate_bound, rules.resource,
    )  # fmt: skip
    alike = msgspec.structs.replace(spa, allow_unbound_reuse=True)
    assert (False, True) == tuple(
        client(Client().decide_settings("spa", each, ACT)).rules().unbound_reuse for each in (spa, alike)
    )
    mtls = msgspec.structs.replace(WWW, tls_client_certificate_bound_access_tokens=True)
    rules = client(Client().decide_settings("www", mtls, ACT)).rules()
    assert (False, True) == (rules.dpop_bound, rules.certificate_bound)


def optional_settings() -> dict[str, str]:
    """Each setting that may be absent, with the kind of value that it holds."""
    kinds = {bool | None: "bool | None", str | None: "str | None", tuple[str, ...] | None: "Words | None"}
    return {name: kinds[hint] for name, hint in get_type_hints(Settings).items() if hint in kinds}


def test_every_setting_survives_its_way_through_an_event() -> None:
    """What `spread` forgot would silently be the default after a restart (I-13)."""
    values: dict[str, Any] = {"bool | None": True, "str | None": "text", "Words | None": ("one", "two")}
    optional = {name: values[hint] for name, hint in optional_settings().items()}
    said = Settings(
        auth="private_key_jwt",
        scope=("a",),
        grant_types=("authorization_code",),
        secret_hashes=("h1$" + "b" * 64,),
        policy=PRESETS["fapi2"],
        **optional,
    )
    assert all(getattr(said, name) != getattr(Settings(), name) for name in Settings.__struct_fields__)
    event = Client().decide_settings("all", said, ACT)
    assert event is not None
    read = decode(encode(event))
    assert isinstance(read, ClientRegistered)
    assert said == gathered(read)
    assert set(spread(said)) == set(ClientRegistered.__struct_fields__) - {
        "stream", "v", "at", "command_id", "prev", "client_id", "serial", "requested_by",
    }  # fmt: skip


def test_a_snapshot_of_a_client_is_the_client() -> None:
    """I-13: state is plain, so its bytes are a snapshot."""
    www = client(Client().decide_settings("www", msgspec.structs.replace(WWW, policy=PRESETS["mobile"]), ACT))
    assert www == msgspec.msgpack.decode(msgspec.msgpack.encode(www), type=Client)


# ---------------------------------------------------------------- secrets


def test_plain_secrets_become_hashes_in_the_order_of_the_file_each_once() -> None:
    """The order tells which of several is used; an unchanged secret gives an unchanged hash, so no event."""
    spec = ClientSpec(client_id="www", secrets=("new", "old", "new"), settings=Settings())
    assert (hashed("new"), hashed("old")) == spec.ruling(hashed).secret_hashes
    given = ClientSpec(client_id="www", settings=Settings(secret_hashes=(hashed("new"),)))
    assert (hashed("new"),) == given.ruling(hashed).secret_hashes


def test_no_spec_shows_its_secret() -> None:
    """I-20: whatever prints a spec, a traceback with its values included, prints no secret."""
    spec = ClientSpec(client_id="www", secrets=("Secr3t!",))
    person = OperatorSpec(name="soc", roles=("security",), tokens=("T0ken!",))
    assert "Secr3t!" not in f"{spec} {spec!r} {[spec]}"
    assert "T0ken!" not in f"{person} {person!r} {[person]}"


def test_a_spec_survives_the_way_to_the_process_that_owns_the_store() -> None:
    """A command beside a running server sends its specs as JSON."""
    spec = ClientSpec(
        client_id="www", secrets=("a",), settings=Settings(policy=PRESETS["mobile"], origins=("https://a",))
    )
    person = OperatorSpec(name="soc", roles=("security",), tokens=("t",), clients=("www",))
    assert spec == msgspec.json.decode(msgspec.json.encode(spec), type=ClientSpec)
    assert person == msgspec.json.decode(msgspec.json.encode(person), type=OperatorSpec)


# ---------------------------------------------------------------- operators

SOC = OperatorSpec(name="soc", roles=("security", "issuer"), clients=("www",))


def test_an_operator_comes_changes_goes_and_returns() -> None:
    """`operator.registered`, `operator.changed`, `operator.removed`, and registered again; nothing in between."""
    soc = operator(Operator().decide_settings(SOC, ("h1",), ACT, serial=1))
    assert (
        Operator(
            v=1, at=T0, name="soc", enabled=True, token_hashes=("h1",), roles=("security", "issuer"), clients=("www",)
        )
        == soc
    )
    assert soc.decide_settings(SOC, ("h1",), ACT, serial=2) is None
    topics = []
    for decided in (
        lambda: soc.decide_settings(SOC, ("h2",), ACT),
        lambda: soc.decide_absence(ACT),
        lambda: soc.decide_settings(SOC, ("h2",), ACT),
    ):
        event = decided()
        assert event is not None
        topics.append((event.stream, event.v, event.topic))
        soc.evolve(event)
    assert [
        ("operator:soc", 2, "operator.changed"),
        ("operator:soc", 3, "operator.removed"),
        ("operator:soc", 4, "operator.registered"),
    ] == topics
    assert Operator().decide_absence(ACT) is None


def test_an_operator_that_is_removed_stays_as_it_was_in_the_snapshot() -> None:
    """I-13."""
    soc = operator(Operator().decide_settings(SOC, ("h1",), ACT))
    assert soc == msgspec.msgpack.decode(msgspec.msgpack.encode(soc), type=Operator)


def test_whoever_runs_commands_beside_the_store_has_every_role() -> None:
    """The operator `local` needs no token and has no stream."""
    assert "operator:local" == LOCAL_OPERATOR.requested_by
    assert all(LOCAL_OPERATOR.has(role) for role in ("issuer", "auditor", "security", "admin"))
    assert not operator(Operator().decide_settings(SOC, ("h1",), ACT)).has("admin", "auditor")
