"""What a compiled step will cost, as one JSON-ready dict and as a table to read.

``predicted_mfu`` = model FLOPs / (predicted seconds x peak x devices), where the model FLOPs of a step are
tokens x (6 x parameters that multiply + 6 x layers x length x heads x head size): forward and backward of every weight
matrix that a token meets, head included and embedding table not, and of causal attention at half its square.
"""

from __future__ import annotations

import math
from typing import Any

from aqaa_jax.config import to_dict
from aqaa_jax.decoder.flops import model_flops, parameters
from aqaa_jax.plan import hlo
from aqaa_jax.plan.collectives import ASSUMPTIONS, Torus
from aqaa_jax.plan.compile import GIB, Job, Program
from aqaa_jax.plan.replay import Replayed, Traffic, replay
from aqaa_jax.plan.topology import Topology, torus
from aqaa_jax.sharding.mesh import describe
from aqaa_jax.training.executable import versions

MIB = 2**20
DOUBTFUL = 1.4  # work done / model FLOPs above which the loops of the program were not understood


def report(job: Job, target: Topology, program: Program, token_budget: float = 0.0) -> dict[str, Any]:
    """The plan of ``job`` on ``target``: everything that ``docs/plans.md`` tabulates, and the collectives."""
    module = hlo.parse(program.compiled.as_text())
    places, chip = torus(target, program.mesh), target.chip
    played = {name: replay(module, places, name) for name in ASSUMPTIONS}
    out, memory = played["emit"], program.compiled.memory_analysis()
    devices, tokens = len(target.devices), job.config.batch * job.config.length
    model, total = model_flops(job.decoder, job.config.batch, job.config.length), parameters(job.decoder)
    done = (out.sums["matmul_flops"] + out.sums["kernel_flops"]) * devices
    seconds = {name: p.seconds for name, p in played.items()}
    mfu = {name: model / (s * chip.peak * devices) for name, s in seconds.items()}
    turns = job.decoder.layers // job.decoder.unroll
    hours = target.chips * seconds["emit"] / 3600
    plan = {
        "topology": target.name, "slices": target.slices, "chips": target.chips, "devices": devices,
        "stage": job.stage, "mesh": describe(job.sharding.mesh), "strategy": job.sharding.strategy,
        "batch": job.config.batch, "seq": job.config.length, "tokens_per_step": tokens,
        "parameters": total[0], "active_parameters": total[1], "model_flops": model,
        "hlo_matmul_flops": out.sums["matmul_flops"] * devices, "hlo_kernel_flops": out.sums["kernel_flops"] * devices,
        "work_over_model": done / model,
        "peak_hbm_gib": memory.peak_memory_in_bytes / GIB, "hbm_limit_gib": chip.hbm_gib,
        "state_gib": memory.argument_size_in_bytes / GIB, "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "host_gib": (memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes) / GIB,
        "hbm_bytes": out.sums["hbm_bytes"],
        "predicted_mfu": mfu["emit"], "predicted_mfu_by_axes": mfu,
        "predicted_step_seconds": seconds["emit"], "predicted_step_seconds_by_axes": seconds,
        "exposed_ici_seconds_by_axes": {name: p.sums["exposed_ici"] for name, p in played.items()},
        "ideal_seconds": model / (chip.peak * devices),
        "bound": bound(out, places), "streams": streams(out, places),
        "matmul_efficiency": out.sums["matmul_flops"] / (chip.peak * (out.sums["matmul"] or math.inf)),
        "sync_gather_in_layer_mib": largest_sync_gather(out, turns, job.config.length) / MIB,
        "tokens_per_second": tokens / seconds["emit"], "chip_hours_per_step": hours,
        "collectives": collectives(out, places, turns),
        "lower_seconds": program.lowering, "compile_seconds": program.compiling,
        "versions": versions(), "flags": dict(job.flags), "decoder": to_dict(job.decoder),
        "notes": notes(out, done / model, chip.cycles), "assumed": list(chip.assumed),
    }  # fmt: skip
    if token_budget:
        steps = token_budget / tokens
        plan |= {"token_budget": token_budget, "chip_hours": steps * hours, "days": steps * seconds["emit"] / 86400}
    return plan


def streams(out: Replayed, places: Torus) -> dict[str, float]:
    """Seconds of work of each stream, whether or not beside another; and what was waited for."""
    s = out.sums
    return {
        "compute": s["compute"], "matmul": s["matmul"], "kernel": s["kernel"],
        "other": s["compute"] - s["matmul"] - s["kernel"], "memory_bound": s["memory_bound"],
        "hbm": s["hbm_bytes"] / places.chip.hbm, "ici": s["ici"], "dcn": s["dcn"],
        "exposed_ici": s["exposed_ici"], "exposed_dcn": s["exposed_dcn"], "exposed_copy": s["exposed_copy"],
    }  # fmt: skip


def bound(out: Replayed, places: Torus) -> str:
    """The stream with the most work: ``compute``, ``hbm``, ``ici`` or ``dcn``."""
    found = streams(out, places)
    return max(("compute", "hbm", "ici", "dcn"), key=lambda name: found[name])


def largest_sync_gather(out: Replayed, turns: int, length: int) -> int:
    """Bytes of the largest gather of weights that nothing runs beside, inside of a layer; 0 if there is none.

    ``turns`` of the loop over layers tell it from that over micro-batches. An array with the rows' length among its
    dimensions is an activation.
    """
    found = [t.collective for t in out.counts if turns in t.loops and not t.asynchronous and t.collective.gathers]
    return max((c.bytes for c in found if length not in c.dims), default=0)


def collectives(out: Replayed, places: Torus, turns: int) -> list[dict[str, Any]]:
    """One entry for all alike, the longest first; bytes are of one, seconds of all in a step."""
    groups: dict[tuple, list[Traffic]] = {}
    for what in out.counts:
        c = what.collective
        key = (c.kind, c.bytes, len(c.group), c.axes, c.emitter, what.asynchronous, turns in what.loops, what.network)
        groups.setdefault(key, []).append(what)
    rows = []
    for (kind, size, group, axes, emitter, asynchronous, layer, network), alike in groups.items():
        count = sum(out.counts[w] for w in alike)
        rows.append(
            {
                "kind": kind, "bytes": size, "group": group, "count": count, "async": asynchronous, "in_layer": layer,
                "network": "dcn" if network else "ici", "emitter": emitter, "axes": axes or 1,
                "seconds": sum(out.counts[w] * w.collective.seconds(places, "emit") for w in alike),
                "exposed_seconds": sum(out.exposed[w] for w in alike), "source": alike[0].collective.source,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["seconds"])


def notes(out: Replayed, work: float, cycles: str) -> list[str]:
    """What makes the figures doubtful."""
    found = sorted(out.notes) + ([cycles] if cycles else [])
    if work > DOUBTFUL:
        found.append(f"work / model FLOPs is {work:.2f}, above {DOUBTFUL}: time and MFU are not to be trusted")
    return found


def table(plan: dict[str, Any]) -> str:
    """``plan`` for the terminal."""
    by, s = plan["predicted_mfu_by_axes"], plan["streams"]
    exposed = plan["exposed_ici_seconds_by_axes"]
    lines = [
        ("on", f"{plan['slices']} x {plan['topology']}: {plan['chips']} chips, {plan['mesh']}, {plan['strategy']}"),
        ("step", f"{plan['batch']} x {plan['seq']} = {plan['tokens_per_step']:,} tokens ({plan['stage']})"),
        ("parameters", f"{plan['parameters'] / 1e9:.2f} B, {plan['active_parameters'] / 1e9:.2f} B multiply a token"),
        ("memory", f"{plan['peak_hbm_gib']:.2f} of {plan['hbm_limit_gib']} GiB (state {plan['state_gib']:.2f})"
         + (f", host {plan['host_gib']:.2f} GiB" if plan["host_gib"] else "")),
        ("work", f"{plan['work_over_model']:.3f} of the model's {plan['model_flops']:.4g} FLOPs; products at "
                 f"{plan['matmul_efficiency']:.1%} of the peak"),
        ("seconds", f"{plan['predicted_step_seconds']:.3f} (ideal {plan['ideal_seconds']:.3f}): products "
                    f"{s['matmul']:.3f}, kernels {s['kernel']:.3f}, other {s['other']:.3f}, links exposed "
                    f"{exposed['emit']:.3f} of {s['ici']:.3f} [all axes {exposed['3D']:.3f}, one {exposed['1D']:.3f}]"
                    + (f", network {s['exposed_dcn']:.3f} of {s['dcn']:.3f}" if s["dcn"] else "")),
        ("MFU", f"{by['emit']:.1%} [all axes {by['3D']:.1%}, one {by['1D']:.1%}]; bound: {plan['bound']}"),
        ("sync gather", f"{plan['sync_gather_in_layer_mib']:.0f} MiB of weights inside a layer at most"),
        ("tokens/s", f"{plan['tokens_per_second']:,.0f}"),
    ]  # fmt: skip
    if "days" in plan:
        budget = f"{plan['token_budget']:.3g} tokens"
        lines.append(("budget", f"{budget}: {plan['chip_hours']:,.0f} chip-hours, {plan['days']:.1f} days"))
    lines.append(("compiled", f"in {plan['compile_seconds']:.0f} s; {len(plan['flags'])} flags"))
    text = [f"{name:11} {value}" for name, value in lines]
    text += [f"{'':11} {'count':>6} {'MiB':>8} {'group':>6} {'ms':>9} {'exposed':>9}  collective"]
    for row in plan["collectives"][:8]:
        how = ("async" if row["async"] else "sync") + (" " + row["emitter"].split("/")[0] if row["emitter"] else "")
        text.append(
            f"{'':11} {row['count']:6} {row['bytes'] / MIB:8.1f} {row['group']:6} {row['seconds'] * 1e3:9.1f} "
            f"{row['exposed_seconds'] * 1e3:9.1f}  {row['kind']} {row['network']} {how}"
        )
    return "\n".join([*text, *(f"note: {note}" for note in plan["notes"])])
