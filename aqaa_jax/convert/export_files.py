"""What an export consists of: for each part, its published files, the large ones as streams, the small ones as bytes.

    config.json, model-*.safetensors, tokenizer.*, modeling_step1.py ...   the decoder, for transformers and vLLM
    Step-Audio-Tokenizer/         linguistic_tokenizer.npy, the Paraformer folder, speech_tokenizer_v1.onnx
    CosyVoice-300M-25Hz/          flow.pt, hift.pt, cosyvoice.yaml, campplus.onnx if it was imported

Names, layouts and dtypes are the published ones. Differences: the Paraformer holds its encoder only; ``campplus.onnx``
(speaker vectors) is the imported file, if any; the ONNX graph has the published inputs, and steps of our own.
"""

from __future__ import annotations

import importlib.resources
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import yaml

from aqaa_jax.checkpoint.folder import SPEAKER_MODEL, TEXT_MODEL
from aqaa_jax.checkpoint.shards import Blocks, Plan
from aqaa_jax.config import SystemConfig
from aqaa_jax.convert import flow, hift, paraformer, s3_graph, step1, torch_file
from aqaa_jax.convert.part_source import PartSource
from aqaa_jax.convert.published_part import Published, file_weights, published_part
from aqaa_jax.tokens import published as text_files
from aqaa_jax.tokens.vocab import BOS, EOT, PAD, Vocab

TOKENIZER, VOCODER = "Step-Audio-Tokenizer", "CosyVoice-300M-25Hz"
PARAFORMER = f"{TOKENIZER}/dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"
WEIGHTS = {  # the decoder's are shards
    "linguistic": f"{PARAFORMER}/model.pt",
    "semantic": f"{TOKENIZER}/speech_tokenizer_v1.onnx",
    "decoder": "model.safetensors",
    "flow": f"{VOCODER}/flow.pt",
    "hift": f"{VOCODER}/hift.pt",
}
_TWIN = ("configuration_step1.py", "modeling_step1.py")
_CLASSES = {  # the published classes that cosyvoice.yaml builds
    "flow": "cosyvoice.flow.flow.MaskedDiffWithXvec",
    "flow.encoder": "cosyvoice.transformer.encoder.ConformerEncoder",
    "flow.length_regulator": "cosyvoice.flow.length_regulator.InterpolateRegulator",
    "flow.decoder": "cosyvoice.flow.flow_matching.ConditionalCFM",
    "flow.decoder.estimator": "cosyvoice.flow.decoder.ConditionalDecoder",
    "hift": "cosyvoice.hifigan.generator.HiFTGenerator",
    "hift.f0_predictor": "cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor",
}
_CARD = """---
library_name: transformers
license: apache-2.0
---

# {name}

Exported by aqaa_jax {version}: a Step-Audio model for PyTorch, trained in JAX.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".")
```
{vllm}{notes}"""
_VLLM = """
In vLLM, whose Triton attention alone has square-root ALiBi: `vllm serve . --trust-remote-code --attention-backend
TRITON_ATTN`.
"""

Content = Callable[[], bytes]


class Format(Protocol):
    """How the weights of a part become one file, and are read again to be verified (``torch_file``)."""

    def write(self, path: Path, plan: Plan, read: Blocks, progress: Callable[[int], None], /) -> None: ...

    def read_raw(self, path: Path, plan: Plan, /) -> Iterator[tuple[str, Iterable[bytes]]]: ...


class Target(NamedTuple):
    """One part's files, relative to the export: ``weights`` under ``path``, small files written before and after it.

    Those ``after`` are what makes a reader take the part for whole. The decoder has no ``format``: it is in shards.
    """

    part: str
    path: str
    weights: Published
    format: Format | None
    before: Mapping[str, Content]
    after: Mapping[str, Content]


def target(part: str, config: SystemConfig, directory: Path, source: PartSource, dtype: str) -> Target:
    """The files of ``part`` of the model folder ``directory``; the decoder's weights as ``dtype``, all else float32.

    Raises ``ValueError`` for a model that the published layout cannot express.
    """
    weights = published_part(part, config, source, dtype if part == "decoder" else "float32")
    before, after = _small_files(part, config, directory, source, dtype)
    form: Format | None = None if part == "decoder" else torch_file
    if part == "semantic":
        form = s3_graph.graph(config.tokenizer.semantic)
        form.head(weights.plan)
    return Target(part, WEIGHTS[part], weights, form, before, after)


def notes(config: SystemConfig, parts: tuple[str, ...]) -> Iterator[str]:
    """What PyTorch users of this export must know: where the published programs would act differently."""
    if "decoder" in parts and step1.own_slopes(config.decoder):
        yield (
            "the decoder has ALiBi slopes of its own (alibi_slopes in config.json): modeling_step1.py reads them, "
            "vLLM's built-in Step1 does not"
        )
    if "decoder" in parts and config.decoder.experts is not None:
        yield "the decoder has experts (docs/experts.md): modeling_step1.py runs them, vLLM's built-in Step1 does not"
    if "decoder" in parts and config.sampling.repetition_window:
        yield "the repetition rule of the sampling settings has no field in generation_config.json"
    if "flow" in parts and (own := flow.not_published(config.vocoder.flow)):
        values = ", ".join(f"{k} {v}" for k, v in own.items())
        yield f"the flow needs {values}, for which the published flow has no field (aqaa_flow in cosyvoice.yaml)"
    if "linguistic" in parts:
        yield "the Paraformer's model.pt holds the encoder only, which is what tokenizing needs"


def _small_files(
    part: str, config: SystemConfig, directory: Path, source: PartSource, dtype: str
) -> tuple[dict[str, Content], dict[str, Content]]:
    if part == "decoder":
        published = step1.published_config(config.decoder, dtype)
        published["auto_map"] = {
            "AutoConfig": "configuration_step1.Step1Config",
            "AutoModel": "modeling_step1.Step1Model",
            "AutoModelForCausalLM": "modeling_step1.Step1ForCausalLM",
        }
        return _beside_the_decoder(config, directory), {"config.json": lambda: _json(published)}
    if part == "linguistic":
        cmvn_and_codebook = lambda: file_weights(config, source)  # noqa: E731
        before = {
            f"{TOKENIZER}/{paraformer.CODEBOOK}": lambda: _npy(cmvn_and_codebook()[2]),
            f"{PARAFORMER}/{paraformer.CMVN}": lambda: paraformer.cmvn_text(*cmvn_and_codebook()[:2]).encode(),
        }
        values = paraformer.config_to_upstream(config.tokenizer.linguistic)
        return before, {f"{PARAFORMER}/config.yaml": lambda: yaml.safe_dump(values, sort_keys=False).encode()}
    if part == "semantic":
        return {}, {}
    speaker = directory / SPEAKER_MODEL
    before = {f"{VOCODER}/{SPEAKER_MODEL}": speaker.read_bytes} if part == "flow" and speaker.is_file() else {}
    return before, {f"{VOCODER}/cosyvoice.yaml": lambda: cosyvoice_yaml(config)}


def _beside_the_decoder(config: SystemConfig, directory: Path) -> dict[str, Content]:
    model = (directory / TEXT_MODEL).read_bytes() if (directory / TEXT_MODEL).is_file() else None
    if model is None:
        raise FileNotFoundError(f"{directory / TEXT_MODEL}: missing")
    whole = text_files.whole_model(model, Vocab(config.vocab))
    twin = importlib.resources.files("aqaa_jax") / "convert" / "torch_twin"
    return {
        **{name: (lambda name=name: (twin / name).read_bytes()) for name in _TWIN},
        TEXT_MODEL: lambda: whole,
        "tokenizer.json": lambda: _json(text_files.fast_tokenizer(whole)),
        "tokenizer_config.json": lambda: _json(text_files.tokenizer_config()),
        "generation_config.json": lambda: _json(_generation(config)),
    }


def _generation(config: SystemConfig) -> dict[str, Any]:
    sampling = config.sampling
    values: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOT, "pad_token_id": PAD}
    values |= {"max_new_tokens": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        values |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return values


class _Tagged(dict):
    """A mapping of cosyvoice.yaml that builds an object."""

    def __init__(self, values: Mapping[str, Any], name: str):
        super().__init__(values)
        self.tag = f"!new:{name}"


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Tagged, lambda dumper, value: dumper.represent_mapping(value.tag, dict(value)))


def cosyvoice_yaml(config: SystemConfig) -> bytes:
    """``cosyvoice.yaml``: the published classes and fields of flow and HiFT, for hyperpyyaml as for a plain reader."""
    values = {
        "flow": flow.config_to_upstream(config.vocoder.flow),
        "hift": hift.config_to_upstream(config.vocoder.hift),
    }
    decoder = values["flow"]["decoder"]
    decoder["cfm_params"] = _Tagged({"content": decoder["cfm_params"]}, "omegaconf.DictConfig")
    for path, name in sorted(_CLASSES.items(), reverse=True):  # inner ones first
        *outer, last = path.split(".")
        holder = values
        for key in outer:
            holder = holder[key]
        holder[last] = _Tagged(holder[last], name)
    own = flow.not_published(config.vocoder.flow)
    head = {"sample_rate": config.vocoder.hift.sample_rate, "spk_embed_dim": config.vocoder.flow.speaker_dim}
    whole = head | values | ({"aqaa_flow": own} if own else {})
    return yaml.dump(whole, Dumper=_Dumper, sort_keys=False).encode()


def card(config: SystemConfig, parts: tuple[str, ...], version: str) -> bytes:
    """The model card of an export."""
    found = "".join(f"\n- {note}" for note in notes(config, parts))
    built_in = "decoder" in parts and not step1.own_slopes(config.decoder) and config.decoder.experts is None
    values = {"vllm": _VLLM if built_in else "", "notes": found + "\n" if found else ""}
    return _CARD.format(name=config.name, version=version, **values).encode()


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
