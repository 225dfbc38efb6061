"""Everything that can go wrong on this floor, by name.

Each message says what happened, where, and what to do about it. The command line prints the message alone and ends
with `exit_status`: 1 failed, 2 bad usage or config, 3 refused by the gate.
"""


class GanmillError(Exception):
    """Base of every error that a user is meant to read."""

    exit_status = 1


class ConfigError(GanmillError):
    """The config is wrong or asks for the impossible; names key, value and remedy."""

    exit_status = 2


class SourceError(GanmillError):
    """The source can't be read, is empty, or holds more unreadable items than `prepare.max_bad` allows."""


class StoreError(GanmillError):
    """The object store refused, vanished, or did not keep what was put."""


class MissingObject(StoreError):
    """No object under that key."""


class RunMismatch(GanmillError):
    """A run id is continued with another config, source or code than it began with."""


class PlanMismatch(RunMismatch):
    """The plan stored under a run id was made from other inputs; names what differs."""


class ClusterError(GanmillError):
    """The Ray cluster can't be reached or is smaller than the config asks."""


class TrainingFailed(GanmillError):
    """Training diverged, collapsed, or lost its workers more often than allowed."""


class Leakage(GanmillError):
    """A generator, filter or extractor was trained on other rows than the train split's: its figures would mean nothing."""


class SamplingFailed(GanmillError):
    """A shard could not be made within its bounded number of tries."""


class CorruptShard(GanmillError):
    """An object does not hold what its receipt or manifest says."""


class PublicationConflict(GanmillError):
    """Another run published meanwhile; nothing of this run became visible."""


class GateRefused(GanmillError):
    """The verdict is no: the synthetic images did not pass the gate."""

    exit_status = 3


class Interrupted(GanmillError):
    """Stopped on request (Ctrl-C or cancellation) with everything finished so far kept."""
