"""Everything that can go wrong on this floor, by name. Messages say what, where and what to do about it."""

import difflib
from collections.abc import Sequence


class GanError(Exception):
    """Base of every error that `gan` raises on purpose."""


class UnknownFamily(GanError):
    """No family of that name in the registry."""


class UnsupportedSpec(GanError):
    """A family can't serve this resolution, channel count, class count, width or option."""


class UnknownOption(UnsupportedSpec):
    """A family has no option of that name.

    Attributes:
        family: its name.
        names: the options that it doesn't know.
        known: its own.
    """

    def __init__(self, family: str, names: Sequence[str], known: Sequence[str], elsewhere: Sequence[str] = ()) -> None:
        """`elsewhere`: names that may be given beside them, which are not the family's."""
        self.family, self.names, self.known = family, tuple(names), tuple(known)
        near = [match for name in names for match in difflib.get_close_matches(name, [*known, *elsewhere], n=2)]
        super().__init__(f"family {family} has no option {', '.join(names)}; " + (f"did you mean {' or '.join(near)}? " if near else "")
                         + f"known: {', '.join(known) or 'none'}" + ("; and the fields of `gan.recipe.Recipe`" if elsewhere else ""))


class BadRecipe(GanError):
    """A hyper-parameter is unknown, out of range, or contradicts another."""


class BadData(GanError):
    """The training images or labels have the wrong type, shape or range, or there are none."""


class BadCheckpoint(GanError):
    """The bytes are not a checkpoint of ours, or not whole; nothing in them was executed."""


class CheckpointMismatch(GanError):
    """A sound checkpoint that belongs to another network, recipe or seed; names what differs."""


class TrainingDiverged(GanError):
    """Training stopped because going on would only make noise.

    Attributes:
        reason: one sentence.
        kimg: thousands of real images seen when it stopped.
        last_good: bytes of the last checkpoint taken while all was well, or None.
    """

    def __init__(self, reason: str, kimg: float = 0.0, last_good: bytes | None = None) -> None:
        self.reason, self.kimg, self.last_good = reason, kimg, last_good
        kept = "the last good checkpoint is kept" if last_good is not None else "no earlier checkpoint was taken"
        super().__init__(f"training diverged at {kimg:.1f} kimg: {reason}; {kept}")


class BadWeights(GanError):
    """The FID network's weights are not there, can't be fetched, or are other ones; nothing in them was executed."""
