"""Identifiers that may be used once: the `jti` of an assertion (RFC 7523 3) and of a DPoP proof (RFC 9449 11.1).

One is spent in the transaction of whatever it admits, a refusal included: so of a thousand copies sent at once one is
taken, on whatever node, before and after a restart. Where the store cannot answer, or the caller came too fast,
nothing is spent: the same request may come again. Whoever does not learn an outcome asks again with a new identifier.

At rest there is a keyed MAC and its expiry: nothing that a client sent, and nothing that says which client it was. Each
identifier that is spent takes two expired ones along, so the table shrinks to what is alive in steps of fixed size.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import msgspec

from ledger.keyring import KeyRing, Purpose
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND

if TYPE_CHECKING:  # callers are plain values that hold what is here, and a batch knows of callers
    from ledger.batch import Batch

T = TypeVar("T")
SingleUseKind: TypeAlias = Literal["assertion", "dpop"]

KEPT_SECONDS = 3600
"""How long an expired identifier is kept before it may go. A clock that is put back by less revives none."""

_MAC_BYTES = 16

_KNOWN = "SELECT expires_at FROM single_use WHERE mac = ?"
_SPEND = "INSERT OR REPLACE INTO single_use VALUES (?, ?)"
_PRUNE = (
    "DELETE FROM single_use WHERE mac IN (SELECT mac FROM single_use WHERE expires_at < ? ORDER BY expires_at LIMIT 2)"
)


class SingleUse(msgspec.Struct, frozen=True, kw_only=True):
    """An identifier, unique for its `owner` (a client id; a key's thumbprint and a URI), which holds no NUL.

    `expires_at` in microseconds, clock skew included: from then on nobody takes what bears the identifier.
    """

    kind: SingleUseKind
    owner: str
    identifier: str
    expires_at: int

    def __repr__(self) -> str:
        return f"SingleUse(kind={self.kind!r}, owner={self.owner!r})"


def spending(ring: KeyRing, those: tuple[SingleUse, ...], decide: "Callable[[Batch], T]") -> "Callable[[Batch], T]":
    """The same decision, which spends `those` with it: durable when its answer or refusal is told.

    Raises Refused with ALREADY_USED, and nothing is decided, where one was spent before; the others are spent then too.
    A decision that is made again, because its batch did not happen, finds nothing spent by itself.
    """
    macs = [(_mac(ring, each), each) for each in those]

    def decided(batch: "Batch") -> T:
        fresh = [(mac, each) for mac, each in macs if not _is_spent(batch, mac, each.expires_at)]
        try:
            if len(fresh) < len(macs):
                used = next(each for mac, each in macs if (mac, each) not in fresh)
                raise Refused(Refusal.ALREADY_USED, used=used.kind)
            answer = decide(batch)
        except Refused as refusal:
            if refusal.refusal is not Refusal.TOO_FAST:
                _spend(batch, fresh)
            raise
        _spend(batch, fresh)
        return answer

    return decided


def _mac(ring: KeyRing, each: SingleUse) -> bytes:
    assert "\0" not in each.owner
    # Whatever text a client may have sent: a lone surrogate is an identifier like any other.
    text = "\0".join((each.kind, each.owner, each.identifier)).encode("utf-8", "surrogatepass")
    return ring.root_mac(Purpose.SINGLE_USE, text, _MAC_BYTES)


def _is_spent(batch: "Batch", mac: bytes, expires_at: int) -> bool:
    """Whether it was spent, and not so long ago that the identifier is free again. The very same assertion never is:
    it may have been read just before its expiry and come to be decided just after."""
    until = batch.single_use.get(mac)
    if until is None:
        rows = batch.store.within().select(_KNOWN, (mac,))
        if not rows:
            return False
        found = rows[0][0]
        assert isinstance(found, int)
        until = found
    return until > batch.now or until >= expires_at


def _spend(batch: "Batch", macs: list[tuple[bytes, SingleUse]]) -> None:
    for mac, each in macs:
        batch.single_use[mac] = each.expires_at
        batch.private(None, _SPEND, mac, each.expires_at)
        batch.private(None, _PRUNE, batch.now - KEPT_SECONDS * SECOND)
