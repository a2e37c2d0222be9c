"""A warp of NVIDIA's machine code, run without a GPU.

Integers, predicates, addresses and jumps are computed, for they decide what is executed; of
floating point only what divides integers. Loads read this process's memory, where the tensors are;
stores to it are dropped. An instruction that is not known is an error that names it.
"""

from __future__ import annotations

import ctypes
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.sass import Instruction

Lanes = NDArray[Any]  # 32 words, as int64 in [0, 2**32); or 32 predicates
WORD, PARAMETERS, SHARED_BASE = 0xFFFFFFFF, 0x210, 0x400
ALL, NONE, ZERO, LANE = np.ones(32, bool), np.zeros(32, bool), np.zeros(32, np.int64), np.arange(32)
IGNORED = {  # what decides nothing here, with all arithmetic on floats
    "NOP", "BSSY", "BSYNC", "WARPSYNC", "BAR", "DEPBAR", "LDGDEPBAR", "LDSM", "FADD", "FFMA",
    "FSEL", "FSETP",
}  # fmt: skip


class Access(NamedTuple):
    """What a load or store costs: the 32-byte sectors that it meets, shared memory's turns."""

    sectors: frozenset[int]
    turns: int


# This process's memory as words of so many bytes; nothing is below 4096.
MEMORY = {
    size: np.ndarray((2**47 // size,), f"u{size}", (ctypes.c_ubyte * 2**47).from_address(4096))
    for size in (1, 2, 4)
}


class Warp:
    """Registers 0 to 254, then the uniform ones; predicates 0 to 6, then the uniform ones."""

    def __init__(
        self, code: Sequence[Instruction], constants: Lanes, shared: Lanes,
        number: int, block: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.code, self.constants, self.shared = code, constants, shared
        self.words, self.flags = [ZERO] * 320, ([NONE] * 7 + [ALL]) * 2
        places = {f"SR_CTAID.{axis}": ZERO + i for axis, i in zip("XYZ", block, strict=True)}
        self.special = {"SR_TID.X": LANE + 32 * number, "SR_LANEID": LANE} | places
        self.special |= dict.fromkeys(("SRZ", "SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId"), ZERO)
        self.pc, self.mask, self.parted = 0, ALL, dict[int, Lanes]()
        self.access: Access | None = None

    def step(self) -> Access | None:
        """Run the next instruction; what it asked of the memory."""
        instruction = self.code[self.pc]
        active, self.access = self.mask, None
        if instruction.guard:
            active = active & _flag(instruction.guard)(self)
        self.pc += 1
        if active is ALL or active.any():
            _compiled(instruction)(self, active)
        if self.parted:
            self.jump(self.pc, NONE)
        return self.access

    def jump(self, target: int | None, active: Lanes) -> None:
        """Active lanes go to a target, or end. Of lanes that parted the rearmost run first."""
        places = {self.pc: self.mask & ~active}
        for pc, mask in (*self.parted.items(), (target, active)):
            if pc is not None:
                places[pc] = places.get(pc, NONE) | mask
        self.parted = {pc: mask for pc, mask in places.items() if mask.any()}
        self.pc = min(self.parted, default=-1)  # -1: all have ended
        mask = self.parted.pop(self.pc, NONE)
        self.mask = ALL if mask.all() else mask

    def write(self, register: str, value: Lanes, active: Lanes, more: int = 0) -> None:
        if register[-1] != "Z":
            at, value = _number(register) + more, value & WORD
            whole = active is ALL or at > 255  # a uniform one
            self.words[at] = value if whole else np.where(active, value, self.words[at])

    def write_flags(self, names: Sequence[str], values: Sequence[Lanes], active: Lanes) -> None:
        for name, value in zip(names, values, strict=False):
            if name[-1] != "T":
                at = _flag_number(name)
                self.flags[at] = value if at > 7 else np.where(active, value, self.flags[at])


def _number(register: str) -> int:
    uniform, _, number = register.partition("R")
    return (256 if uniform else 0) + int(number)


def _flag_number(name: str) -> int:
    return 8 * (name[0] == "U") + (7 if name[-1] == "T" else int(name[-1]))


@cache
def _flag(text: str) -> Callable[[Warp], Lanes]:
    at = _flag_number(text.lstrip("!"))
    return (lambda w: ~w.flags[at]) if text[0] == "!" else (lambda w: w.flags[at])


@cache
def _word(text: str, more: int = 0) -> Callable[[Warp], Lanes]:
    """What reads a source operand, or with more = 1 the upper half of a wide one."""
    if match := re.fullmatch(r"([-~]?)(U?R(?:\d+|Z))(?:\.\w+)*", text):
        if match[2][-1] == "Z":
            return lambda w: ZERO
        at = _number(match[2]) + more
        if match[1] == "-":
            return lambda w: (1 << 32) - w.words[at]  # with its carry
        return (lambda w: w.words[at] ^ WORD) if match[1] else (lambda w: w.words[at])
    if match := re.fullmatch(r"c\[0x0\]\[(0x\w+)\](?:\.\w+)?", text):
        at, byte = divmod(int(match[1], 16), 4)
        return lambda w: ZERO + (w.constants[at + more] >> 8 * byte)
    value = ZERO + (int(text, 16) >> 32 * more & WORD)
    return lambda w: value


def signed(x: Lanes) -> Lanes:
    return x << 32 >> 32


def _logic(m: Sequence[str], a: Lanes, b: Lanes, c: Lanes, table: Lanes, *_: Lanes) -> Lanes:
    found = ZERO
    for i in range(8):
        if table[0] >> i & 1:
            found = found | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return found


def _product(m: Sequence[str], a: Lanes, b: Lanes, c: Lanes, *carry: Lanes) -> Lanes:
    if "WIDE" not in m and "HI" not in m:
        return sum(carry, (a * b + c) & WORD)
    total = (a * b if "U32" in m else signed(a) * signed(b)) + c
    return total if "WIDE" in m else total >> 32


def _shift(m: Sequence[str], a: Lanes, by: Lanes, c: Lanes) -> Lanes:
    by, high = by & 31 if "W" in m else np.minimum(by, 63), "HI" in m
    both = c << 32 | a
    if "L" in m:
        return both << by >> 32 if high else a << by
    return (signed(c) if "S32" in m else c) >> by if high else both >> by


def _shifted_sum(m: Sequence[str], a: Lanes, b: Lanes, *rest: Lanes) -> Lanes:
    if "HI" not in m:
        return (a << rest[0] & WORD) + b
    wide = (signed(a), *rest) if "SX32" in m else (rest[0] << 32 | a, *rest[1:])
    return sum(wide[2:], (wide[0] >> 32 - wide[1]) + b)


def _least_or_most(m: Sequence[str], a: Lanes, b: Lanes, least: Lanes) -> Lanes:
    less = (a & WORD) < (b & WORD) if "U32" in m else signed(a) < signed(b)
    return np.where(less == least, a, b)


def _permuted(m: Sequence[str], a: Lanes, by: Lanes, b: Lanes) -> Lanes:
    nibbles = [by >> 4 * i & 15 for i in range(4)]
    chosen = [(b << 32 | a) >> (n & 7) * 8 & 255 for n in nibbles]
    return sum(np.where(n > 7, (x > 127) * 255, x) << 8 * i
               for i, (n, x) in enumerate(zip(nibbles, chosen, strict=True)))  # fmt: skip


def _float(a: Lanes) -> Lanes:
    return a.astype(np.uint32).view(np.float32)


def _to_float(m: Sequence[str], a: Lanes) -> Lanes:
    exact = (a if "U32" in m else signed(a)).astype(np.float64)
    near = exact.astype(np.float32)
    up = np.where((near < exact) & ("RP" in m), np.nextafter(near, np.float32(np.inf)), near)
    return up.view(np.uint32).astype(np.int64)


def _to_integer(m: Sequence[str], a: Lanes) -> Lanes:
    return np.clip(np.nan_to_num(_float(a).astype(np.float64)), 0, WORD).astype(np.int64)


def _reciprocal(m: Sequence[str], a: Lanes) -> Lanes:
    with np.errstate(all="ignore"):  # of lanes that do not divide
        return (1 / _float(a)).view(np.uint32).astype(np.int64) if "RCP" in m else ZERO


# By name, without the U of uniform ones: modifiers, words and the predicates that follow to a
# result, whose carry is above bit 31.
ARITHMETIC: dict[str, Callable[..., Lanes]] = {
    "IADD3": lambda m, *words: sum(words),
    "VIADD": lambda m, a, b: a + b,
    "IMAD": _product,
    "LEA": _shifted_sum,
    "SHF": _shift,
    "LOP3": _logic,
    "IABS": lambda m, a: abs(signed(a)),
    "VIMNMX": _least_or_most,
    "VIADDMNMX": lambda m, a, b, c, least: _least_or_most(m, a + b, c, least),
    "SEL": lambda m, a, b, first: np.where(first, a, b),
    "PRMT": _permuted,
    "SGXT": lambda m, a, by: a & (1 << by) - 1 if "U32" in m else a << 64 - by >> 64 - by,
    "POPC": lambda m, a: ZERO + np.bitwise_count(a),
    "I2F": _to_float,
    "F2I": _to_integer,
    "MUFU": _reciprocal,
    **dict.fromkeys(("MOV", "LDC"), lambda m, a, *_: a & 255 if "U8" in m else a),
}  # fmt: skip
COMPARE = {name: getattr(operator, name.lower()) for name in ("LT", "LE", "GT", "GE", "EQ", "NE")}
JOIN = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def _calculated(i: Instruction) -> Callable[[Warp, Lanes], None]:
    name = i.name if i.name in ARITHMETIC else i.name.removeprefix("U")
    if name not in ARITHMETIC:
        raise NotImplementedError(f"benchmarks.gpu.warp does not know {i}")
    kinds = [re.fullmatch(r"!?U?P[T\d]", operand) is None for operand in i.operands]
    first = kinds.index(True)  # the register that is written; around it the predicates that are
    begin = kinds.index(True, first + 1)
    outs = i.operands[:first] + i.operands[first + 1 : begin]
    target, m, compute = i.operands[first], i.modifiers, ARITHMETIC[name]
    wide = "WIDE" in m or (name == "LDC" and "64" in m)
    pair = {"IMAD": 2 if {"WIDE", "HI"} & {*m} else None, "LDC": 0 if wide else None}.get(name)
    sources = [
        _pair(text) if at == pair else _word(text) if kind else _flag(text)
        for at, (text, kind) in enumerate(zip(i.operands[begin:], kinds[begin:], strict=True))
    ]

    def run(w: Warp, active: Lanes) -> None:
        total = compute(m, *[source(w) for source in sources])
        w.write(target, total, active)
        if wide:
            w.write(target, total >> 32, active, 1)
        if outs:
            carry = total != 0 if name == "LOP3" else total >> 32 & 3
            w.write_flags(outs, (carry > 0, carry > 1), active)

    return run


def _pair(text: str) -> Callable[[Warp], Lanes]:
    low, high = _word(text), _word(text, 1)
    return lambda w: low(w) | high(w) << 32


def _compared(i: Instruction) -> Callable[[Warp, Lanes], None]:
    """ISETP: two words; with EX those of which they are the upper halves were compared before."""
    compare = COMPARE[i.modifiers[0]]
    join = next(JOIN[m] for m in i.modifiers if m in JOIN)
    a, b = map(_word, i.operands[2:4])
    others = [_flag(text) for text in i.operands[4:]]
    unsigned, extended = "U32" in i.modifiers, "EX" in i.modifiers

    def run(w: Warp, active: Lanes) -> None:
        x, y = a(w) & WORD, b(w) & WORD
        found = compare(x, y) if unsigned else compare(signed(x), signed(y))
        if extended:
            found = np.where(x == y, others[1](w), found)
        other = others[0](w)
        w.write_flags(i.operands, (join(found, other), join(~found, other)), active)

    return run


def _joined(i: Instruction) -> Callable[[Warp, Lanes], None]:
    """PLOP3: two functions of three predicates."""
    sources, tables = [*map(_flag, i.operands[2:5])], [*map(_word, i.operands[5:])]

    def run(w: Warp, active: Lanes) -> None:
        flags = [source(w) for source in sources]
        w.write_flags(i.operands, [_logic((), *flags, table(w)) != 0 for table in tables], active)

    return run


def _jump(i: Instruction) -> Callable[[Warp, Lanes], None]:
    condition = [_flag(text) for text in i.operands if re.fullmatch(r"!?U?P[T\d]", text)]
    target = int(i.operands[-1], 16) // 16 if i.name == "BRA" else None

    def run(w: Warp, active: Lanes) -> None:
        w.jump(target, active & condition[0](w) if condition else active)

    return run


BYTES = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}


def _address(text: str) -> Callable[[Warp], Lanes]:
    terms = re.findall(r"-?[\w.]+", text[text.rindex("[") :].replace("+-", "+-"))
    readers = [
        _pair(term.removesuffix(".64")) if term.endswith(".64") else _word(term) for term in terms
    ]
    # A negative offset is a word here.
    signs = [signed if "x" in term else lambda x: x for term in terms]
    return lambda w: sum(sign(read(w)) for sign, read in zip(signs, readers, strict=True))


@cache
def _turns(addresses: bytes, size: int) -> int:
    """How often shared memory's 32 banks are read for addresses relative to one of them."""
    words = {word + k for word in (np.frombuffer(addresses, np.int64) // 4).tolist()
             for k in range(max(1, size // 4))}  # fmt: skip
    return max(Counter(word % 32 for word in words).values())


def _accessed(i: Instruction) -> Callable[[Warp, Lanes], None]:
    """Loads and stores. LDGSTS copies; where its predicate is false it writes zeros."""
    size = next((BYTES[m] for m in i.modifiers if m in BYTES), 4)
    places = [_address(text) for text in i.operands if "[" in text]
    shared, loads = i.name in ("LDS", "STS"), i.name in ("LDS", "LDG")
    data = i.operands[0 if loads else -1]
    valid = _flag(i.operands[-1]) if i.name == "LDGSTS" and len(i.operands) > 2 else None

    def run(w: Warp, active: Lanes) -> None:
        at = places[-1](w)
        reads = active if valid is None else active & valid(w)
        met = at[reads]
        if shared:
            w.access = Access(frozenset(), _turns((met - met[0]).tobytes(), size))
        else:
            sectors = frozenset((met >> 5).tolist())
            w.access = Access(sectors, len({sector >> 2 for sector in sectors}))
        for k in range(max(1, size // 4)):
            if i.name == "STS":
                w.shared[(met >> 2) + k] = _word(data, k)(w)[active]
            elif i.name != "STG":
                found = np.zeros(32, np.int64)
                kind = min(size, 4)
                memory = w.shared if shared else MEMORY[kind]
                found[reads] = memory[(met - 4096 * (not shared)) // kind + k]
                if loads:
                    w.write(data, found, active, k)
                else:
                    w.shared[(places[0](w)[active] >> 2) + k] = found[active]

    return run


def _gathered(i: Instruction) -> Callable[[Warp, Lanes], None]:
    """What lanes tell each other; and what only the encoding or a table says."""
    sources = [_word(text) for text in i.operands[1:] if re.match(r"-?U?R|0x", text)]

    def run(w: Warp, active: Lanes) -> None:
        words = [source(w) for source in sources]
        if i.name in ("S2R", "S2UR", "CS2R"):
            w.write(i.operands[0], w.special[i.operands[1]], active)
            w.write(i.operands[0], ZERO, active, 1) if i.name == "CS2R" else None
        elif i.name == "HFMA2":  # a constant
            w.write(i.operands[0], ZERO + (i.low >> 32), active)
        elif i.name == "P2R":
            flags = sum(w.flags[k] << k & words[1] for k in range(7))
            w.write(i.operands[0], words[0] & ~words[1] | flags, active)
        elif i.name == "R2P":
            chosen = [k for k in range(7) if words[1][0] >> k & 1]
            bits = words[0] >> 8 * int((re.findall(r"\.B(\d)", i.operands[1]) or "0")[0])
            w.write_flags([f"P{k}" for k in chosen], [bits >> k & 1 > 0 for k in chosen], active)
        elif i.name == "R2UR":
            w.write(i.operands[0], ZERO + words[0][active][0], active)
        elif i.name == "REDUX":  # OR
            w.write(i.operands[0], ZERO + np.bitwise_or.reduce(words[0][active]), active)
        else:  # SHFL.BFLY
            w.write(i.operands[1], words[0][(LANE ^ words[1]) & 31], active)

    return run


@cache
def _compiled(i: Instruction) -> Callable[[Warp, Lanes], None]:
    """What an instruction does to a warp and its active lanes."""
    if i.name in ("ISETP", "UISETP"):
        return _compared(i)
    if i.name == "PLOP3":
        return _joined(i)
    if i.name in ("LDG", "STG", "LDS", "STS", "LDGSTS"):
        return _accessed(i)
    if i.name in ("S2R", "S2UR", "CS2R", "HFMA2", "R2UR", "P2R", "R2P") or (
        (i.name, *i.modifiers[:1]) in (("REDUX", "OR"), ("SHFL", "BFLY"))
    ):
        return _gathered(i)
    if i.name in IGNORED or (i.name == "BRA" and "DIV" in i.modifiers):
        return lambda w, active: None
    if i.name in ("BRA", "EXIT"):
        return _jump(i)
    return _calculated(i)
