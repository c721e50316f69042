"""Which keys of the ring sign, verify or are distrusted, as the log says it. The secrets are `keyring.py`'s alone."""

from typing import assert_never

import msgspec

from ledger import times
from ledger.acts import Act
from ledger.events import KeyActivated, KeyDistrusted, KeyEvent, KeyRotated
from ledger.refusals import Refusal, Refused

STREAM = "keys"
KEY_ID_MAX = 255
"""A key id is one byte of every token, and never used twice: a ring can be rotated 254 times."""

KEY_IDS_LOW = 16
"""With this many ids left or fewer the ring runs short, and whoever lists the keys is told."""


class Keys(msgspec.Struct, array_like=True):
    """The aggregate of the stream `keys`. `Keys()`: nothing happened yet.

    `active_id` makes new tokens (0: none yet). `created_at` maps each key id to when it was added, in microseconds;
    `distrusted` a distrusted key id to the event that said so; `fingerprints` those key ids of which the log says it.
    """

    v: int = 0
    at: int = 0
    active_id: int = 0
    created_at: dict[int, int] = msgspec.field(default_factory=dict)
    distrusted: dict[int, str] = msgspec.field(default_factory=dict)
    fingerprints: dict[int, str] = msgspec.field(default_factory=dict)  # snapshots of earlier releases end before it

    def state(self, key_id: int) -> str:
        """`active`, `distrusted` or `verifying`."""
        if key_id == self.active_id:
            return "active"
        return "distrusted" if key_id in self.distrusted else "verifying"

    def decide_rotation(self, key_id: int, fingerprint: str, act: Act) -> KeyRotated:
        """Add a key that only verifies; its secret must be durable in the ring already.

        Raises Refused (CONFLICT) where the id was used before or is none.
        """
        if not 1 <= key_id <= KEY_ID_MAX or key_id in self.created_at:
            raise Refused(Refusal.CONFLICT, detail=f"key id {key_id} cannot be used for a new key")
        return KeyRotated(**act.begins(STREAM, self.v, self.at), key_id=key_id, fingerprint=fingerprint)

    def decide_activation(self, key_id: int, act: Act) -> KeyActivated | None:
        """Let a key sign; None where it does already. Raises Refused: NOT_FOUND, or CONFLICT where it is distrusted."""
        self._check_known(key_id)
        if key_id in self.distrusted:
            raise Refused(Refusal.CONFLICT, detail=f"key {key_id} is distrusted and never signs again")
        if key_id == self.active_id:
            return None
        return KeyActivated(**act.begins(STREAM, self.v, self.at), key_id=key_id)

    def decide_distrust(self, key_id: int, act: Act) -> KeyDistrusted | None:
        """Trust a key no more; None where that was said. Raises Refused: NOT_FOUND, or CONFLICT while it signs."""
        self._check_known(key_id)
        if key_id == self.active_id:
            raise Refused(Refusal.CONFLICT, detail=f"key {key_id} signs: activate another key first")
        if key_id in self.distrusted:
            return None
        return KeyDistrusted(**act.begins(STREAM, self.v, self.at), key_id=key_id)

    def evolve(self, event: KeyEvent) -> None:
        """Fold one event in. Never refuses."""
        match event:
            case KeyRotated():
                self.created_at[event.key_id] = times.micros(event.at)
                if event.fingerprint is not None:
                    self.fingerprints[event.key_id] = event.fingerprint
            case KeyActivated():
                self.active_id = event.key_id
            case KeyDistrusted():
                self.distrusted[event.key_id] = event.event_id
            case _:
                assert_never(event)
        self.v = event.v
        self.at = times.micros(event.at)

    def _check_known(self, key_id: int) -> None:
        if key_id not in self.created_at:
            raise Refused(Refusal.NOT_FOUND, detail=f"there is no key {key_id}")
