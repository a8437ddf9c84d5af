"""vLLM's own Step1 on an exported decoder, on a CPU: the same logits and greedy tokens as ``modeling_step1.py``.

    aqaa export MODEL out/step1 --parts decoder --dtype float32
    tar xf vllm-0.33.0.tar.gz                  # the source archive, from https://pypi.org/project/vllm/0.33.0/#files
    python -m venv v && v/bin/pip install -r benchmarks/vllm.txt
    PYTHONPATH=vllm-0.33.0 v/bin/python benchmarks/vllm_step1.py out/step1

vLLM runs square-root ALiBi only in its Triton attention, and that only on GPUs ("use_alibi_sqrt is not supported by
backend CPU_ATTN"). Here the kernel runs in Triton's interpreter. What is vLLM's: reading config and weights, the model,
writing the paged cache, the kernel. What is not: its scheduler and engine, which need the compiled part, and four
answers about the machine (``pretend``). Prints the largest gap of logits; exits 1 if it, or a token, is off.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import types
from typing import Any

import torch

ROWS, PROMPT, NEW, BLOCK = 6, 20, 24, 16  # prompts, ids of each, greedy tokens, places of a block of the cache
GAP = 1e-4


def pretend() -> None:
    """Make vLLM's platform a CPU that has Triton. Before vLLM is imported."""
    os.environ |= {"TRITON_INTERPRET": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    import triton.backends

    driver = types.SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=driver, compiler=None)
    known = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.33.0+cpu" if name == "vllm" else known(name)
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # asked for the number of warps alone
    torch.accelerator.empty_cache = lambda: None
    from vllm.platforms import current_platform

    path = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"
    type(current_platform).get_attn_backend_cls = classmethod(lambda *_, **__: path)


class Served:
    """The model as vLLM loads it, with a paged cache of ``ROWS`` rows."""

    def __init__(self, folder: str):
        from vllm.config import set_current_vllm_config
        from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader import get_model

        length = -(-(PROMPT + NEW) // BLOCK) * BLOCK
        options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": length}
        options |= {"trust_remote_code": True, "skip_tokenizer_init": True, "block_size": BLOCK}
        self.config = EngineArgs(model=folder, **options).create_engine_config()
        with set_current_vllm_config(self.config):
            init_distributed_environment(1, 0, "env://", 0, backend="gloo")
            ensure_model_parallel_initialized(1, 1)
            self.model = get_model(vllm_config=self.config)
        self.layers = self.config.compilation_config.static_forward_context
        self.blocks = length // BLOCK
        self.table = torch.arange(1, ROWS * self.blocks + 1, dtype=torch.int32).view(ROWS, self.blocks)
        for layer in self.layers.values():
            shape = (ROWS * self.blocks + 1, layer.num_kv_heads, BLOCK, 2 * layer.head_size)
            layer.kv_cache = torch.zeros(shape)

    def __call__(self, ids: torch.Tensor, done: int) -> torch.Tensor:
        """Logits [ROWS, new, vocab] of ``ids[:, done:]``, whose predecessors are in the cache."""
        from vllm.config import set_current_vllm_config
        from vllm.forward_context import set_forward_context

        new = ids.shape[1] - done
        places = torch.arange(done, done + new)
        slots = (self.table[:, places // BLOCK].long() * BLOCK + places % BLOCK).flatten()
        metadata = dict.fromkeys(self.layers, self._metadata(done, new, slots))
        with torch.no_grad(), set_current_vllm_config(self.config):
            context = set_forward_context(
                metadata, self.config, num_tokens=ROWS * new, slot_mapping=dict.fromkeys(self.layers, slots)
            )
            with context:
                hidden = self.model(ids[:, done:].flatten(), places.repeat(ROWS), None)
                return self.model.compute_logits(hidden).view(ROWS, new, -1)

    def _metadata(self, done: int, new: int, slots: torch.Tensor) -> Any:
        from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata

        layer, parts = next(iter(self.layers.values())), 16
        heads, width = layer.num_heads, max(layer.head_size, 16)
        return TritonAttentionMetadata(
            num_actual_tokens=ROWS * new,
            max_query_len=new,
            query_start_loc=torch.arange(0, ROWS * new + 1, new, dtype=torch.int32),
            max_seq_len=done + new,
            seq_lens=torch.full((ROWS,), done + new, dtype=torch.int32),
            block_table=self.table,
            slot_mapping=slots,
            seq_threshold_3D=0,  # never the kernel that splits one row over programs
            num_par_softmax_segments=parts,
            softmax_segm_output=torch.empty(1, heads, parts, width),
            softmax_segm_max=torch.empty(1, heads, parts),
            softmax_segm_expsum=torch.empty(1, heads, parts),
            causal=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="an exported decoder in float32, with the published ALiBi slopes")
    folder = parser.parse_args().folder
    pretend()
    from transformers import AutoModelForCausalLM

    twin = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    if twin.config.alibi_slopes is not None:
        sys.exit(f"{folder}: has ALiBi slopes of its own, which vLLM does not read")
    ids = torch.randint(3, twin.config.vocab_size, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        expected = twin.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        logits = twin(expected[:, :-1]).logits
    served, found, done, gaps = Served(folder), ids, 0, []
    while found.shape[1] < PROMPT + NEW:
        step = served(found, done)
        gaps.append((step - logits[:, done : found.shape[1]]).abs().max().item())
        done, found = found.shape[1], torch.cat([found, step[:, -1:].argmax(-1)], dim=1)
    same = torch.equal(found, expected)
    kinds, largest = len(expected[:, PROMPT:].unique()), logits.abs().max().item()
    verdict = "equal" if same else "DIFFER"
    print(f"{ROWS} prompts of {PROMPT} ids, {NEW} greedy tokens of each ({kinds} different): {verdict}")
    print(f"largest gap of logits {max(gaps):.1e} (up to {largest:.1f}), in {type(served.model).__module__}")
    return 0 if same and max(gaps) < GAP else 1


if __name__ == "__main__":
    sys.exit(main())
