"""The errors of the compiler's core. ``exporter.errors`` draws the whole tree."""

__all__ = ["CompileError", "PassError", "RotaryPressError"]


class RotaryPressError(Exception):
    """The root of every error that Rotary Press raises on purpose."""


class CompileError(RotaryPressError):
    """The compiler could not keep one of its promises on this graph."""


class PassError(CompileError):
    """A pass failed or an expected fusion did not happen. The message names the pass and those before it."""
