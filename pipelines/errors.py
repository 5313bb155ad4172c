"""Errors that end a command in one clear line."""


class InputError(ValueError):
    """Something the operator gave us is wrong. The message is one line: the thing, what was found, the remedy."""


class BusyError(InputError):
    """Another run holds the lock of what we were asked to do. Nothing is wrong with the input."""


class FencedError(BusyError):
    """The lease that this run worked under is another run's by now: nothing more may be published."""


class MachineError(RuntimeError):
    """This machine lacks something that a command needs. The message is one line, as an InputError's.

    It is no refused input: no day is served from older histories because of it.
    """
