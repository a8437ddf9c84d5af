"""Exported, imported again and run: still the outputs of the published classes.

What leaves here is what those classes had loaded when they made the reference data, bit for bit (``test_export``),
but for HiFT's ``weight_v``, the product itself in place of some multiple of it: there torch multiplies.
"""

import jax
import numpy as np
import pytest

from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import SystemConfig, VocabConfig
from aqaa_jax.convert import export
from aqaa_jax.convert.export_files import TOKENIZER, VOCODER, WEIGHTS
from aqaa_jax.convert.importer import Options, import_folder
from aqaa_jax.parts import abstract
from aqaa_jax.vocoder.flow import Flow, Prompt
from aqaa_jax.vocoder.hift import Hift

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")  # import reads .pt files with it
PLACES = {"linguistic": TOKENIZER, "semantic": TOKENIZER, "decoder": "", "flow": VOCODER, "hift": VOCODER}


@pytest.fixture(scope="module")
def exported(golden_folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "export"
    export.write(export.plan(golden_folder, dtype="float32"), directory, say=str)
    return directory


@pytest.fixture(scope="module")
def imported(exported, golden_config, tmp_path_factory):
    """``imported(part)``: the part after export and import, alone: no one vocab fits all golden parts."""

    def read(part):
        c, target = golden_config, tmp_path_factory.mktemp(part) / "model"
        vocab = c.vocab if part == "decoder" else VocabConfig(linguistic=256, semantic=512)
        base = SystemConfig(vocab=vocab, decoder=c.decoder if part == "decoder" else SystemConfig().decoder)
        import_folder(exported / PLACES[part], target, base, Options(parts=(part,)), say=str, report=str)
        return folder.read_part(target, part, abstract(c, part))

    return read


@pytest.mark.parametrize("part", folder.PARTS)
def test_every_weight_is_the_one_that_gave_the_parity(golden_folder, golden_config, imported, part):
    ours = named_weights(folder.read_part(golden_folder, part, abstract(golden_config, part)))
    back = named_weights(imported(part))
    assert set(back) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_vocoder_gives_the_published_waveform(golden, imported):
    g, last = golden("hift/token_to_wav.npz"), lambda array: np.moveaxis(array, 1, 2)
    tokens, front = np.concatenate([g["prompt_token"], g["token"]], axis=1).astype(np.int32), g["prompt_feat"].shape[1]
    prompt = Prompt(np.array([g["prompt_token"].shape[1]]), g["prompt_feat"], np.array([front]))
    lengths = np.array([tokens.shape[1]]), np.array([g["flow_noise"].shape[2]])
    mel = jax.jit(Flow.sample)(imported("flow"), tokens, *lengths, g["embedding"], last(g["flow_noise"]), prompt)
    mel = np.asarray(mel)[:, front:]
    np.testing.assert_allclose(mel, last(g["mel"]), atol=5e-4, rtol=0)
    wav = jax.jit(Hift.decode)(imported("hift"), mel, g["source"][:, 0])
    np.testing.assert_allclose(wav, g["waveform"], atol=2e-3, rtol=0)


def test_torch_multiplies_the_factors_of_hift_to_the_published_weights(exported, published_states):
    state, published = torch.load(exported / WEIGHTS["hift"], weights_only=True), published_states["hift"]
    pairs = [name.removesuffix("_g") for name in published if name.endswith("weight_g")]
    assert len(pairs) == 57 and set(state) == set(published)
    for name in published:
        if name.removesuffix("_v") not in pairs:  # the norm of the product is g, whatever v is
            np.testing.assert_allclose(state[name], published[name], rtol=2e-7, err_msg=name)
    for name in pairs:
        assert not np.array_equal(state[f"{name}_v"], published[f"{name}_v"])
        both = ({x: torch.as_tensor(s[f"{name}_{x}"]) for x in "vg"} for s in (state, published))
        ours, theirs = (torch._weight_norm(factors["v"], factors["g"], 0) for factors in both)
        assert (ours - theirs).abs().max() < 3e-7 * theirs.abs().max(), name  # some units in the last place
