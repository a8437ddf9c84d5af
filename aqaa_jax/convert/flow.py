"""The published flow (``flow.pt``, the ``flow`` section of cosyvoice.yaml) to ours and back, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aqaa_jax.config import EstimatorConfig, FlowConfig, FlowEncoderConfig, MelConfig
from aqaa_jax.convert.layout import Entry, read, write


def config_from_upstream(published: Mapping[str, Any], **changes: Any) -> FlowConfig:
    """``FlowConfig`` from the published fields; ``changes`` replace fields the file does not have (``steps``).

    Raises ``ValueError`` for a network this package does not implement, naming the field.
    """
    encoder, decoder = published["encoder"], published["decoder"]
    cfm, net, mel = decoder["cfm_params"], decoder["estimator"], published.get("mel_feat_conf", {})
    mels, embed = published["output_size"], encoder["output_size"]
    widths = {"input_size": embed, "output_size": mel.get("num_mels", mels)}
    expected = [
        *((published, field, value) for field, value in widths.items()),
        *((encoder, field, value) for field, value in _ENCODER.items()),
        (encoder, "input_size", embed),
        (published["length_regulator"], "channels", mels),
        (decoder, "spk_emb_dim", mels),
        (cfm, "solver", "euler"),
        (cfm, "t_scheduler", "cosine"),
        (net, "in_channels", 4 * mels),
        (net, "out_channels", mels),
        (net, "act_fn", "gelu"),
    ]
    for section, field, value in expected:
        if section.get(field, value) != value:
            raise ValueError(f"published flow field {field!r} is {section[field]!r}; expected {value!r}")
    values = {
        "vocab": published["vocab_size"],
        "frame_rate": float(published["input_frame_rate"]),
        "mel": _mel(mel, mels),
        "speaker_dim": published["spk_embed_dim"],
        "encoder": FlowEncoderConfig(embed, encoder["attention_heads"], encoder["linear_units"], encoder["num_blocks"]),
        "regulator_layers": len(published["length_regulator"]["sampling_ratios"]),
        "estimator": EstimatorConfig(
            channels=tuple(net["channels"]),
            heads=net["num_heads"],
            head_dim=net["attention_head_dim"],
            blocks=net["n_blocks"],
            mid_blocks=net["num_mid_blocks"],
        ),
        "sigma_min": float(cfm["sigma_min"]),
        "guidance": float(cfm["inference_cfg_rate"]),
        "condition_dropout": float(cfm["training_cfg_rate"]),
    }
    return FlowConfig(**{**values, **changes})


def config_to_upstream(config: FlowConfig) -> dict[str, Any]:
    """The published fields of a ``FlowConfig``, which ``config_from_upstream`` reads; see ``not_published``.

    Raises ``ValueError`` for a feed-forward width that the published estimator does not have.
    """
    mel, encoder, net = config.mel, config.encoder, config.estimator
    if net.mlp_ratio != EstimatorConfig().mlp_ratio:
        raise ValueError(
            f"flow estimator has mlp_ratio {net.mlp_ratio}; the published one has {EstimatorConfig().mlp_ratio}"
        )
    return {
        "input_size": encoder.embed,
        "output_size": mel.num_mels,
        "spk_embed_dim": config.speaker_dim,
        "output_type": "mel",
        "vocab_size": config.vocab,
        "input_frame_rate": config.frame_rate,
        "only_mask_loss": True,
        "encoder": {
            "input_size": encoder.embed,
            "output_size": encoder.embed,
            "attention_heads": encoder.heads,
            "linear_units": encoder.mlp,
            "num_blocks": encoder.layers,
            **_ENCODER,
        },
        "length_regulator": {"channels": mel.num_mels, "sampling_ratios": [1] * config.regulator_layers},
        "decoder": {
            "in_channels": 3 * mel.num_mels,
            "n_spks": 1,
            "spk_emb_dim": mel.num_mels,
            "cfm_params": {
                "sigma_min": config.sigma_min,
                "solver": "euler",
                "t_scheduler": "cosine",
                "training_cfg_rate": config.condition_dropout,
                "inference_cfg_rate": config.guidance,
            },
            "estimator": {
                "in_channels": 4 * mel.num_mels,
                "out_channels": mel.num_mels,
                "channels": list(net.channels),
                "dropout": 0.0,
                "attention_head_dim": net.head_dim,
                "n_blocks": net.blocks,
                "num_mid_blocks": net.mid_blocks,
                "num_heads": net.heads,
                "act_fn": "gelu",
            },
        },
        "mel_feat_conf": {
            "n_fft": mel.n_fft,
            "num_mels": mel.num_mels,
            "sampling_rate": mel.sample_rate,
            "hop_size": mel.hop,
            "win_size": mel.win,
            "fmin": mel.fmin,
            "fmax": mel.fmax,
        },
    }


def not_published(config: FlowConfig) -> dict[str, float]:
    """Values that change what the flow says and that the published code has no field for, where they are not its own.

    The published module starts from unit noise and works on the log-mel itself.
    """
    own, default = {}, FlowConfig()
    for name in ("temperature", "mel_mean", "mel_std", "steps"):
        if getattr(config, name) != getattr(default, name):
            own[name] = getattr(config, name)
    return own


_ENCODER = {
    "normalize_before": True,
    "input_layer": "linear",
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
    "use_cnn_module": False,
    "macaron_style": False,
}


def _mel(published: Mapping[str, Any], mels: int) -> MelConfig:
    default = MelConfig(num_mels=mels)
    return MelConfig(
        sample_rate=published.get("sampling_rate", default.sample_rate),
        n_fft=published.get("n_fft", default.n_fft),
        hop=published.get("hop_size", default.hop),
        win=published.get("win_size", default.win),
        num_mels=mels,
        fmin=float(published.get("fmin", default.fmin)),
        fmax=float(published.get("fmax", default.fmax)),
    )


def from_upstream(state: Mapping[str, np.ndarray], config: FlowConfig) -> dict[str, np.ndarray]:
    """Our weights from the published state dict; every tensor must be used."""
    return read(entries(config), state, source="flow")


def to_upstream(weights: Mapping[str, np.ndarray], config: FlowConfig) -> dict[str, np.ndarray]:
    """The published state dict of our weights: the exact inverse of ``from_upstream``."""
    return write(entries(config), weights, source="flow")


def entries(config: FlowConfig) -> Iterator[Entry]:
    """The table between published and our names."""
    yield Entry("embedding.table", "input_embedding.weight")
    yield from _layer("speaker", "spk_embed_affine_layer", "linear")
    yield from _layer("encoder.embed", "encoder.embed.out.0", "linear")
    yield from _norm("encoder.embed_norm", "encoder.embed.out.1")
    layers = [f"encoder.encoders.{i}." for i in range(config.encoder.layers)]
    yield from _stacked("encoder.blocks.", layers, _encoder_block())
    yield from _norm("encoder.norm", "encoder.after_norm")
    yield from _layer("project", "encoder_proj", "linear")
    for i in range(config.regulator_layers):  # convolution, norm, activation
        yield from _layer(f"regulator.convs.{i}", f"length_regulator.model.{3 * i}", "conv")
        yield from _norm(f"regulator.norms.{i}", f"length_regulator.model.{3 * i + 1}")
    yield from _layer("regulator.out", f"length_regulator.model.{3 * config.regulator_layers}", "conv")
    yield from _estimator(config.estimator)


def _encoder_block() -> Iterator[Entry]:
    yield from _norm("attention_norm", "norm_mha")
    for ours, published in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        yield from _layer(f"attention.{ours}", f"self_attn.linear_{published}", "linear")
    yield Entry("attention.position.kernel", "self_attn.linear_pos.weight", "linear")
    yield Entry("attention.content_bias", "self_attn.pos_bias_u")
    yield Entry("attention.position_bias", "self_attn.pos_bias_v")
    yield from _norm("mlp_norm", "norm_ff")
    yield from _layer("mlp_in", "feed_forward.w_1", "linear")
    yield from _layer("mlp_out", "feed_forward.w_2", "linear")


def _estimator(config: EstimatorConfig) -> Iterator[Entry]:
    ours, published, last = "estimator.", "decoder.estimator.", len(config.channels) - 1
    yield from _layer(f"{ours}time_in", f"{published}time_mlp.linear_1", "linear")
    yield from _layer(f"{ours}time_out", f"{published}time_mlp.linear_2", "linear")
    for side, kind in (("down", "conv"), ("up", "conv_transpose")):
        for i in range(last + 1):
            yield from _stacked(f"{ours}{side}.{i}.", f"{published}{side}_blocks.{i}.", _stage(config.blocks))
            # a plain convolution at the last stage, else a resampling module that holds one
            resampler, layout = (".2", "conv") if i == last else (".2.conv", kind)
            yield from _layer(f"{ours}{side}_convs.{i}", f"{published}{side}_blocks.{i}{resampler}", layout)
    mids = [f"{published}mid_blocks.{i}." for i in range(config.mid_blocks)]
    yield from _stacked(f"{ours}mid.", mids, _stage(config.blocks))
    yield from _layer(f"{ours}final.conv", f"{published}final_block.block.0", "conv")
    yield from _norm(f"{ours}final.norm", f"{published}final_block.block.1")
    yield from _layer(f"{ours}out", f"{published}final_proj", "conv")


def _stage(blocks: int) -> Iterator[Entry]:
    for block in ("block1", "block2"):
        yield from _layer(f"residual.{block}.conv", f"0.{block}.block.0", "conv")
        yield from _norm(f"residual.{block}.norm", f"0.{block}.block.1")
    yield from _layer("residual.time", "0.mlp.1", "linear")
    yield from _layer("residual.skip", "0.res_conv", "conv")
    for i in range(blocks):
        ours, published = f"transformer.{i}.", f"1.{i}."
        yield from _norm(f"{ours}attention_norm", f"{published}norm1")
        for name in ("query", "key", "value"):
            yield Entry(f"{ours}{name}.kernel", f"{published}attn1.to_{name[0]}.weight", "linear")
        yield from _layer(f"{ours}out", f"{published}attn1.to_out.0", "linear")
        yield from _norm(f"{ours}mlp_norm", f"{published}norm3")
        yield from _layer(f"{ours}mlp_in", f"{published}ff.net.0.proj", "linear")
        yield from _layer(f"{ours}mlp_out", f"{published}ff.net.2", "linear")


def _layer(ours: str, published: str, kind: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.kernel", f"{published}.weight", kind)
    yield Entry(f"{ours}.bias", f"{published}.bias")


def _norm(ours: str, published: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.scale", f"{published}.weight")
    yield Entry(f"{ours}.bias", f"{published}.bias")


def _stacked(ours: str, published: str | list[str], entries: Iterator[Entry]) -> Iterator[Entry]:
    """``entries`` with a prefix on both sides; a list of published prefixes makes a stack."""
    for entry in entries:
        assert isinstance(entry.published, str)
        if isinstance(published, str):
            yield Entry(ours + entry.ours, published + entry.published, entry.kind)
        else:
            yield Entry(ours + entry.ours, tuple(prefix + entry.published for prefix in published), entry.kind)
