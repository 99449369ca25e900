"""Every exception that Onibi raises on purpose.

    OnibiError
    ├── ConfigError          a run's YAML, preset or --set names something that is not allowed (exit code 2)
    │   └── RunInUseError    another process trains in the run's folder
    ├── SpecError            a space, column or stored layout does not fit what is asked of it
    ├── EnvironmentFault     an environment cannot be made, raised, or broke its contract
    ├── ReplayError          the replay store refused: too little memory, wrong file, lease, or fragment
    │   ├── LeaseError       an actor's incarnation is not the registered one
    │   └── SegmentError     a sealed segment of the log is missing, damaged or of another format
    ├── CaptionError         captions, keys or labels contradict each other
    ├── AnnotatorError       an annotator cannot judge now; it is asked again after a while
    │   └── BudgetSpentError its budget is used up: it judges no more in this run
    ├── CheckpointError      a checkpoint cannot be written or none can be read
    ├── TrainingError        learning cannot go on (a role that keeps dying, a run in which nothing moves)
    │   ├── NonFiniteError   loss or gradient was not finite many times in a row
    │   ├── LearnerLostError another of several learner workers is gone
    │   └── StoreLostError   replay shard or hub died; a new session goes on from the last checkpoint
    └── SubmitError          a job could not be handed to a cluster

Each message says where, what was found, what is allowed, and what to do next.
"""

from __future__ import annotations


class OnibiError(Exception):
    """Base of all. The command line prints its message alone; ``--debug`` adds the traceback."""


class ConfigError(OnibiError):
    """A setting is unknown or has a value that is not allowed."""


class RunInUseError(ConfigError):
    """Another process trains in the run's folder."""


class SpecError(OnibiError):
    """A space, column or stored layout does not fit what is asked of it."""


class EnvironmentFault(OnibiError):
    """An environment cannot be made, raised, or broke its contract."""


class ReplayError(OnibiError):
    """The replay store refused."""


class LeaseError(ReplayError):
    """A fragment or call came from an incarnation that is not the registered one."""


class SegmentError(ReplayError):
    """A sealed segment of the log is missing, damaged, or of another format."""


class CaptionError(OnibiError):
    """Captions, keys or labels contradict each other."""


class NoCaptionsError(CaptionError):
    """An environment gave no caption at all, in a run that asks for them."""


class AnnotatorError(OnibiError):
    """An annotator cannot judge now, as its server is gone, say: it is asked again later, and training goes on."""

    may_pass = True
    """Whether waiting may help: not against a wrong key."""


class BudgetSpentError(AnnotatorError):
    """An annotator's budget is used up: it is asked no more in this run, and training goes on."""


class CheckpointError(OnibiError):
    """A checkpoint cannot be written, or none can be read."""


class TrainingError(OnibiError):
    """Learning cannot go on."""


class NonFiniteError(TrainingError):
    """Loss or gradient was not finite many times in a row."""


class LearnerLostError(TrainingError):
    """Another of several learner workers is gone: all have to start again."""


class StoreLostError(TrainingError):
    """Replay shard or hub died, or does not answer: all roles begin anew from the last checkpoint, if there is one."""


class ClusterError(OnibiError):
    """Ray cannot be joined or started."""


class SubmitError(OnibiError):
    """A job could not be handed to a cluster."""
