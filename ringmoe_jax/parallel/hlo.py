"""What a compiled program computes and sends, read from its HLO text (`compiled.as_text()`).

XLA's own cost analysis counts the body of a loop once and kernels not at all. Here each computation counts as
often as it runs in a step: loops by their trip count, branches as if all were taken (an upper bound). The text is
the optimised program of one device, so recomputation and work that devices repeat are in the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+)$")
_CALLEES = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,<=]*)\]")
_GEMM = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
        kind: see `COLLECTIVES`.
        shapes: of the operands on one device, for example ("bf16[4,64,16]",).
        members: devices of the first group, as positions in the mesh.
        runs: executions in a step.
        sent: bytes that one device sends in one execution, by the best algorithm: (n - 1) / n of what it
            holds, (n - 1) times its part for a gather, twice (n - 1) / n for a sum that all need. Of a ragged exchange
            as of full rows in the smaller one of its buffers: with even loads, and as many as can be.
    """

    kind: str
    shapes: tuple[str, ...]
    members: tuple[int, ...]
    runs: int
    sent: float


# Named scope of loops that count as never run: one of several that exclude each other stands for all.
UNCOUNTED = "uncounted"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one device in a step.

    Attributes:
        flops: of products (2 M N K each) and of kernels that declare theirs; other arithmetic is left out.
        collectives: exchanges.
        unknown_loops: loops without a known trip count; they count once.
    """

    flops: float
    collectives: tuple[Collective, ...]
    unknown_loops: int

    def sent(self) -> dict[str, float]:
        """Bytes that one device sends in a step, by kind."""
        return {kind: sum(c.sent * c.runs for c in of) for kind, of in self._by_kind().items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """(places in the program, executions in a step) by kind."""
        return {kind: (len(of), sum(c.runs for c in of)) for kind, of in self._by_kind().items()}

    def _by_kind(self) -> dict[str, list[Collective]]:
        found = {kind: [c for c in self.collectives if c.kind == kind] for kind in COLLECTIVES}
        return {kind: of for kind, of in found.items() if of}


class Program:
    """A parsed HLO module.

    Args:
        text: of `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.find("\n")])
        self.devices = int(partitions[1]) if partitions else 1
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if match := _LINE.match(line):
                instruction = _instruction(*match.groups())
                current[instruction.name] = instruction
            elif match := _HEAD.match(line):
                current = self.computations.setdefault(match[2], {})
                if match[1]:
                    self.entry = match[2]

    def callees(self, instruction: Instruction) -> Iterator[tuple[str, int | None]]:
        """Computations that an instruction runs and how often; None is a loop of unknown length."""
        if instruction.opcode.endswith(("-done", "-update")):
            return  # belongs to its start
        trips = 1
        if instruction.opcode == "while":
            trips = 0 if f"/{UNCOUNTED}/" in instruction.attributes else self.trip_count(instruction)
        for key, name in _CALLEES.findall(instruction.attributes):
            yield name, trips + 1 if key == "condition" and trips else trips
        for names in _BRANCHES.findall(instruction.attributes):
            for name in names.split(","):
                yield name.strip().lstrip("%"), 1

    def trip_count(self, loop: Instruction) -> int | None:
        """Iterations of a while loop: XLA's note, else the constant that its condition compares with."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        found = list(self._integers(dict(_CALLEES.findall(loop.attributes))["condition"]))
        return found[0] if len(found) == 1 else None

    def _integers(self, computation: str) -> Iterator[int]:
        for instruction in self.computations[computation].values():
            if instruction.opcode == "constant" and re.match(r"[su]\d+\[\]", instruction.type):
                yield int(instruction.arguments)
            for name, _ in self.callees(instruction):
                yield from self._integers(name)

    def runs(self) -> tuple[dict[str, int], int]:
        """Executions of every computation in a step, and the number of loops of unknown length."""
        callers: dict[str, list[tuple[str, int]]] = {}
        unknown = 0
        for caller, instructions in self.computations.items():
            for instruction in instructions.values():
                for name, times in self.callees(instruction):
                    callers.setdefault(name, []).append((caller, 1 if times is None else times))
                    unknown += times is None and f"body=%{name}" in instruction.attributes

        @functools.cache
        def count(name: str) -> int:
            if name == self.entry:
                return 1
            return sum(count(caller) * times for caller, times in callers.get(name, ()))

        return {name: count(name) for name in self.computations}, unknown


def analyse(text: str) -> Cost:
    """Counts products and collectives of a compiled program.

    Args:
        text: of `compiled.as_text()`.
    """
    program = Program(text)
    runs, unknown = program.runs()
    flops, collectives = 0.0, []
    for name, instructions in program.computations.items():
        if not runs[name]:
            continue
        for instruction in instructions.values():
            if instruction.opcode in _FLOPS:
                flops += runs[name] * _FLOPS[instruction.opcode](instruction, instructions)
            elif instruction.opcode.removesuffix("-start") in COLLECTIVES:
                collective = _collective(instruction, instructions, name, runs[name], program.devices)
                if len(collective.members) > 1:
                    collectives.append(collective)
    return Cost(flops, tuple(collectives), unknown)


def bytes_of(type_text: str) -> float:
    """Bytes of an array or tuple type, without padding: "(f32[4,2]{1,0}, pred[])" is 33."""
    return sum(math.prod(shape) * _width(dtype) for dtype, shape in _arrays(type_text))


# ---- Lines ------------------------------------------------------------------------------------------


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, type_text, rest[:opening], operands, arguments, rest[closing + 1 :])


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (dtype, tuple(int(n.lstrip("<=")) for n in shape.split(",") if n)) for dtype, shape in _ARRAY.findall(type_text)
    ]


def _width(dtype: str) -> float:
    """Bytes of one element: the first number in a dtype's name is its bits."""
    if dtype in ("pred", "token", "opaque"):
        return float(dtype == "pred")
    return int(re.search(r"\d+", dtype)[0]) / 8


# ---- Collectives ------------------------------------------------------------------------------------


def _collective(instruction, scope: dict[str, Instruction], computation: str, runs: int, devices: int) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    if computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # how the TPU compiler writes it: a fusion of a sum and a slice
    types = [scope[name].type for name in instruction.operands if name in scope]
    if kind == "ragged-all-to-all":  # from one buffer into another, by tables of where and how much
        types = [min(types[:2], key=bytes_of)]
    held = sum(map(bytes_of, types))
    members = _members(instruction.attributes) or tuple(range(devices))
    n = len(members)
    share = {
        "all-gather": n - 1,
        "all-reduce": 2 * (n - 1) / n,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }.get(kind, (n - 1) / n)
    shapes = tuple(f"{dtype}[{','.join(map(str, shape))}]" for t in types for dtype, shape in _arrays(t))
    return Collective(kind, shapes, members, runs, held * share)


def _members(attributes: str) -> tuple[int, ...]:
    """The first group of devices, () for all. HLO writes groups as a list, as a reshaped iota, or by mesh axes.

    Raises:
        ValueError: they are written in another way.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return tuple(map(int, pairs.groups()))
    if listed := re.search(r"replica_groups=\{(?:\{([\d,]+)\}|\})", attributes):
        return tuple(map(int, listed[1].split(","))) if listed[1] else ()
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[\S+)", attributes):
        return tuple(_order(iota[3]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
    if named := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", attributes):
        return _mesh_members(*named.groups())
    raise ValueError(f"cannot read the groups of devices in: {attributes[:200]}")


def _order(iota: str) -> np.ndarray:
    """Devices in the order of "[2,4]T(1,0)" (0..7 in two rows, read by columns) or of a plain list "0,4,1,5"."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", iota)
    if not found:
        return np.array([int(n) for n in re.findall(r"\d+", iota)])
    shape = [int(n) for n in found[1].split(",")]
    table = np.arange(math.prod(shape)).reshape(shape)
    return (table.transpose([int(n) for n in found[2].split(",")]) if found[2] else table).reshape(-1)


def _mesh_members(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
    """First group of "'a'=2,'b'=4" along "'b'" or along a part of an axis, "'b':(1)2" (outer size 1, size 2).

    `order` says which device stands at each position of the mesh; None is 0, 1, 2, ...
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    strides, stride = {}, math.prod(sizes.values())
    for name, size in sizes.items():
        stride //= size
        strides[name] = stride
    positions = np.zeros(1, int)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        size = int(part) if part else sizes[name]
        inner = sizes[name] // (int(before or 1) * size)
        positions = (positions[:, None] + np.arange(size) * inner * strides[name]).reshape(-1)
    return tuple((_order(order)[positions] if order else positions).tolist())


# ---- Products ---------------------------------------------------------------------------------------


def _numbers(key: str, text: str) -> list[int]:
    found = re.search(rf"\b{key}=\{{?([\d,x]*)", text)
    return [int(n) for n in re.split("[,x]", found[1]) if n] if found else []


def _dot(instruction: Instruction, scope: dict[str, Instruction]) -> float:
    (_, lhs), (_, out) = _arrays(scope[instruction.operands[0]].type)[0], _arrays(instruction.type)[0]
    contracted = math.prod(lhs[i] for i in _numbers("lhs_contracting_dims", instruction.attributes))
    return 2.0 * math.prod(out) * contracted


def _ragged_dot(instruction: Instruction, scope: dict[str, Instruction]) -> float:
    """Rows times K times N: each row meets the matrix of its own group only."""
    (_, lhs), (_, rhs) = (_arrays(scope[name].type)[0] for name in instruction.operands[:2])
    return 2.0 * math.prod(lhs) * rhs[-1]


def _convolution(instruction: Instruction, scope: dict[str, Instruction]) -> float:
    """Products on TPU are convolutions; padding and dilation hold batch dimensions, so only real pairs count."""
    text = instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    (_, lhs), (_, rhs) = (_arrays(scope[name].type)[0] for name in instruction.operands)
    out = _arrays(instruction.type)[0][1]
    shapes = zip(labels.groups(), (lhs, rhs, out), strict=True)
    left, right, result = (dict(zip(label, shape, strict=True)) for label, shape in shapes)
    groups = (_numbers("batch_group_count", text) or [1])[0]
    pairs = 1
    window = re.search(r"window=\{([^}]*)\}", text)
    axes = sorted(label for label in right if label.isdigit())
    for i, axis in enumerate(axes):
        pairs *= _pairs(i, left[axis], right[axis], result[axis], window[1] if window else "")
    return 2.0 * right["i"] * result["f"] * left["b"] / groups * pairs


def _pairs(i: int, size: int, kernel: int, out: int, window: str) -> int:
    """Pairs of output and kernel positions along one axis that meet an input element."""

    def read(key: str, default: int) -> int:
        found = re.search(rf"\b{key}=([\dx_\-]+)", window)
        return int(found[1].split("x")[i].split("_")[0]) if found else default

    position = np.arange(out)[:, None] * read("stride", 1) + np.arange(kernel) * read("rhs_dilate", 1) - read("pad", 0)
    dilation = read("lhs_dilate", 1)
    return int(np.sum((position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)))


def _kernel(instruction: Instruction, scope: dict[str, Instruction]) -> float:
    """A library product by its shapes, or what a kernel's author declared (`pallas_call`'s cost estimate)."""
    if gemm := _GEMM.search(instruction.attributes):
        lhs, out = _arrays(scope[instruction.operands[0]].type)[0][1], _arrays(instruction.type)[0][1]
        return 2.0 * math.prod(out) * math.prod(lhs[int(n)] for n in re.findall(r"\d+", gemm[1]))
    declared = re.search(r'"flops":"?(\d+)', instruction.attributes)
    return float(declared[1]) if declared else 0.0


_FLOPS = {"dot": _dot, "ragged-dot": _ragged_dot, "convolution": _convolution, "custom-call": _kernel}
