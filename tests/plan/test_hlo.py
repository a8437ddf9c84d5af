"""Reading scheduled HLO: shapes, calls, trip counts, on short texts that are checked by hand."""

import pytest

from aqaa_jax.plan import hlo

LOOP = """HloModule jit_f, is_scheduled=true

%add (a.1: bf16[], b.1: bf16[]) -> bf16[] {
  %a.1 = bf16[]{:T(256)} parameter(0)
  %b.1 = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a.1, %b.1)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %step)
  %copy-start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} multiply(%copy-done, %x), metadata={op_name="jit(f)/while/body/mul(x)" stack_frame_id=2}
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%next, %y)
}

%condition (q: (s32[], bf16[8,128])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(LIMIT)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=DIRECTION
}

ENTRY %main (x.1: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(START)
  %first = s32[]{:T(128)} copy(%zero)
  %in = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%first, %x.1)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%in), condition=%condition, body=%body
  ROOT %got = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def loop(start="0", limit="6", step="1", direction="LT"):
    values = {"START": start, "LIMIT": limit, "STEP": step, "DIRECTION": direction}
    text = LOOP
    for name, value in values.items():
        text = text.replace(name, value)
    return hlo.parse(text)


def trips(module):
    main = module.computations[module.entry]
    return hlo.trip_count(module, main, main.ops["loop"])


def test_operations_in_order_with_shapes_and_operands():
    module = loop()
    assert module.entry == "main" and set(module.computations) == {"add", "body", "condition", "main"}
    body = module.computations["body"]
    assert list(body.ops) == ["p", "i", "x", "step", "next", "copy-start", "copy-done", "y", "out"]
    assert body.ops["p"].shapes == (hlo.Shape("s32", ()), hlo.Shape("bf16", (8, 128)))
    assert body.ops["copy-start"].shapes[0] == hlo.Shape("bf16", (8, 128), space=1)
    assert body.ops["y"].operands == ("copy-done", "x") and body.ops["y"].source == "jit(f)/while/body/mul(x)"
    assert body.root.name == "out" and [user.name for user in body.users["x"]] == ["copy-start", "y"]
    assert module.computations["main"].ops["loop"].called() == ["condition", "body"]


def test_bytes_of_shapes():
    assert hlo.Shape("bf16", (8, 128)).bytes == 2048
    assert [hlo.Shape(d, (4,)).bytes for d in ("pred", "s4", "f8e4m3fn", "f64", "token")] == [4, 2, 4, 32, 0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 6),
        ({"direction": "LE"}, 7),
        ({"step": "2"}, 3),
        ({"step": "4"}, 2),
        ({"start": "2"}, 4),
        ({"start": "9"}, 0),
        ({"direction": "GT"}, None),
        ({"step": "-1"}, None),
        ({"limit": "{...}"}, None),
    ],
)
def test_trip_counts(changes, expected):
    assert trips(loop(**changes)) == expected


def test_trip_count_from_the_compilers_note():
    noted = LOOP.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"88"},"flag_configs":["a}b"]}'
    )
    assert trips(hlo.parse(noted)) == 88


def test_trip_count_of_a_fused_counter():
    fused = LOOP.replace(
        "%next = s32[]{:T(128)} add(%i, %step)", "%next = s32[]{:T(128)} fusion(%i), kind=kLoop, calls=%plus"
    )
    fused += (
        "\n%plus (k: s32[]) -> s32[] {\n  %k = s32[] parameter(0)\n  %three = s32[] constant(3)\n"
        "  ROOT %sum.1 = s32[] add(%k, %three)\n}\n"
    )
    for name, value in {"START": "0", "LIMIT": "7", "STEP": "1", "DIRECTION": "LT"}.items():
        fused = fused.replace(name, value)
    assert trips(hlo.parse(fused)) == 3


def test_no_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty\n")
