"""What the compiler makes of the loss kernel for a GPU: access of whole vectors, few instructions, half full processors."""

from __future__ import annotations

import pytest

from afl.benchmarks.kernel_code import _walk
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


FULL = """
        /*0020*/              LDG.E.128 R4, desc[UR10][R30.64] ;
        /*0030*/              STG.E.128 desc[UR10][R2.64], R4 ;
        /*0040*/         @P2 BRA `(.L_x_1) ;"""
MASKED = """
        /*0060*/         @!P4 LDG.E R3, desc[UR10][R20.64+0x4] ;
        /*0070*/         @!P5 STG.E desc[UR10][R2.64+0x4], R27 ;
        /*0080*/          @P2 BRA `(.L_x_2) ;"""


@pytest.mark.parametrize("masked_first", [False, True])
def test_the_loop_without_a_mask_is_read_wherever_the_compiler_puts_it(masked_first):
    first, second = (f".L_x_2:{MASKED}", f".L_x_1:{FULL}")[:: 1 if masked_first else -1]
    listing = f"""
        /*0000*/          @!P0 BRA `(.L_x_0) ;
{first}
        /*0090*/              BRA `(.L_x_3) ;
.L_x_0:
{second}
.L_x_3:
        /*00a0*/          @P0 EXIT ;
        /*00b0*/              EXIT ;
.L_x_4:
        /*00c0*/              BRA `(.L_x_4);"""
    path, loop = _walk(listing)
    assert len(loop) == 3 and sum("128" in line for line in loop) == 2
    # The branch, the loop once, a jump over the other loop if that follows, and the two ends.
    assert len(path) == (6 if masked_first else 7)
