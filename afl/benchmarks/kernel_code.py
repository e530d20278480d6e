"""The machine code of the loss kernel for one GPU architecture; no GPU is needed.

Counts the instructions that a thread issues on the path of a full program, per element of the map, and reads registers and
widths of memory accesses from the machine code. An H200 issues about 30 instructions per element in the time in which it
copies that element in bfloat16, and 60 in float32. That bounds the kernel from below; the time itself needs a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afl.benchmarks.harness import Row

ARCHITECTURE = 90
# Instructions per element that leave FL and AFL within reach of their budget against a copy; by type of the logits.
BUDGET = {"bf16": 33.0, "fp32": 36.0}
STEPS, BLOCK, CLASSES = 8, 2048, 1203
_VECTOR = re.compile(r"\b(?:LDG|STG)\.E\.128\b")


@dataclass(frozen=True)
class KernelCode:
    """Machine code of the pass over plain negatives.

    Attributes:
        instructions: per element, over a whole program.
        in_loop: per element, in the loop alone.
        registers: of a thread.
        spilled: instructions of the path that move registers to memory and back.
        widths: bits of the loads and stores of a map in the loop.
    """

    instructions: float
    in_loop: float
    registers: int
    spilled: int
    widths: tuple[int, ...]


def measure(quick: bool) -> list[Row]:
    """A line for FL and AFL in each type."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return [Row("compiled kernels", note="triton is not installed")]
    rows = []
    for dtype in ("bf16",) if quick else BUDGET:
        for name, gated in (("FL", False), ("AFL", True)):
            code = compiled(dtype, gated=gated)
            rows.append(
                Row.limited(
                    f"{name}, instructions of an element, {dtype}, sm_{ARCHITECTURE}", code.instructions, budget=BUDGET[dtype],
                    note=f"compiled, not measured; {code.in_loop:.1f} in the loop, {code.registers} registers, "
                    f"{min(code.widths)}-bit access, {code.spilled} spills",
                )
            )  # fmt: skip
    return rows


def compiled(dtype: str, *, gated: bool) -> KernelCode:
    """The kernel for logits of ``dtype`` (bf16 or fp32), with a scalar gate or without one.

    Raises:
        RuntimeError: if the environment asks for Triton's interpreter, which compiles nothing.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from afl.losses import triton_kernel
    from afl.losses.triton_launch import interpreted

    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: unset it to compile kernels")
    kernel = triton_kernel._plain_negatives
    names = kernel.arg_names
    pointers = {"logits": f"*{dtype}", "gradient": f"*{dtype}", "marked": "*u8"}
    pointers |= {"normalizer": "*fp32", "partial": "*fp32"} | ({"gate": "*fp32"} if gated else {})
    known = pointers | {"gamma": "fp32", "balance": "fp32", "elements": "i64"}
    chosen = {
        "GATE_OF_CLASS": False, "C": CLASSES, "KIND": triton_kernel.GAMMA_TWO.value, "BINS": 0, "MASS": False, "BLOCK": BLOCK,
        "VECTOR": 8 if dtype == "bf16" else 4, "STEPS": STEPS,
    }  # fmt: skip
    # Everything else is an option of other losses.
    fixed = {name: chosen.get(name) for name in names if name not in known}
    source = ASTSource(
        kernel,
        {name: known.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    options = triton_kernel.launch_options()
    built = compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options=options)
    threads = 32 * options["num_warps"]
    return _read(built.asm["cubin"], elements=BLOCK // threads)


def _read(cubin: bytes, elements: int) -> KernelCode:
    """Figures of a kernel whose loop treats ``elements`` elements of a thread at once, ``STEPS`` times."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = _output(tools / "nvdisasm", "-c", file.name)
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
    path, loop = _walk(listing)
    in_loop = [line for line in path if line in loop]
    widths = re.findall(r"(?:LDG|STG)\.E\.(\d+)\b", " ".join(in_loop))
    total = len(path) - len(in_loop) + STEPS * len(in_loop)
    return KernelCode(
        instructions=total / (STEPS * elements),
        in_loop=len(in_loop) / elements,
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spilled=sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in path),
        widths=tuple(int(width) for width in widths),
    )


def _output(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _walk(listing: str) -> tuple[list[str], set[str]]:
    """The instructions of a program that is full, each once, and those of its loop.

    Such a program needs no mask, so of all ways through the code it is the one whose loop has the most accesses of whole vectors.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
    return max(_ways(lines, labels), key=lambda way: sum(bool(_VECTOR.search(line)) for line in way[1]))


def _ways(
    lines: list[str],
    labels: dict[str, int],
    at: int = 0,
    before: Sequence[str] = (),
    loop: Collection[str] = (),
) -> Iterator[tuple[list[str], set[str]]]:
    """All ways from ``at`` to the end, with the last loop of each; a loop runs once, and a branch that is not taken comes first."""
    path = list(before)
    while True:
        line = lines[at]
        path.append(line)
        conditional = "@" in line
        if re.search(r"\bEXIT\b", line) and not conditional:
            yield path, set(loop)
            return
        branch = re.search(r"\bBRA `\((\.L_x_\d+)\)", line)
        target = labels[branch[1]] if branch else at + 1
        if target <= at:
            loop, target = lines[target : at + 1], at + 1
        elif branch and conditional:
            yield from _ways(lines, labels, at + 1, path, loop)
        at = target
