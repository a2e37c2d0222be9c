"""The model of a GPU: machine code decoded, run and replayed, hand-made and real."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import replay as model
from benchmarks.gpu.sass import Control, Instruction, decode
from benchmarks.gpu.warp import LANE, WORD, ZERO, Warp

# As cuobjdump prints them.
KNOWN = """
        /*0010*/                   LDC R9, c[0x0][0x22c] ;              /* 0x00008b00ff097b82 */
                                                                        /* 0x000e220000000800 */
        /*0130*/              @!P1 IADD3 R0, R0, -R5.reuse, RZ ;        /* 0x8000000500009210 */
                                                                        /* 0x080fe40007ffe0ff */
        /*0080*/                   IADD3 R2, R0, 0xffffffe, RZ ;        /* 0x0ffffffe00027810 */
                                                                        /* 0x001fcc0007ffe0ff */
"""


def test_control_bits_of_known_instructions() -> None:
    load, difference, sum_ = decode(KNOWN)
    assert (load.name, load.operands, load.guard) == ("LDC", ("R9", "c[0x0][0x22c]"), "")
    assert load.control == Control(stall=1, yields=1, write=0, read=7, wait=0, reuse=0)
    assert (difference.guard, difference.operands[2]) == ("!P1", "-R5.reuse")
    assert difference.control == Control(stall=2, yields=1, write=7, read=7, wait=0, reuse=2)
    assert sum_.control == Control(stall=6, yields=0, write=7, read=7, wait=1, reuse=0)


def code(*lines: str) -> list[Instruction]:
    """``"stall write read wait: instruction"`` each; 7 is no barrier."""
    text = ""
    for at, line in enumerate(lines):
        bits, words = line.split(": ")
        stall, write, read, wait = map(int, bits.split())
        high = (stall | write << 5 | read << 8 | wait << 11) << 41
        text += f"/*{16 * at:04x}*/ {words} ; /* 0x{0:016x} */ /* 0x{high:016x} */\n"
    found = decode(text)
    assert len(found) == len(lines)
    return found


def warps(program: list[Instruction], count: int = 1) -> list[Warp]:
    shared, constants = np.zeros(4096, np.int64), np.zeros(256, np.int64)
    return [Warp(program, constants, shared, i, (0, 0, 0)) for i in range(count)]


def clocks(program: list[Instruction], count: int = 1, blocks: int = 1, slots: int = 1) -> float:
    made = [warps(program, count) for _ in range(blocks)]
    return model.replay(program, made, slots).clocks


def test_clocks_of_a_small_stream() -> None:
    stream = code("4 7 7 0: MOV R0, 0x5", "1 7 7 0: MOV R1, R0", "1 7 7 0: EXIT")
    assert clocks(stream) == 4 + 1
    assert clocks(stream, 4) == 5
    # The fifth warp shares the first one's scheduler and its integer lanes, free after two clocks.
    assert clocks(stream[1:], 5) == 2 + 1
    floats = code("2 7 7 0: FFMA R0, R0, R0, R0", "1 7 7 0: EXIT")
    assert clocks(floats, 5) == 1 + 2
    assert clocks(floats, 8) == 1 + 2
    assert clocks(floats, 12) == 2 + 2 + 1
    # One block after the other, or both at once.
    assert clocks(stream, 1, blocks=2) == 5 + 1 + 5
    assert clocks(stream, 1, blocks=2, slots=2) == 5


def test_clocks_of_memory_and_barriers() -> None:
    load = ("1 0 7 0: LDS R2, [R1]", "1 7 7 1: MOV R3, R2", "1 7 7 0: EXIT")
    assert clocks(code(*load)) == model.SHARED + 1
    # 32 lanes in one bank take 32 turns.
    lane = ("12 7 7 0: S2R R0, SR_LANEID", "6 7 7 0: IMAD.SHL.U32 R1, R0, {}, RZ")
    for stride, turns in ((0x4, 1), (0x80, 32), (0x84, 1), (0x8, 2)):
        program = code(lane[0], lane[1].format(hex(stride)), *load)
        assert clocks(program) == 12 + 6 + turns - 1 + model.SHARED + 1
    # Two loads on their way at once, or one after the other.
    both = ("1 0 7 0: LDS R2, [R1]", "1 1 7 0: LDS R3, [R1+0x4]", "1 7 7 3: EXIT")
    assert clocks(code(*both)) == 1 + model.SHARED
    chain = (both[0], both[1].replace("7 0:", "7 1:"), both[2])
    assert clocks(code(*chain)) == 2 * model.SHARED
    wait = code("9 7 7 0: MOV R0, 0x5", "1 7 7 0: BAR.SYNC 0x0", "1 7 7 0: EXIT")
    assert clocks(wait, 4) == 9 + 1 + model.BARRIER


def test_clocks_of_loads_from_l2_and_l1() -> None:
    data = np.arange(64, dtype=np.uint32)
    data = data[-data.ctypes.data % 128 // 4 :]  # from the beginning of a sector
    low, high = data.ctypes.data & WORD, data.ctypes.data >> 32
    program = code(
        f"2 7 7 0: MOV R2, {low:#x}", f"2 7 7 0: MOV R3, {high:#x}",
        "1 0 7 0: LDG.E R4, desc[UR4][R2.64]", "1 0 7 1: LDG.E R5, desc[UR4][R2.64+0x4]",
        "1 7 7 1: EXIT",
    )  # fmt: skip
    assert clocks(program) == 4 + 0.5 + model.L2 + model.L1  # half a clock for the sector
    (warp,) = warps(program)
    while warp.pc >= 0:
        warp.step()
    assert (warp.words[4][0], warp.words[5][0]) == (data[0], data[1])


def test_a_loop_takes_its_trips_and_lanes_part_and_meet() -> None:
    program = code(
        "1 7 7 0: S2R R0, SR_LANEID",
        "2 7 7 0: MOV R1, RZ",
        "2 7 7 0: IADD3 R1, R1, 0x1, RZ",  # 0x20: as often as the lane's number, and once
        "1 7 7 0: ISETP.GT.AND P0, PT, R1, R0, PT",
        "1 7 7 0: @!P0 BRA 0x20",
        "1 7 7 0: REDUX.OR R2, R1",
        "1 7 7 0: EXIT",
    )
    replay = model.replay(program, [warps(program)], 1)
    assert replay.issued == {
        "S2R": 1, "MOV": 1, "IADD3": 32, "ISETP": 32, "BRA": 32, "REDUX": 1, "EXIT": 1,
    }  # fmt: skip
    assert replay.clocks == 1 + 2 + 32 * (2 + 1 + 1) + 31 * model.JUMP + 1
    (warp,) = warps(program)
    while warp.code[warp.pc].name != "EXIT":
        warp.step()
    assert (warp.words[1] == LANE + 1).all()
    assert (warp.words[2] == 63).all()  # 1 | 2 | ... | 32


def signed(x: int) -> int:
    return x - (x >> 31 << 32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IADD3 R8, R0, -R1, R2", lambda a, b, c: a - b + c),
        ("IMAD R8, R0, R1, -R2", lambda a, b, c: a * b - c),
        ("IMAD.WIDE.U32 R8, R0, R1, R2", lambda a, b, c: a * b + c),
        ("IMAD.WIDE R8, R0, R1, R2", lambda a, b, c: signed(a) * signed(b) + c),
        ("IMAD.HI.U32 R8, R0, R1, RZ", lambda a, b, c: a * b >> 32),
        ("SHF.R.U32.HI R8, RZ, 0x5, R0", lambda a, b, c: a >> 5),
        ("SHF.R.S32.HI R8, RZ, 0x1f, R0", lambda a, b, c: signed(a) >> 31),
        ("SHF.L.U64.HI R8, R0, 0x7, R1", lambda a, b, c: (b << 32 | a) << 7 >> 32),
        ("LEA R8, R0, R1, 0x3", lambda a, b, c: (a << 3) + b),
        ("LEA.HI R8, R0, R1, R2, 0x3", lambda a, b, c: ((c << 32 | a) >> 29) + b),
        ("LEA.HI.X.SX32 R8, R0, R1, 0x2, PT", lambda a, b, c: (signed(a) >> 30) + b + 1),
        ("LOP3.LUT R8, R0, R1, R2, 0xca, !PT", lambda a, b, c: a & b | ~a & c),
        ("VIMNMX R8, R0, R1, PT", lambda a, b, c: min(signed(a), signed(b))),
        ("VIMNMX.U32 R8, R0, R1, !PT", lambda a, b, c: max(a, b)),
        ("POPC R8, R0", lambda a, b, c: a.bit_count()),
        ("IABS R8, R0", lambda a, b, c: abs(signed(a))),
        ("PRMT R8, R0, 0x5410, R1", lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_integers_are_those_of_python(text: str, expected) -> None:
    rng, (warp,) = random.Random(0), warps(code(f"1 7 7 0: {text}"))
    rows = [
        [rng.choice((0, 1, WORD, 1 << 31, rng.getrandbits(32))) for _ in range(3)] for _ in LANE
    ]
    for register in range(3):
        warp.words[register] = np.array([row[register] for row in rows])
    warp.words[3] = ZERO  # the upper half of R2
    warp.step()
    wanted = [expected(*row) for row in rows]
    assert warp.words[8].tolist() == [value & WORD for value in wanted]
    if "WIDE" in text:
        assert warp.words[9].tolist() == [value >> 32 & WORD for value in wanted]


def test_64_bits_in_two_halves() -> None:
    rng = random.Random(1)
    (warp,) = warps(
        code(
            "1 7 7 0: IADD3 R8, P0, R0, R2, RZ",
            "1 7 7 0: IADD3.X R9, R1, R3, RZ, P0, !PT",
            "1 7 7 0: ISETP.GE.U32.AND P1, PT, R0, R2, PT",
            "1 7 7 0: ISETP.GE.AND.EX P2, PT, R1, R3, PT, P1",
        )
    )
    pairs = [[rng.getrandbits(63) - 2**62 for _ in range(2)] for _ in LANE]
    pairs[0][1] = pairs[0][0]
    for register in range(2):
        both = np.array([pair[register] for pair in pairs])
        warp.words[2 * register], warp.words[2 * register + 1] = both & WORD, both >> 32 & WORD
    for _ in range(4):
        warp.step()
    found = (warp.words[8] | warp.words[9] << 32).tolist()
    assert found == [a + b for a, b in pairs]
    assert warp.flags[2].tolist() == [a >= b for a, b in pairs]


def test_predicates_are_kept_in_a_register() -> None:
    (warp,) = warps(
        code("1 7 7 0: P2R R8, PR, R0, 0x6", "1 7 7 0: R2P PR, R0.B1, 0x5", "1 7 7 0: EXIT")
    )
    warp.words[0] = LANE << 8 | 0xFF
    warp.flags[1], warp.flags[2] = LANE > 3, LANE > 9
    warp.step()
    wanted = LANE << 8 | 0xF9 | (LANE > 3) * 2 | (LANE > 9) * 4
    assert warp.words[8].tolist() == wanted.tolist()
    warp.step()
    assert (warp.flags[0] == LANE % 2).all()
    assert (warp.flags[1] == (LANE > 3)).all()
    assert (warp.flags[2] == LANE // 4 % 2).all()


@pytest.mark.parametrize("text", ["UTMALDG R0, R1", "SHFL.UP PT, R0, R1, 0x1, RZ", "REDUX R0, R1"])
def test_what_is_not_known_is_named(text: str) -> None:
    (warp,) = warps(code(f"1 7 7 0: {text}"))
    with pytest.raises(NotImplementedError, match=text.split()[0].split(".")[0]):
        warp.step()


def test_without_a_compiler_it_says_so() -> None:
    command = (sys.executable, "-m", "benchmarks.gpu.predict", "--backends", "cuda")
    done = subprocess.run(command, env=os.environ | {"PATH": ""}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "No such file or directory: 'nvcc'" in done.stdout


def predicted(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    out = folder / "predicted.json"
    command = (sys.executable, "-m", "benchmarks.gpu.predict", "--out", out, "--lengths")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["rows"]


# Multiply-adds among all instructions that the large kernels execute, at least.
LEAST_SHARE = {"correlate 36": 0.50, "wgrad 36": 0.43}


@pytest.mark.campaign("compiles all kernels, and replays them for two minutes")
def test_the_real_kernels(tmp_path: Path) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    small, large = predicted(tmp_path, "20"), predicted(tmp_path, "2709", "--backends", "cuda")
    assert [row["backend"] for row in small] == ["triton"] * 3 + ["cuda"] * 3
    assert len(large) == 3
    for row in small + large:
        assert row["us"] > row["floor_us"] > 0
        assert 0 < row["ffma"] < 1
    for row in large:  # not far below what they were written to reach
        assert row["ffma"] >= LEAST_SHARE[row["kernel"]], row
