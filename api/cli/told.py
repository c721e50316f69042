"""What an event says in plain words, for people who read a history."""

from typing import Any

Json = Any


def words(value: Json) -> str:
    """A scope as text, whether it came as a list or as a string; `no scope` where it is empty."""
    return (" ".join(value) if isinstance(value, list) else str(value)) or "no scope"


def opened(event: Json) -> str:
    """What an event's commitments stand for that people ask for first: from which address, and why."""
    texts = {name: each["value"] for name, each in event.get("disclosed", {}).items()}
    address, _, _ = texts.get("context", "").partition("\n")
    place = f", from {address}" if address else ""
    return f"{place}: {texts['reason']}" if texts.get("reason") else place


def told(event: Json) -> str:
    """One line that says what the event means; its topic alone where there is nothing to add."""
    data = event["data"]
    match event["topic"]:
        case "grant.authorized":
            return f"the person agreed to {words(data['scope'])}, by {data['issued_by']}: a code"
        case "grant.issued":
            return f"generation 0 for {words(data['scope'])}, by {data['issued_by']}"
        case "grant.token_redeemed":
            return f"generation {data['generation']} bought an access token for {words(data['scope'])}"
        case "grant.token_rotated":
            return f"generation {data['generation'] - 1} retired, its successor {data['generation']} is current"
        case "grant.scope_reduced" | "grant.scope_restored":
            verb = "narrowed" if event["topic"].endswith("reduced") else "restored"
            return f"{verb} from {words(data['scope_before'])} to {words(data['scope_after'])}"
        case "grant.retry_served":
            own = f", an access token of its own for {words(data['scope'])}" if "scope" in data else ""
            return (
                f"generation {data['presented_generation']} again, a retry ({data['kind']}): its successor again{own}"
            )
        case "grant.reuse_detected":
            presented, current = data["presented_generation"], data["current_generation"]
            return f"retired {presented} came back, {current} was current: {data['label']}, action {data['action']}"
        case "grant.suspended" | "grant.revoked":
            verb = "stopped until reinstated" if event["topic"].endswith("suspended") else "ended for good"
            return f"{verb} by {data['requested_by']} ({data['reason_class']})"
        case "grant.reinstated":
            trust = f", trusting the {data['trust']} token" if data.get("trust") else ""
            return f"goes on, says {data['requested_by']}{trust}"
        case "grant.expired":
            return f"its {data['kind']} end {data['expired_at']} had passed"
        case "grant.refresh_token_withheld":
            return "no refresh token: the client may have none"
        case "grant.access_token_revoked":
            return f"the access token of event {data['issued_v']} was given back by {data['requested_by']}"
        case "grant.foreign_client_presented":
            return f"client {data['presenter_client_id']} presented its generation {data['presented_generation']}"
        case "grant.presentations_counted":
            return f"{data['count']} presentations without an event of their own, so far"
        case "grant.rollback_detected":
            presented, current = data["presented_generation"], data["current_generation"]
            return f"genuine generation {presented} came, but the log ends at {current}: events were lost"
        case "client.revoked" | "subject.revoked":
            which = f" issued before {data['before']}" if "before" in data else ""
            return f"all grants{which} ended by epoch {data['epoch']}, says {data['requested_by']}"
        case topic:
            return str(topic)
