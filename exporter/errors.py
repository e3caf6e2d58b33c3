"""Every error that Rotary Press raises on purpose.

    RotaryPressError
    ├── UserError                  the input is at fault: the command line prints it alone and exits with 2
    │   ├── CheckpointError        a checkpoint folder is missing, truncated or does not fit its config
    │   ├── ConfigError            config.json has a wrong or an unsupported value
    │   ├── TokenizerError         tokenizer files are missing or malformed, or a text cannot be encoded
    │   ├── InputError             ids, masks or lengths that a model cannot take
    │   ├── BundleError            an exported folder is incomplete, altered or cannot be written
    │   └── UnavailableError       a target or an extra is not installed here; says what to install
    └── CompileError               the compiler broke one of its own promises: a bug or an unsupported graph
        ├── TraceError             the traced graph is not the graph that the task table describes
        └── graph_passes.PassError a pass failed, or an expected fusion did not happen (raised by graph_passes)

A message finishes the sentence: what is wrong, where, what was expected, what was found, how to mend it.
"""

from graph_passes.errors import CompileError, PassError, RotaryPressError

__all__ = [
    "BundleError",
    "CheckpointError",
    "CompileError",
    "ConfigError",
    "InputError",
    "PassError",
    "RotaryPressError",
    "TokenizerError",
    "TraceError",
    "UnavailableError",
    "UserError",
]


class UserError(RotaryPressError):
    """The input is at fault. The command line prints the message without a traceback and exits with 2."""


class CheckpointError(UserError):
    """A checkpoint folder is missing, truncated, or its tensors do not fit its config."""


class ConfigError(UserError):
    """``config.json`` holds a wrong or an unsupported value."""


class TokenizerError(UserError):
    """Tokenizer files are missing or malformed, or a text cannot be encoded."""


class InputError(UserError):
    """Ids, masks or lengths that the model cannot take."""


class BundleError(UserError):
    """An exported folder is incomplete, altered, or cannot be written."""


class UnavailableError(UserError):
    """A target or an optional extra is not usable here. The message says why and what to install."""


class TraceError(CompileError):
    """The traced graph does not have the inputs, outputs or shapes that the task table promises."""
