"""The exported decoder in the real transformers: logits, hidden states, greedy tokens, gradients, padding, ids."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from aqaa_jax.convert import export, step1
from aqaa_jax.convert.export_files import PARAFORMER, VOCODER
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.inference.generate import generate
from aqaa_jax.inference.system import shipped_folder
from aqaa_jax.nn.alibi import alibi_slopes
from aqaa_jax.tokens import prompt
from aqaa_jax.tokens.text import TextTokenizer
from aqaa_jax.tokens.vocab import EOT, Vocab

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LOGITS = 1e-4
TEXTS = (
    *("system\nhi", "human\n", "assistant\n", "\n", "", " two", "▁two", "two plus  three ", "a<|EOT|> b", "<|EOT|>"),
    "<|BOT|>human\nwhat is two plus three<|EOT|><|BOT|>assistant\n",
    "<|BOT|>human\n<audio_1><audio_2><audio_1030><|EOT|><|BOT|>assistant\n",
    *("The capital of France?  12 é 你好", "x  <|TTS|>  y", "two<audio_3> three", "<audio_5119>x <s> </s> <unk>"),
)


def exported(source, directory, **options):
    planned = export.plan(source, dtype="float32", **options)
    export.write(planned, directory, say=lambda text: None)
    return directory


def load(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def golden_export(golden_folder, tmp_path_factory):
    return exported(golden_folder, tmp_path_factory.mktemp("golden") / "export")


@pytest.fixture(scope="module")
def model(golden_export):
    return load(golden_export)


@pytest.fixture(scope="module")
def pocket_export(tmp_path_factory):
    return exported(shipped_folder(), tmp_path_factory.mktemp("pocket") / "export")


@pytest.fixture(scope="module")
def pocket():
    return Aqaa.load()


@pytest.fixture(scope="module")
def io(golden):
    return golden("step1/io.npz")


def test_logits_and_hidden_states_are_the_original_modules(model, io):
    with torch.no_grad():
        out = model(torch.tensor(io["input_ids"]), output_hidden_states=True)
    np.testing.assert_allclose(out.logits, io["logits"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(torch.stack(out.hidden_states), io["hidden_states"], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # before transformers 5.24, and from then on
def test_cached_pieces(model, io, name):
    tokens, cache, pieces, place = torch.tensor(io["input_ids"]), None, [], 0
    for length in io["step_lengths"].tolist():
        with torch.no_grad():
            out = model(tokens[:, place : place + length], **{name: cache}, use_cache=True)
        cache, place = out.past_key_values, place + length
        pieces.append(out.logits)
    assert place == tokens.shape[1] == cache.get_seq_length()
    np.testing.assert_allclose(torch.cat(pieces[1:], 1), io["logits_incremental"], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(model, io, use_cache):
    ids, expected = torch.tensor(io["input_ids"][:, : int(io["greedy_prompt_len"])]), io["greedy_tokens"]
    count = expected.shape[1]
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **settings)
    np.testing.assert_array_equal(out[:, ids.shape[1] :], expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(golden_export, golden, io, checkpointing):
    model = load(golden_export).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        assert model.model.gradient_checkpointing
    out = model(torch.tensor(io["input_ids"]), labels=torch.tensor(io["labels"]))
    out.loss.backward()
    np.testing.assert_allclose(out.loss.item(), io["loss"], rtol=1e-5)
    for name, value in load_file(golden("step1/grads.safetensors")).items():
        np.testing.assert_allclose(model.get_parameter(name).grad, value, atol=1e-6, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, io, side):
    ids = torch.tensor(io["input_ids"][:2, :12])
    pad, short = torch.zeros(5, dtype=ids.dtype), ids[1, :7]
    row = torch.cat([pad, short] if side == "left" else [short, pad])
    mask = (torch.arange(12) >= 5) if side == "left" else (torch.arange(12) < 7)
    batch, masks = torch.stack([ids[0], row]), torch.stack([torch.ones(12), mask]).long()
    with torch.no_grad():
        together = model(batch, attention_mask=masks).logits
        alone = model(ids[:1]).logits[0], model(short[None]).logits[0]
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(together[1][mask.bool()], alone[1], atol=1e-5, rtol=0)
    assert torch.isfinite(together).all()
    if side == "left":
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        both = model.generate(batch, attention_mask=masks, **settings)[1, 12:]
        one = model.generate(short[None], attention_mask=torch.ones_like(short[None]), **settings)[0, 7:]
        assert both.tolist() == one.tolist()


def test_head_is_never_tied_even_where_the_field_is_missing(golden_export, tmp_path, io):
    target = tmp_path / "untied"
    target.mkdir()
    for path in golden_export.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((target / "config.json").read_text())
    del values["tie_word_embeddings"]  # as in the published files
    (target / "config.json").write_text(json.dumps(values))
    model = load(target)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    with torch.no_grad():
        logits = model(torch.tensor(io["input_ids"])).logits
    np.testing.assert_allclose(logits, io["logits"], atol=LOGITS, rtol=0)


def test_saved_again_it_has_the_published_names_and_weights(model, tmp_path, golden, golden_config):
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {k: v.shape for k, v in saved.items()} == step1.published_shapes(golden_config.decoder)
    for name, value in load_file(golden("step1/model.safetensors")).items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)
    again = step1.decoder_config(json.loads((tmp_path / "config.json").read_text()))
    assert again == golden_config.decoder


def test_slopes_are_the_published_series(model, pocket_export):
    import sys

    module = sys.modules[type(model).__module__]
    for heads in (1, 2, 8, 12, 40, 48, 96):
        np.testing.assert_allclose(module.alibi_slopes(heads), alibi_slopes(heads), rtol=1e-6)
    assert load(pocket_export).model.slopes == [8.0, 2.0, 0.5, 0.08, 4.0, 1.0, 0.2, 0.02]


def test_wrong_inputs_are_named(model):
    ids = torch.ones((1, 4), dtype=torch.long)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\), expected \(1, 4\)"):
        model(ids, attention_mask=torch.ones((1, 3)))
    with pytest.raises(ValueError, match="alibi_slopes has 3 values"):
        type(model.config)(alibi_slopes=[1.0, 2.0, 3.0])


def test_pocket_answers_in_pytorch_as_here(pocket, pocket_export):
    system, model = pocket.system, load(pocket_export)
    wav, rate = wavs.read(shipped_folder().parents[2] / "examples" / "question.wav")
    audio = pocket.hear([wavs.resample(wav, rate, 16000)], 16000)[0]
    ids = prompt.task_prompt("aqtaa", audio, system.text)
    ours = np.asarray(system.decoder(np.asarray([ids], np.int32)))
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(theirs, ours, atol=LOGITS, rtol=0)
    expected = generate(system.decoder, [ids], system.config.sampling, stop_ids=(EOT,), key=jax.random.key(0))[0]
    assert expected.stopped and len(expected.ids) > 20
    for use_cache in (True, False):  # settings come from generation_config.json
        out = model.generate(torch.tensor([ids]), use_cache=use_cache)[0, len(ids) :].tolist()
        assert out == [*expected.ids.tolist(), EOT]


def test_auto_tokenizer_gives_our_ids(pocket_export):
    vocab = Vocab(Aqaa.load().system.config.vocab)
    ours = TextTokenizer.load(shipped_folder() / "tokenizer.model", vocab)
    exported_model = TextTokenizer.load(pocket_export / "tokenizer.model", vocab)
    theirs = transformers.AutoTokenizer.from_pretrained(pocket_export)
    assert len(theirs) == vocab.size and theirs.padding_side == "left"
    for text in TEXTS:
        ids = ours.encode(text, bos=True)
        assert theirs.encode(text) == ids, text
        assert exported_model.encode(text, bos=True) == ids, text
        if "<s>" not in text:  # ours leaves every BOS out
            assert theirs.decode(ids[1:]) == ours.decode(ids), text


def test_chat_template_is_the_chat_script(pocket_export, pocket):
    theirs = transformers.AutoTokenizer.from_pretrained(pocket_export)
    turns = [
        ("system", "You are  good."),
        ("user", "what is two plus three"),
        ("assistant", "five"),
        ("user", "really"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == prompt.chat_prompt([prompt.Turn(*turn) for turn in turns], pocket.system.text)


def test_torch_loads_the_pt_files(golden_export, published_states):
    for part, path in {
        "linguistic": f"{PARAFORMER}/model.pt",
        "flow": f"{VOCODER}/flow.pt",
        "hift": f"{VOCODER}/hift.pt",
    }.items():
        for mapped in (False, True):
            state = torch.load(golden_export / path, weights_only=True, mmap=mapped)
            assert {k: tuple(v.shape) for k, v in state.items()} == {
                k: v.shape for k, v in published_states[part].items()
            }
        for name, value in published_states[part].items():
            assert state[name].dtype == torch.float32
            if not name.endswith(("weight_g", "weight_v")):
                np.testing.assert_array_equal(state[name], value, err_msg=name)
    layer = torch.nn.utils.weight_norm(torch.nn.Conv1d(80, 32, 7))  # the form that the published class loads
    layer.load_state_dict({k.removeprefix("conv_pre."): v for k, v in state.items() if k.startswith("conv_pre.")})
    assert layer(torch.zeros(1, 80, 9)).shape == (1, 32, 3)
