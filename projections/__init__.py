"""What is true now: one file per question, with its table, its rows and its query."""

from typing import Final

from ledger.inline import Inline
from projections.current_tokens import CurrentTokens
from projections.reuse_incidents import ReuseIncidents

INLINE: Final[tuple[Inline, ...]] = (CurrentTokens(), ReuseIncidents())
"""The projections written in the append's own transaction. A database keeps this list: another one will not open it."""
