"""Streams in memory that note which of them are asked for: what a decision looked at is what it stands on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a batch is made of both
    from ledger.memory import Loaded


class Uses(dict[str, "Loaded"]):
    """By name, as a plain dictionary would hold them. `used` are the names asked for or put in since it was cleared."""

    def __init__(self) -> None:
        self.used: dict[str, None] = {}
        self._of_authority: set[str] = set()

    def get(self, name: str, default: Any = None, /) -> Any:
        """A stream, noted where it is here."""
        found = super().get(name)
        if found is None:
            return default
        self.used[name] = None
        return found

    def __setitem__(self, name: str, loaded: "Loaded") -> None:
        super().__setitem__(name, loaded)
        self.used[name] = None
        if loaded.is_authority:
            self._of_authority.add(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._of_authority.discard(name)

    def pop(self, name: str, default: Any = None, /) -> Any:
        """Forget a stream, if it is here."""
        self._of_authority.discard(name)
        return super().pop(name, default)

    def clear(self) -> None:
        """Forget all of them."""
        super().clear()
        self._of_authority.clear()

    def known(self, name: str) -> "Loaded | None":
        """A stream, without noting it."""
        return super().get(name)

    def forget_authority(self) -> None:
        """Forget the streams that authority consists of."""
        for name in [*self._of_authority]:
            self.pop(name)
