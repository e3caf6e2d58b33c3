"""Compiles kernels in a process of its own, without TRITON_INTERPRET: requests as JSON in, kernels as JSON out."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from plugins.compile import KernelError, compile_kernel


def compiled(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one request: the kernel's fields, or the message of the error."""
    try:
        return dataclasses.asdict(compile_kernel(**request))
    except KernelError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    json.dump([compiled(request) for request in json.load(sys.stdin)], sys.stdout)
