"""Compile the kernels for a GPU, which needs none: `python tests/kernels/compiled.py 80 90` prints bytes of PTX for each case.

The interpreter runs what the compiler may refuse, so a test starts this without TRITON_INTERPRET.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from atp.kernels import triton_rows

MASKS = {0: "*fp32", 1: "*u8", 2: "*bf16"}


def built(kernel: Any, dtype: str, mask: int, capped: bool, depth: int, arch: int) -> int:
    sizes = {"DEPTH": depth, "ROWS": 32, "COLUMNS": 64, "MASK": mask, "CAPPED": capped, "WIDEN": False}
    known = {"queries": f"*{dtype}", "keys": f"*{dtype}", "mask": MASKS[mask], "scaling": "fp32", "softcap": "fp32"}
    known |= dict.fromkeys(("most", "total", "out"), "*fp32") | dict.fromkeys(sizes, "constexpr")
    signature = {name: known.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
    return len(triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["ptx"])


if __name__ == "__main__":
    cases = (("bf16", 0, False, 64), ("fp16", 1, False, 128), ("fp32", 2, True, 16))
    for (dtype, mask, capped, depth), arch in itertools.product(cases, map(int, sys.argv[1:]) if sys.argv[1:] else (80, 90)):
        for kernel in (triton_rows._extremes, triton_rows._mean):
            print(kernel.__name__, dtype, mask, capped, depth, arch, built(kernel, dtype, mask, capped, depth, arch))
