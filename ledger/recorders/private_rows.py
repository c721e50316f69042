"""The statements on private rows and their like, each written once: a store that puts many of a kind into one knows
them by these texts. Their parameters stand in the order of the question marks."""

from typing import Final

KEEP_GRANT: Final = "INSERT INTO private_grants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
KEEP_CONTEXT: Final = "INSERT OR IGNORE INTO private_contexts VALUES (?, ?, ?, ?)"
KEEP_SUBJECT: Final = "INSERT INTO private_subjects VALUES (?, ?, ?)"
KEEP_REASON: Final = "INSERT INTO private_reasons VALUES (?, ?, ?)"
CLAIM_GRANT: Final = (
    "INSERT INTO private_grants (stream, client_id, subject_id, salt) VALUES (?, '', ?, x'')"
    " ON CONFLICT (stream) DO UPDATE SET subject_id = excluded.subject_id"
)
"""For an erasure: a row that says whose the grant is, so that what is erased by the person's id reaches it."""
FORGET_NONCE: Final = "UPDATE private_grants SET nonce = NULL WHERE stream = ?"

SPEND: Final = "INSERT OR REPLACE INTO single_use VALUES (?, ?)"
PRUNE_SINGLE_USE: Final = (
    "DELETE FROM single_use WHERE mac IN (SELECT mac FROM single_use WHERE expires_at < ? ORDER BY expires_at LIMIT 2)"
)

_GRANTS: Final = "SELECT stream FROM private_grants WHERE subject_id = ?"
ERASE_CONTEXTS: Final = f"DELETE FROM private_contexts WHERE stream IN ({_GRANTS})"  # noqa: S608  # words of ours alone
ERASE_REASONS: Final = (
    "DELETE FROM private_reasons WHERE event_id IN (SELECT r.event_id FROM private_reasons r JOIN streams s"  # noqa: S608  # words of ours alone
    f" ON r.event_id >= s.name || '/' AND r.event_id < s.name || '0' WHERE s.id IN ({_GRANTS}))"
)
ERASE_OWN_REASONS: Final = "DELETE FROM private_reasons WHERE event_id >= ? || '/' AND event_id < ? || '0'"
ERASE_GRANTS: Final = "DELETE FROM private_grants WHERE subject_id = ?"
ERASE_SUBJECT: Final = "DELETE FROM private_subjects WHERE lookup = ? AND subject_id = ?"

RAISE_FLOOR: Final = "UPDATE control SET position_floor = max(position_floor, ?)"
PROBE: Final = "INSERT OR REPLACE INTO meta VALUES ('probe', ?)"
