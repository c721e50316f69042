"""What the worlds of the model draw from: plain values, weighted so that grants live long enough for what is rare."""

from collections.abc import Mapping

from hypothesis import strategies as st

from ledger.times import SECOND
from tests.model_world import CLIENT_SCOPE, RESOURCES

HOUR, DAY, YEAR = 3600 * SECOND, 86_400 * SECOND, 365 * 86_400 * SECOND
GRANTED = ("read", "openid", "profile")

presets = st.sampled_from(["standard"] * 5 + ["mobile", "mobile", "strict", "stable", "unlimited", "unlimited", "off"])
lifetimes: Mapping[str, dict[str, int | None]] = {
    "unlimited": {"refresh_token_ttl_seconds": None, "grant_ttl_seconds": None},
    "off": {"refresh_token_ttl_seconds": 0},
}
on_reuse = st.sampled_from(["alert", "suspend"] * 3 + ["revoke", "revoke_subject"])
granted = st.sampled_from([GRANTED] * 4 + [(), ("read",), ("read", "profile", "offline_access")])
scopes = st.sampled_from(
    [None] * 7
    + [("read",), ("read", "openid"), ("profile", "openid", "read"), ("openid", "profile"), ("read", "read"), ()]
    + [("read", "admin"), ("write",), ("read", "offline_access"), ("offline_access",)]
)
resources = st.sampled_from([None] * 8 + [RESOURCES[:1], RESOURCES[1:], RESOURCES, ("https://c.example",)])
ceilings = st.sampled_from([CLIENT_SCOPE] * 2 + [("read", "openid"), ("profile",), GRANTED, ("x",)])
jumps = st.sampled_from(
    [1, SECOND // 2, SECOND, 5 * SECOND, 9 * SECOND, 11 * SECOND, 59 * SECOND, 61 * SECOND] * 2
    + [600 * SECOND, 600 * SECOND, HOUR, HOUR, 3 * HOUR, DAY, 31 * DAY, YEAR]
)
falls = st.sampled_from([1, SECOND, 9 * SECOND, 10 * SECOND, 10 * SECOND + 1, 11 * SECOND, HOUR, DAY, YEAR])
changes = st.one_of(
    st.tuples(st.just("rotation"), st.sampled_from(["rotate", "rotate", "reuse", "rotate"])),
    st.tuples(st.just("on_reuse"), on_reuse),
    st.tuples(st.just("scope_mode"), st.sampled_from(["sticky", "rfc6749", "ratchet"])),
    st.tuples(st.just("concurrent_seconds"), st.sampled_from([0, 1, 10, 120])),
    st.tuples(st.just("retry_window_seconds"), st.sampled_from([0, 60, 600])),
    st.tuples(st.just("unconfirmed_seconds"), st.sampled_from([0, 3600, 86_400])),
    st.tuples(st.just("retry_budget"), st.sampled_from([0, 1, 2, 3])),
    st.tuples(st.just("refresh_token_ttl_seconds"), st.sampled_from([0, None, 90, 86_400, 30 * 86_400])),
    st.tuples(st.just("grant_ttl_seconds"), st.sampled_from([None, 365 * 86_400])),
    st.tuples(st.just("access_token_ttl_seconds"), st.sampled_from([1, 20, 300])),
    st.tuples(st.just("access_token_format"), st.sampled_from(["opaque", "jwt"])),
)
behind = st.sampled_from([0] * 5 + [1] * 5 + [2] * 3 + [3, 4, 7])
then = st.sampled_from(
    [(), (), (0,), (0,), (0, 0), (0, 1), (1,), (1,), (2,), (1, 0), (0, 0, 0, 2), (0, 0, 0, 3), (0, 0, 0, 0, 7)]
)
"""What the owner presents next: tokens counted back from its last."""
acts = st.sampled_from(["suspend"] * 4 + ["trust"] * 3 + ["reinstate", "distrust", "revoke", "give back"])
befores = st.sampled_from(["none", "issued", "just after", "now"])
frozen = st.sampled_from(
    ["idle", "idle", "absolute", "concurrent", "retry", "unconfirmed", "access token", "issued ahead", "behind"]
)
nearly = st.sampled_from([-SECOND, -SECOND // 2, -1, 0, 1])
late = st.sampled_from([None, None, -1, 0, SECOND])
