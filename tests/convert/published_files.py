"""Published file sets of a tiny system (the shipped pocket model), written in the published formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.convert import flow, hift, paraformer, s3, step1


def numpy_weights(module):
    return {name: np.asarray(value) for name, value in named_weights(module).items()}


def step1_config(c, dtype="float32"):
    fields = {theirs: getattr(c, ours) for theirs, ours in step1._FIELDS.items()}
    return {"model_type": "step1", "torch_dtype": dtype, **fields}


def write_step1(directory, state, config, shards=3):
    """``state`` over some shards with an index, as Step-Audio-Chat has it."""
    directory.mkdir(parents=True, exist_ok=True)
    names, weight_map = list(state), {}
    for i, part in enumerate(np.array_split(np.arange(len(names)), shards), 1):
        file = f"model-{i:05}.safetensors"
        chosen = {names[j]: np.ascontiguousarray(state[names[j]]) for j in part}
        save_file(chosen, directory / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": sum(a.nbytes for a in state.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config))


def copy_golden(golden, name, directory, *files):
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(golden(f"{name}/{file}"), directory / file)


def write_system(directory: Path, system, text_model: Path):
    """The folders ``llm``, ``tokenizer`` and ``vocoder`` of a loaded system, weights as safetensors."""
    c = system.config
    write_step1(directory / "llm", step1.to_upstream(numpy_weights(system.decoder), c.decoder), step1_config(c.decoder))
    shutil.copy(text_model, directory / "llm" / "tokenizer.model")
    speech, nested = directory / "tokenizer", directory / "tokenizer" / "some" / "speech_paraformer"
    nested.mkdir(parents=True)
    linguistic = numpy_weights(system.tokenizer.linguistic)
    state = paraformer.to_upstream(linguistic, c.tokenizer.linguistic) | {"decoder.bias": np.ones(3, np.float32)}
    save_file(state, nested / "model.safetensors")
    cmvn = paraformer.cmvn_text(linguistic["encoder.cmvn_shift"], linguistic["encoder.cmvn_scale"])
    (nested / "am.mvn").write_text(cmvn)
    (nested / "config.yaml").write_text(yaml.safe_dump(paraformer_yaml(c.tokenizer.linguistic)))
    np.save(speech / "linguistic_tokenizer.npy", linguistic["codebook.table"])
    state = s3.to_upstream(numpy_weights(system.tokenizer.semantic), c.tokenizer.semantic)
    save_file(state, speech / "speech_tokenizer_v1.safetensors")
    vocoder = directory / "vocoder"
    vocoder.mkdir()
    save_contiguous(flow.to_upstream(numpy_weights(system.vocoder.flow), c.vocoder.flow), vocoder / "flow.safetensors")
    save_contiguous(hift.to_upstream(numpy_weights(system.vocoder.hift), c.vocoder.hift), vocoder / "hift.safetensors")
    (vocoder / "cosyvoice.yaml").write_text(cosyvoice_yaml(c.vocoder))


def save_contiguous(state, path):
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)


def paraformer_yaml(c):
    encoder = {
        "output_size": c.embed,
        "attention_heads": c.heads,
        "linear_units": c.mlp,
        "num_blocks": c.layers,
        "kernel_size": c.fsmn_kernel,
        "input_layer": "pe_online",
    }
    frontend = {"fs": c.sample_rate, "n_mels": c.num_mels, "lfr_m": c.lfr_stack, "lfr_n": c.lfr_hop}
    return {"encoder_conf": encoder, "frontend_conf": frontend}


def cosyvoice_yaml(c):
    """With the tags and references of the published file."""
    f, h, e, m = c.flow, c.hift, c.flow.encoder, c.flow.mel
    return f"""
__set_seed1: !apply:random.seed [1986]
sample_rate: {h.sample_rate}
spk_embed_dim: {f.speaker_dim}
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: {e.embed}
    output_size: {m.num_mels}
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: {f.vocab}
    input_frame_rate: {f.frame_rate!r}
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        output_size: {e.embed}
        attention_heads: {e.heads}
        linear_units: {e.mlp}
        num_blocks: {e.layers}
        input_size: {e.embed}
        normalize_before: True
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: {m.num_mels}
        sampling_ratios: {[1] * f.regulator_layers}
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: {3 * m.num_mels}
        spk_emb_dim: {m.num_mels}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: {f.sigma_min!r}
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: {f.condition_dropout}
                inference_cfg_rate: {f.guidance}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: {4 * m.num_mels}
            out_channels: {m.num_mels}
            channels: {list(f.estimator.channels)}
            attention_head_dim: {f.estimator.head_dim}
            n_blocks: {f.estimator.blocks}
            num_mid_blocks: {f.estimator.mid_blocks}
            num_heads: {f.estimator.heads}
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: {h.num_mels}
    base_channels: {h.channels}
    nb_harmonics: {h.harmonics}
    sampling_rate: !ref <sample_rate>
    nsf_alpha: {h.sine_amplitude}
    nsf_sigma: {h.noise_sigma}
    nsf_voiced_threshold: {h.voiced_threshold}
    upsample_rates: {list(h.upsample_rates)}
    upsample_kernel_sizes: {list(h.upsample_kernels)}
    istft_params:
        n_fft: {h.istft_n_fft}
        hop_len: {h.istft_hop}
    resblock_kernel_sizes: {list(h.resblock_kernels)}
    resblock_dilation_sizes: {[list(d) for d in h.resblock_dilations]}
    source_resblock_kernel_sizes: {list(h.source_kernels)}
    source_resblock_dilation_sizes: {[list(d) for d in h.source_dilations]}
    lrelu_slope: {h.leaky_slope}
    audio_limit: {h.audio_limit}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: {h.num_mels}
        cond_channels: {h.f0_channels}
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: {m.n_fft}
    num_mels: {m.num_mels}
    sampling_rate: !ref <sample_rate>
    hop_size: {m.hop}
    win_size: {m.win}
    fmin: {int(m.fmin)}
    fmax: {int(m.fmax)}
    center: False
parquet_opener: !name:cosyvoice.dataset.processor.parquet_opener
"""
