"""A model folder made of the golden components, each with its published weights."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.files import save_file
from aqaa_jax.checkpoint.folder import CONFIG, TEXT_MODEL
from aqaa_jax.config import SystemConfig, TokenizerConfig, VocabConfig, VocoderConfig, to_dict
from aqaa_jax.convert import flow, hift, paraformer, s3, step1
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import Vocab

VOCAB = VocabConfig(size=384, audio_start=350, linguistic=10, semantic=24)  # of the golden decoder's 384 ids
MODULES = {"linguistic": paraformer, "semantic": s3, "decoder": step1, "flow": flow, "hift": hift}


@pytest.fixture(scope="session")
def mapping():
    """``mapping(config, part)``: the module that maps the part's names, and its configuration."""
    return lambda config, part: (MODULES[part], _part_config(config, part))


def _part_config(config, part):
    return {
        "linguistic": config.tokenizer.linguistic,
        "semantic": config.tokenizer.semantic,
        "decoder": config.decoder,
        "flow": config.vocoder.flow,
        "hift": config.vocoder.hift,
    }[part]


@pytest.fixture(scope="session")
def published_states(golden):
    """Part -> published state dict, as the golden folders hold it; of the Paraformer, what tokenizing needs."""
    states = {
        "linguistic": load_file(golden("paraformer_linguistic/model.safetensors")),
        "semantic": load_file(golden("s3_semantic/model.safetensors")),
        "decoder": load_file(golden("step1/model.safetensors")),
        "flow": load_file(golden("flow_vocoder/flow.safetensors")),
        "hift": load_file(golden("hift/hift.safetensors")),
    }
    states["linguistic"] = {k: v for k, v in states["linguistic"].items() if k.startswith("encoder.")}
    return states


@pytest.fixture(scope="session")
def golden_config(golden):
    values = {
        part: json.loads(golden(f"{folder}/config.json").read_text())
        for part, folder in (("decoder", "step1"), ("semantic", "s3_semantic"), ("hift", "hift"))
    }
    values["flow"] = json.loads(golden("flow_vocoder/config.json").read_text())
    values["linguistic"] = yaml.safe_load(golden("paraformer_linguistic/config.yaml").read_text())
    codes = len(np.load(golden("paraformer_linguistic/linguistic_tokenizer.npy")))
    return dataclasses.replace(
        SystemConfig(name="golden", vocab=VOCAB),
        decoder=step1.decoder_config(values["decoder"]),
        tokenizer=TokenizerConfig(
            linguistic=paraformer.config_from_upstream(values["linguistic"], codes=codes),
            semantic=s3.config_from_upstream(values["semantic"]),
        ),
        vocoder=VocoderConfig(
            flow=flow.config_from_upstream(values["flow"]), hift=hift.config_from_upstream(values["hift"])
        ),
    )


@pytest.fixture(scope="session")
def golden_folder(golden, golden_config, published_states, tmp_path_factory):
    """The model folder; read it only."""
    directory = tmp_path_factory.mktemp("golden_folder")
    for part, state in published_states.items():
        extra = {}
        if part == "linguistic":
            folder = golden("paraformer_linguistic/am.mvn").parent
            extra = {
                "cmvn": paraformer.read_cmvn(folder / paraformer.CMVN),
                "codebook": np.load(folder / paraformer.CODEBOOK),
            }
        weights = MODULES[part].from_upstream(state, _part_config(golden_config, part), **extra)
        save_file(directory / f"{part}.safetensors", {k: np.ascontiguousarray(v) for k, v in weights.items()})
    train_pocket(["what is two plus three", "three is more than two"], directory / TEXT_MODEL, Vocab(VOCAB), size=345)
    (directory / CONFIG).write_text(json.dumps({"system": to_dict(golden_config), "provenance": {}}))
    return directory
