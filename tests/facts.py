"""One plain event of each topic, for tests that need an event and care about few of its members."""

from typing import Any, get_args

import msgspec

from ledger.events import AnyEvent, Event, Words

GRANT_ID = "019abd0e0e107d708000123456789abc"
AT = "2026-11-25T17:18:50.000000Z"
LATER = "2026-12-25T17:18:50.000000Z"

TOPICS: dict[str, type[Event]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyEvent)}

_STREAMS = {"grant": f"grant:{GRANT_ID}", "client": "client:www", "subject": f"subject:{'5' * 32}"}
_MEMBERS: dict[str, Any] = {
    "v": 1, "at": AT, "command_id": "c" * 32, "control": 3, "client_id": "www", "subject_id": "5" * 32,
    "client_epoch": 1, "subject_epoch": 2, "issued_by": "operator:login-app", "scope": ("read", "openid"),
    "scope_before": ("read", "openid"), "scope_after": ("read",), "generation": 0, "idle_expires_at": LATER,
    "absolute_expires_at": LATER, "access_token_issued_at": AT, "access_token_expires_at": LATER, "expired_at": AT,
    "first_at": AT, "last_at": AT, "label": "fork", "kind": "idle", "context": "a" * 64, "first_context": "b" * 64,
    "action": "revoke", "format": "opaque", "reason_class": "termination", "requested_by": "operator:login-app",
    "counts": True, "name": "login-app", "presented_generation": 0, "current_generation": 2,
}  # fmt: skip
_OPTIONAL = ("idle_expires_at", "absolute_expires_at")
_FILLED: dict[object, Any] = {int: 1, str: "x", bool: False, Words: ()}


def fact(topic: str | type[AnyEvent], **members: Any) -> Any:
    """An event of a topic, its members plain values but for those given."""
    kind = TOPICS[topic] if isinstance(topic, str) else topic
    fields = msgspec.structs.fields(kind)
    first = str(kind.__struct_config__.tag).partition(".")[0]
    values: dict[str, Any] = {"stream": _STREAMS.get(first, first)}
    for field in fields:
        if field.required or (field.name in _OPTIONAL and kind.__name__ != "TokenRedeemed"):
            values.setdefault(field.name, _MEMBERS.get(field.name, _FILLED.get(field.type)))
    return kind(**(values | members))
