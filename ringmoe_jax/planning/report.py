"""What is known of a training step on a machine that need not be there, and how it is told."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Mapping
from typing import Any

from ringmoe_jax.parallel.hlo import Collective
from ringmoe_jax.planning.ahead import Compiled, Refused
from ringmoe_jax.planning.chips import Chip
from ringmoe_jax.planning.topology import Topology
from ringmoe_jax.run import PretrainConfig

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a step without a compiler, and with one. Bytes are per device.

    Attributes:
        config: checked configuration.
        topology: where it would run.
        mesh: devices along each axis.
        rows: images of each sensor in a step.
        parameters: number of them, decoders included.
        flops: of all devices, as the step is written.
        parameter_bytes: of the parameters on the fullest device; as much again for their gradients.
        optimizer_bytes: of the optimiser's state and whatever else the state holds.
        batch_bytes: of the images.
        kept_bytes: an estimate of what the forward pass keeps for the backward pass.
        compiled: the compiler's answer; None without it.
        refusal: why there is none.
    """

    config: PretrainConfig
    topology: Topology
    mesh: dict[str, int]
    rows: dict[str, int]
    parameters: int
    flops: float
    parameter_bytes: float
    optimizer_bytes: float
    batch_bytes: float
    kept_bytes: float
    compiled: Compiled | Refused | None = None
    refusal: str = ""

    @property
    def resident(self) -> float:
        """Bytes that lie on a device all the time."""
        return self.parameter_bytes + self.optimizer_bytes + self.batch_bytes

    @property
    def estimate(self) -> float:
        """Bytes that a step needs, before any compiler was asked."""
        return self.resident + self.parameter_bytes + self.kept_bytes

    @property
    def host_memory(self) -> float:
        """Bytes that this program took at most, so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def fits(self) -> bool | None:
        """Whether the step fits; None where nobody can tell."""
        memory = self.topology.memory
        if isinstance(self.compiled, Refused) or (memory and self.resident > memory):
            return False
        if self.compiled is None or not memory:
            return None
        return self.compiled.total <= memory


def bounds(plan: Plan) -> dict[str, float]:
    """Seconds that a compiled step takes at least, by what the chip's published peaks allow."""
    chip, program = plan.topology.chip, plan.compiled
    if not isinstance(program, Compiled) or not chip.flops:
        return {}
    return {
        "compute": program.cost.flops / chip.flops,
        "memory": program.traffic / chip.bandwidth,
        "interconnect": sum(c.runs * link_seconds(c, chip) for c in program.cost.collectives),
    }


def link_seconds(collective: Collective, chip: Chip) -> float:
    """Seconds that one exchange keeps the links of a device busy, at their published bandwidth.

    Where groups span hosts, only what must leave a host counts, at the network's bandwidth: of a sum or a
    gather one copy per host, its members sharing the work; of an all-to-all each member's own part.
    Neighbours in the mesh are taken to share a host.
    """
    n = len(collective.members)
    local = sum(m // chip.host == collective.members[0] // chip.host for m in collective.members)
    if not chip.network or local == n:
        return collective.sent / chip.interconnect
    outside = (n - local) / (n - 1)
    shared = 1 if collective.kind in ("all-to-all", "ragged-all-to-all", "collective-permute") else local
    return collective.sent * outside / shared / chip.network


def setting(plan: Plan) -> str:
    """Mesh, recomputation and batch, in words."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    remat = f", remat {plan.config.model['remat']}" if "remat" in plan.config.model else ""
    return f"{mesh}{remat}, batch {plan.config.data.batch_size}"


def verdict(plan: Plan) -> str:
    """Whether it fits, in one line."""
    memory, answer = plan.topology.memory, plan.compiled
    of = f"of {memory / GIB:.2f} GiB per device" if memory else "GiB per device"
    if answer is None and plan.fits is False:
        return f"does not fit: state and batch alone take {plan.resident / GIB:.2f} {of}"
    if answer is None:
        return f"not compiled: about {plan.estimate / GIB:.2f} {of}, by estimate"
    if isinstance(answer, Refused):
        return f"does not fit: needs {max(answer.total, plan.resident) / GIB:.2f} {of} or more"
    needs = f"{answer.total / GIB:.2f} {of}"
    return {True: f"fits: {needs}", False: f"does not fit: needs {needs}", None: f"needs {needs}"}[plan.fits]


def describe(plan: Plan) -> list[str]:
    """The report, as lines."""
    topology, accumulate = plan.topology, plan.config.train.accumulate
    kept_back = topology.installed - topology.memory
    reserve = (
        f" of {topology.installed / GIB:.2f} GiB, {kept_back / GIB:.2f} of them kept back" if kept_back > 0 else ""
    )
    images = ", ".join(f"{rows} {sensor}" for sensor, rows in plan.rows.items())
    lines = [
        verdict(plan),
        "",
        f"machine      {topology.name}, {topology.count} devices{reserve}",
        f"setting      {setting(plan)}",
        f"images       {images} a step" + (f" in {accumulate} micro-batches" if accumulate > 1 else ""),
        f"parameters   {plan.parameters / 1e6:,.1f} million, decoders included",
        f"work         {_flops(plan.flops)} a step as written, {_flops(plan.flops / topology.count)} a device",
        *_memory(plan),
    ]
    program = plan.compiled
    if isinstance(program, Compiled):
        lines += [*_exchanges(program), *_bounds(plan)]
        lines += ["", f"compiled in {program.seconds:.0f} s, {plan.host_memory / GIB:.1f} GiB of host memory"]
    reason = getattr(program, "reason", plan.refusal)
    return [*lines, "", reason] if reason else lines


def _memory(plan: Plan) -> list[str]:
    rows = {"parameters": plan.parameter_bytes, "optimiser state": plan.optimizer_bytes, "batch": plan.batch_bytes}
    program = plan.compiled
    if isinstance(program, Compiled):
        gradients = min(plan.parameter_bytes, program.temporaries)
        rows |= {
            "padding of these": max(0.0, program.arguments - plan.resident),
            "gradients": gradients,
            "activations and temporaries": program.temporaries - gradients,
            "outputs and program": program.outputs + program.code,
            "total": program.total,
        }
    else:
        rows |= {"gradients": plan.parameter_bytes, "activations, by estimate": plan.kept_bytes}
    return ["", *_table("memory per device", rows)]


def _exchanges(program: Compiled) -> list[str]:
    notes = {kind: f"in {times} exchanges" for kind, (_, times) in program.cost.counts().items()}
    lines = ["", *_table("sent per device and step", program.cost.sent(), notes)] if notes else ["", "nothing is sent"]
    if program.cost.unknown_loops:
        lines.append(f"  {program.cost.unknown_loops} loops of unknown length count once")
    return lines


def _bounds(plan: Plan) -> list[str]:
    found, chip, program = bounds(plan), plan.topology.chip, plan.compiled
    if not found:
        return ["", f"compiled     {_flops(program.cost.flops)} a device; no published peak, so no bound in time"]
    speed = f"{chip.interconnect / 1e9:.0f} GB/s"
    if chip.network:
        speed += f", {chip.network / 1e9:.0f} between hosts"
    notes = {
        "compute": f"{_flops(program.cost.flops)} as compiled, at {chip.flops / 1e12:.0f} TFLOP/s",
        "memory": f"{program.traffic / GIB:.1f} GiB at least, at {chip.bandwidth / 1e9:.0f} GB/s",
        "interconnect": f"{sum(program.cost.sent().values()) / GIB:.1f} GiB, at {speed}",
    }
    lines = [f"  {name:<30}{seconds * 1e3:>8.2f}  {notes[name]}" for name, seconds in found.items()]
    return ["", f"{'a step takes at least':<32}{'ms':>8}  bound by {max(found, key=found.get)}", *lines]


def _table(title: str, rows: Mapping[str, float], notes: Mapping[str, str] | None = None) -> list[str]:
    """Lines of bytes, in GiB or, where all are small, in MiB."""
    unit, name = (GIB, "GiB") if max(rows.values()) > GIB / 4 else (MIB, "MiB")
    lines = [f"  {row:<30}{size / unit:>8.2f}  {(notes or {}).get(row, '')}".rstrip() for row, size in rows.items()]
    return [f"{title:<32}{name:>8}", *lines]


def _flops(number: float) -> str:
    size, name = next((s, n) for s, n in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")) if number >= s or s == 1e9)
    return f"{number / size:.2f} {name}"


def to_json(plan: Plan) -> dict[str, Any]:
    """All figures, in bytes, FLOPs and seconds."""
    program = plan.compiled
    values = {
        "topology": plan.topology.name,
        "devices": plan.topology.count,
        "memory": plan.topology.memory,
        "mesh": plan.mesh,
        "batch": plan.rows,
        "remat": plan.config.model.get("remat"),
        "parameters": plan.parameters,
        "flops": plan.flops,
        "fits": plan.fits,
        "estimate": plan.estimate,
        "bytes": {
            "parameters": plan.parameter_bytes,
            "optimizer": plan.optimizer_bytes,
            "batch": plan.batch_bytes,
            "kept": plan.kept_bytes,
        },
        "refusal": plan.refusal or getattr(program, "reason", ""),
    }
    if program is not None:
        values["compiled"] = {"seconds": program.seconds, "total": program.total, "host_memory": plan.host_memory}
    if isinstance(program, Compiled):
        values["compiled"] |= {
            key: getattr(program, key) for key in ("arguments", "outputs", "temporaries", "code", "traffic")
        }
        values["compiled"] |= {
            "flops": program.cost.flops,
            "exchanges": {
                kind: {"places": places, "times": times, "bytes": program.cost.sent()[kind]}
                for kind, (places, times) in program.cost.counts().items()
            },
            "at_least": bounds(plan),
        }
    return values
