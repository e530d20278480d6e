"""What the compiler makes of the loss kernel for a GPU: access of whole vectors, few instructions, half full processors."""

from __future__ import annotations

import pytest

from tests.fresh_python import run_without_interpreter

pytest.importorskip("triton")
COMPILE = """
from afl.benchmarks.kernel_code import BUDGET, compiled
for dtype, most in BUDGET.items():
    code = compiled(dtype, gated=True)
    assert set(code.widths) == {128}, code
    assert 10 < code.in_loop < code.instructions <= most and code.spilled == 0, code
    # 64 registers: 32 of 64 warps fit a processor.
    assert code.registers <= 64, code
    print("checked", dtype)
"""


def test_afl_is_compiled_to_vector_access_within_its_budget_of_instructions(tmp_path):
    done = run_without_interpreter(COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout.count("checked") == 2, done.stderr[-2000:]
