"""What the store raises."""


class StoreError(Exception):
    """The store can't be used as it is configured, or right now. The message is one line for the operator:
    what was met, what to change. It holds no password, no key and no stored value."""


class WrongKeySpec(StoreError):
    """A key can't be made so. `field` is the field of `KeySpec` that is at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TooMuch(StoreError):
    """More than may be read at once."""


class NameTaken(StoreError):
    """An account of this name exists already."""
