"""What the release before left in a store."""

import msgspec

from ledger import snapshots, times
from ledger.grant import Grant


def of_format_2(v: int, head: bytes, aggregate: snapshots.Aggregate) -> bytes:
    """What the release before wrote of an aggregate."""
    members = msgspec.msgpack.decode(msgspec.msgpack.encode(aggregate))
    if isinstance(aggregate, Grant):
        for name in ("redeemed", "previous"):
            redemption = members[Grant.__struct_fields__.index(name)]
            if redemption is not None:
                redemption[1] = redemption[1] or redemption[2]
                redemption[6:9] = [None if until is None else times.text(until) for until in redemption[6:9]]
    return msgspec.msgpack.encode((2, v, head, members, True)) + bytes(100)
