"""Every number of the rules: lifetimes, windows, budgets, presets. Names end in their unit.

A policy is what one client's table in the clients file comes to, presets expanded. `None` in a lifetime means
unlimited, `0` in `refresh_token_ttl_seconds` means off. What is judged later is frozen into events, so a change here
rules only what is set from then on (RFC 9700 2.2.2, 4.14).
"""

from typing import Literal

import msgspec

Rotation = Literal["rotate", "reuse"]
OnReuse = Literal["revoke", "suspend", "alert", "revoke_subject"]
ScopeMode = Literal["sticky", "rfc6749", "ratchet"]
AccessTokenFormat = Literal["opaque", "jwt"]

SECONDS_MAX = 3_153_600_000
"""The longest lifetime that can be written as a number: a hundred years."""

DAY_SECONDS = 86_400

RETRY_LOOK_BACK_GENERATIONS = 10
"""The retry budget counts over this many generations before the one presented."""

RETRY_VARIATIONS_MAX = 16
"""Access tokens that differ from the winner's and may be minted for retries of one generation."""

PRESENTATIONS_COUNTED_EVENTS_MAX = 32
"""`grant.presentations_counted` events before a grant's end, and as many after it."""

ALERT_AGAIN_GENERATIONS = 10
"""Under `alert` a label is recorded again once the current generation is this far above its last event."""

REASON_CHARACTERS_MAX = 200
SUBJECT_CHARACTERS_MAX = 255
USER_AGENT_CHARACTERS_MAX = 512
IDEMPOTENCY_KEY_CHARACTERS_MAX = 128
CODE_TTL_SECONDS_MAX = 60
CLIENT_SECRETS_MAX = 3
SECRET_CHARACTERS_MAX = 1024
NAME_CHARACTERS_MAX = 255
RETRY_BUDGET_MAX = 1_000_000


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one client's grants behave. Spread over events as `policy_<field>`."""

    rotation: Rotation
    concurrent_seconds: int
    retry_window_seconds: int
    retry_budget: int
    unconfirmed_seconds: int
    on_reuse: OnReuse
    scope_mode: ScopeMode
    access_token_ttl_seconds: int
    refresh_token_ttl_seconds: int | None
    grant_ttl_seconds: int | None
    access_token_format: AccessTokenFormat


STANDARD = Policy(
    rotation="rotate",
    concurrent_seconds=10,
    retry_window_seconds=60,
    retry_budget=3,
    unconfirmed_seconds=DAY_SECONDS,
    on_reuse="revoke",
    scope_mode="sticky",
    access_token_ttl_seconds=300,
    refresh_token_ttl_seconds=30 * DAY_SECONDS,
    grant_ttl_seconds=365 * DAY_SECONDS,
    access_token_format="opaque",
)

PRESETS: dict[str, Policy] = {
    "strict": msgspec.structs.replace(
        STANDARD,
        concurrent_seconds=0,
        retry_window_seconds=0,
        retry_budget=0,
        unconfirmed_seconds=0,
        refresh_token_ttl_seconds=DAY_SECONDS,
        grant_ttl_seconds=30 * DAY_SECONDS,
    ),
    "standard": STANDARD,
    "mobile": msgspec.structs.replace(
        STANDARD,
        retry_window_seconds=600,
        unconfirmed_seconds=7 * DAY_SECONDS,
        access_token_ttl_seconds=900,
        refresh_token_ttl_seconds=90 * DAY_SECONDS,
        grant_ttl_seconds=730 * DAY_SECONDS,
    ),
    "stable": msgspec.structs.replace(STANDARD, rotation="reuse"),
    "fapi2": msgspec.structs.replace(STANDARD, rotation="reuse", scope_mode="rfc6749", access_token_format="jwt"),
}
"""What a preset's name stands for. The docs print this table; events carry the fields, never the name."""
