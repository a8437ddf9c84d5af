"""MaxText beside our plans (benchmarks/maxtext.py): rows in its words, its attention charged like ours."""

import importlib.util
import json
import sys

import pytest

from aqaa_jax.config import DecoderConfig
from aqaa_jax.plan import hlo, work

KERNEL = """HloModule step

ENTRY %main (q: bf16[8,2048,128], k: bf16[4,2048,128]) -> bf16[8,2048,128] {
  %q = bf16[8,2048,128]{2,1,0} parameter(0)
  %k = bf16[4,2048,128]{2,1,0} parameter(1)
  %splash_mha_dq_segmented_no_residuals.1 = (f32[512,128]{1,0}, bf16[8,2048,128]{2,1,0}) custom-call(%q, %k), \
custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,4,4]{2,1,0}, bf16[8,2048,128]{2,1,0}, \
bf16[4,2048,128]{2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash_mha_dq_segmented_no_residuals"}, backend_config={"custom_call_config":{"body":""}}
  ROOT %out = bf16[8,2048,128]{2,1,0} get-tuple-element(%splash_mha_dq_segmented_no_residuals.1), index=1
}
"""


@pytest.fixture
def maxtext(request):
    path = request.config.rootpath / "benchmarks" / "maxtext.py"
    spec = importlib.util.spec_from_file_location("maxtext_benchmark", path)
    module = sys.modules["maxtext_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["maxtext_benchmark"]


def test_splash_kernels_are_charged_as_ours(maxtext):
    (computation,) = hlo.parse(maxtext.charged(KERNEL)).computations.values()
    kernel = computation.ops["sqrt_alibi_d_queries_segmented_no_residuals.1"]
    assert work.kernel_flops(kernel) == 2 * 3 * (8 * 2048 * 2048 // 2) * 128
    assert computation.root.operands == (kernel.name,)
    with pytest.raises(ValueError, match="without a configuration"):
        maxtext.charged(KERNEL.replace("custom_call_config", "other"))


def test_a_row_is_the_model_of_our_plan(maxtext, request):
    rows = {name: row for name, row in maxtext.ROWS.items() if row.ours}
    assert len(rows) == 2
    for row in rows.values():
        plan = json.loads((request.config.rootpath / "docs" / "plans" / f"{row.ours}.json").read_text())
        assert row.model == DecoderConfig() and row.topology == plan["topology"]
        assert row.rows * plan["devices"] == plan["batch"] and row.length == plan["seq"]
        assert plan["mesh"] == f"mesh {row.mesh}"
        said = maxtext.options(row, plan["devices"])
        assert {"base_emb_dim=12288", "base_num_decoder_layers=88", "ici_fsdp_parallelism=256"} <= set(said)


def test_published_comparisons_are_what_their_files_say(maxtext):
    for path in maxtext.OUT.glob("*.json"):
        made = json.loads(path.read_text())
        row = maxtext.ROWS[path.stem]
        assert made["options"] == maxtext.options(row, made["devices"]), path
        if row.ours:
            assert not made["notes"]
            assert made["ours_over_this_by_axes"]["emit"] == pytest.approx(made["ours_mfu"] / made["predicted_mfu"])
