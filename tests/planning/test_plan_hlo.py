"""Products and exchanges of compiled programs against figures worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax.parallel import hlo
from ringmoe_jax.planning import ahead

# A loop of five rounds, as the TPU compiler writes it: no note of the trip count, a constant in the condition.
LOOP = """HloModule test, is_scheduled=true

%fused.1 (a: bf16[8,16], b: bf16[16,32]) -> bf16[8,32] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot.1 = bf16[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (p: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[16,32]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %w = bf16[16,32]{1,0} get-tuple-element(%p), index=2
  %f = bf16[8,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused.1
  %sent = bf16[8,32]{1,0} all-to-all(%f), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %t = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%p, %x, %w)
}

%condition (q: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (s: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %s = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    cost = hlo.analyse(LOOP)
    assert cost.flops == 5 * 2 * 8 * 16 * 32
    assert cost.unknown_loops == 0
    assert cost.counts() == {"all-to-all": (1, 5)}
    (exchange,) = cost.collectives
    assert exchange.shapes == ("bf16[8,32]",)
    assert exchange.members == (0, 2, 4, 6)
    assert cost.sent() == {"all-to-all": 5 * 8 * 32 * 2 * 3 / 4}


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    unknown = LOOP.replace("%limit = s32[]{:T(128)} constant(5)", "%limit = s32[]{:T(128)} parameter(1)")
    cost = hlo.analyse(unknown)
    assert cost.unknown_loops == 1
    assert cost.flops == 2 * 8 * 16 * 32


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        # Four devices each hold 64 elements of 4 bytes.
        ("f32[256]{0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}", "all-gather", 3 * 256),
        ("f32[64]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add", "all-reduce", 2 * 192),
        ("f32[16]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add", "reduce-scatter", 192),
        ("(f32[64]{0}, f32[256]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}", "all-gather", 3 * 256),
        ("f32[64]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 256),
        ("f32[64]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}", "all-reduce", 2 * 192),
        ("f32[64]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", "all-reduce", 2 * 192),
    ],
)
def test_bytes_that_a_device_sends(line, kind, sent):
    text = f"ENTRY %main (x: f32[64]) -> f32[64] {{\n  %x = f32[64]{{0}} parameter(0)\n  %y = {line}\n}}\n"
    assert hlo.analyse(text).sent() == {kind: sent}


@pytest.mark.parametrize(("rows", "into"), [(64, 256), (256, 64)])
def test_a_ragged_exchange_sends_no_more_than_its_smaller_buffer(rows, into):
    """There and back: what an even load sends, not the room for the worst one, nor the tables of offsets."""
    lines = [
        f"%x = f32[{rows},8]{{1,0}} parameter(0)",
        f"%room = f32[{into},8]{{1,0}} broadcast(%zero), dimensions={{}}",
        "%at = s32[4]{0} parameter(1)",
        f"%y = f32[{into},8]{{1,0}} ragged-all-to-all(%x, %room, %at, %at, %at, %at), replica_groups={{{{0,1,2,3}}}}",
    ]
    text = "\n".join([f"ENTRY %main (x: f32[{rows},8]) -> f32[{into},8] {{", *(f"  {line}" for line in lines), "}"])
    (exchange,) = hlo.analyse(text).collectives
    assert (exchange.shapes, exchange.sent) == (("f32[64,8]",), 64 * 8 * 4 * 3 / 4)


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,4},{1,5}}", (0, 4)),
        ("[4,2]<=[8]", (0, 1)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("mesh['a'=2,'b'=2] {'a', 'b'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", (0, 3)),
        ("{}", ()),
    ],
)
def test_groups_of_devices(groups, members):
    assert hlo._members(f"channel_id=3, replica_groups={groups}, dimensions={{0}}") == members


def test_no_groups_are_all_devices_and_unknown_ones_an_error():
    text = "HloModule m, num_partitions=4\nENTRY %m (x: f32[64]) -> f32[64] {\n  %x = f32[64]{0} parameter(0)\n"
    sent = hlo.analyse(text + "  %y = f32[64]{0} all-reduce(%x), replica_groups={}, to_apply=%add\n}\n").sent()
    assert sent == {"all-reduce": 2 * 192}
    with pytest.raises(ValueError, match="cannot read the groups of devices"):
        hlo.analyse(text + "  %y = f32[64]{0} all-reduce(%x), replica_groups=<a,b>\n}\n")


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A plain product, [48, 64] times [64, 32].
        ("f32[48,32]{1,0} convolution(f32[48,64] %a, %b), dim_labels=bf_io->bf", 2 * 48 * 64 * 32),
        # A batch of four products as the TPU compiler writes it: all but one tap of the window meet padding.
        (
            "f32[4,48,32]{2,1,0} convolution(%c, %d), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, "
            "dim_labels=0bf_0io->0bf",
            4 * 2 * 48 * 64 * 32,
        ),
        # A gradient with respect to weights: the window covers the image.
        (
            "f32[1,1,7,5]{3,2,1,0} convolution(%e, %f), window={size=6x6}, dim_labels=01fb_01io->01bf",
            2 * 36 * 9 * 7 * 5,
        ),
    ],
)
def test_products_written_as_convolutions(line, flops):
    shapes = {"a": "48,64", "b": "64,32", "c": "4,48,64", "d": "4,64,32", "e": "6,6,9,7", "f": "6,6,9,5"}
    operands = [f"  %{name} = f32[{shape}]{{0}} parameter({i})" for i, (name, shape) in enumerate(shapes.items())]
    text = "\n".join(["ENTRY %main (a: f32[48,64]) -> f32[] {", *operands, f"  %y = {line}", "}"])
    assert hlo.analyse(text).flops == flops


def test_a_kernel_counts_what_it_declares():
    declared = 'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"640"}}'
    lines = [
        "ENTRY %main (x: f32[8]) -> f32[8] {",
        "  %x = f32[8]{0} parameter(0)",
        f"  %k = f32[8]{{0}} custom-call(%x), {declared}",
    ]
    text = "\n".join([*lines, "}"])
    assert hlo.analyse(text).flops == 640


def test_sizes_of_types():
    assert hlo.bytes_of("(f32[4,2]{1,0:T(8,128)}, pred[], token[])") == 33
    assert hlo.bytes_of("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}") == 30
    assert hlo.bytes_of("s4[10]{0}") == 5


def test_a_program_compiled_here():
    """A scan of products between devices that hold a part of the weights each: all by hand."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, weights = NamedSharding(mesh, P("x")), NamedSharding(mesh, P(None, None, "x"))

    def run(x, stack):
        def body(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(body, x, stack)[0]

    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    stack = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32, sharding=weights)
    text = jax.jit(run, out_shardings=rows).lower(x, stack).compile().as_text()
    cost = hlo.analyse(text)
    assert cost.unknown_loops == 0
    assert cost.flops == 7 * 2 * (64 // 8) * 32 * 32
    sent = cost.sent()["all-gather"]
    assert sent == 7 * 32 * 32 * 4 * 7 / 8  # in each round seven eighths of a matrix, wherever the gather stands
    assert ahead.count_flops(run, x, stack) == 7 * 2 * 64 * 32 * 32
