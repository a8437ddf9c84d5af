"""Packed datasets: built shard by shard, read in an order that depends on seed and step alone."""

import json
import pickle
from collections import Counter

import jax
import numpy as np
import pytest
from conversations import CONFIG, Listed, conversation

from aqaa_jax.config import DecoderConfig
from aqaa_jax.data import packed
from aqaa_jax.data.examples import units
from aqaa_jax.data.language import language_batch
from aqaa_jax.data.packed import Packed, Stream, build
from aqaa_jax.data.reader import Draws, Reader
from aqaa_jax.data.records import Codes, Part, Turn
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.cross_entropy import token_log_probs
from aqaa_jax.training.stages.language import LanguageStage

LENGTH = 192
RECORDS = [conversation(n) for n in range(40)]


def made(folder, coder, streams=None, **options):
    streams = streams or [Stream("talk", Listed(RECORDS), ("asr", "aqtaa"))]
    build(folder, streams, coder, **{"length": LENGTH, "tokenizer": "t", "per_shard": 16, **options})
    return Packed(folder)


@pytest.fixture(scope="module")
def talk(tmp_path_factory, coder):
    return made(tmp_path_factory.mktemp("talk"), coder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, coder):
    streams = [
        Stream("asr", Listed(RECORDS), ("asr",), 1.0),
        Stream("answers", Listed(RECORDS[:24]), ("aqta", "aqtaa"), 3.0),
    ]
    return made(tmp_path_factory.mktemp("mixed"), coder, streams)


def segments(batch):
    """Every example of a batch as a tuple of ids."""
    for tokens, numbers in zip(batch["tokens"], batch["segment_ids"], strict=True):
        for number in range(1, numbers.max() + 1):
            yield tuple(tokens[numbers == number].tolist())


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4])
def test_every_example_exactly_once_per_epoch_for_any_number_of_hosts(talk, coder, hosts):
    rows = len(talk.streams["talk"][1])
    expected = Counter(
        tuple(e.ids.tolist()) for r in RECORDS for task in ("asr", "aqtaa") for (e,) in units(task, r, coder)
    )
    seen = Counter()
    readers = [Reader(talk, batch=12, seed=3, host=h, hosts=hosts) for h in range(hosts)]
    for step in range(rows):  # twelve whole epochs
        for reader in readers:
            seen.update(segments(reader(step)))
    assert seen == Counter({ids: 12 * count for ids, count in expected.items()})
    one = Counter()
    draws = Draws(talk, 3, 1, 0, 1, 0)
    for draw in range(rows, 2 * rows):  # the second epoch alone
        one.update(tuple(e.ids.tolist()) for unit in draws[draw][1] for e in unit)
    assert one == expected


def test_hosts_one_after_another_are_the_global_batch(mixed):
    whole = Reader(mixed, batch=12, seed=0)
    for step in (0, 1, 7):
        expected = whole(step)
        for hosts in (2, 3, 4):
            parts = [Reader(mixed, batch=12, seed=0, host=h, hosts=hosts)(step) for h in range(hosts)]
            same(expected, {key: np.concatenate([part[key] for part in parts]) for key in expected})


def test_a_resumed_run_reads_what_an_uninterrupted_one_does(mixed):
    reader = Reader(mixed, batch=4, seed=1, code_noise=0.2)
    run = [reader(step) for step in range(12)]
    for start in (0, 5, 11):
        again = Reader(mixed, batch=4, seed=1, code_noise=0.2)
        for step in range(start, 12):
            same(run[step], again(step))
    same(run[3], reader(3))  # going back is asking again
    other = Reader(mixed, batch=4, seed=2)(0)
    assert not np.array_equal(other["tokens"], run[0]["tokens"])


def test_worker_processes_change_nothing_and_touch_no_device(mixed, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "none_such")  # of the workers: this process has its devices
    plain, reader = Reader(mixed, batch=4, seed=1), Reader(mixed, batch=4, seed=1, workers=2)
    try:
        for step in range(2, 9):
            same(plain(step), reader(step))
    finally:
        reader.close()


def test_streams_are_drawn_by_weight_and_mixed_within_steps(mixed):
    mixture = mixed.mixture(0)
    names = [mixture[i][0] for i in range(1024)]
    assert names.count("answers") == 768
    kinds = {tuple(sorted(set(names[k : k + 8]))) for k in range(0, 1024, 8)}
    assert ("answers", "asr") in kinds


def test_rows_hold_ids_positions_and_targets_of_their_examples(talk):
    stored, plan = talk.streams["talk"]
    assert plan.fill(stored.lengths, LENGTH) > 0.9  # a row holds two or three examples
    reader = Reader(talk, batch=len(plan), seed=0)
    batch, mixture = reader(0), talk.mixture(0)
    for row in range(len(plan)):
        examples = [e for unit in talk.row("talk", mixture[row][1]) for e in unit]
        at = 0
        real = batch["loss_mask"][row] > 0
        for number, example in enumerate(examples, 1):
            here = slice(at, at + len(example.ids))
            np.testing.assert_array_equal(batch["tokens"][row, here], example.ids)
            np.testing.assert_array_equal(batch["positions"][row, here], np.arange(len(example.ids)))
            assert (batch["segment_ids"][row, here] == number).all()
            mine = real & (batch["target_segments"][row] == number)
            np.testing.assert_array_equal(batch["targets"][row, mine], example.ids[1:][example.loss_mask[1:]])
            np.testing.assert_array_equal(batch["source"][row, mine] - at + 1, np.flatnonzero(example.loss_mask))
            at += len(example.ids)
        assert not batch["segment_ids"][row, at:].any() and at <= LENGTH
        assert real.sum() == sum(e.loss_mask[1:].sum() for e in examples)


@pytest.fixture(scope="module")
def stage():
    decoder = DecoderConfig(
        vocab=CONFIG.size,
        embed=16,
        mlp=32,
        heads=2,
        kv_heads=1,
        head_dim=8,
        layers=1,
        scan=False,
        max_length=LENGTH,
        dtype="float32",
        param_dtype="float32",
    )
    return LanguageStage(name="sft", decoder=decoder, vocab=CONFIG, batches=lambda step: None)


def test_packed_loss_is_the_unpacked_loss_token_by_token(talk, stage):
    """The same examples in packed rows and each in a row of its own: log p of every target."""
    model = stage.init(jax.random.key(0))
    mixture = talk.mixture(0)
    batch = Reader(talk, batch=2, seed=0)(0)
    alone = [e for row in range(2) for unit in talk.row("talk", mixture[row][1]) for e in unit]
    separate = language_batch([(e.ids, e.loss_mask) for e in alone], 128)
    assert len(alone) > 3

    @jax.jit
    def measured(model: Decoder, batch):
        hidden_BLD = model.hidden(batch["tokens"], segment_ids_BL=batch["segment_ids"])
        chosen_BKD = jax.numpy.take_along_axis(hidden_BLD, batch["source"][..., None], axis=1)
        log_probs_BK = token_log_probs(model.logits(chosen_BKD), batch["targets"])
        return log_probs_BK, stage.loss(model, batch, jax.random.key(0))["answer"]

    (packed_BK, packed_sum), (separate_BK, separate_sum) = (measured(model, b) for b in (batch, separate))
    per_token = (np.asarray(x)[b["loss_mask"] > 0] for x, b in ((packed_BK, batch), (separate_BK, separate)))
    np.testing.assert_allclose(*per_token, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(packed_sum, separate_sum, rtol=1e-5)


def test_pairs_stay_together_and_name_chosen_and_rejected(tmp_path, coder):
    records = [conversation(n, rejected=True) for n in range(12)]
    data = made(tmp_path, coder, [Stream("pairs", Listed(records), ("preference",))], length=300)
    assert data.pairs and data.streams["pairs"][0].pairs
    plan = data.streams["pairs"][1]
    assert sorted(plan.members.tolist()) == list(range(12))
    batch = Reader(data, batch=len(plan), seed=0)(0)
    seen = set()
    expected = {tuple(tuple(e.ids.tolist()) for e in units("preference", r, coder)[0]) for r in records}
    for row in range(len(plan)):
        numbers, tokens = batch["segment_ids"][row], batch["tokens"][row]
        assert numbers.max() % 2 == 0
        for pair in range(1, numbers.max(), 2):
            seen.add(tuple(tuple(tokens[numbers == n].tolist()) for n in (pair, pair + 1)))
        real = batch["loss_mask"][row] > 0
        audio = coder.vocab.is_audio(batch["targets"][row]) & real
        assert (batch["audio_mask"][row][audio] == 1).all() and not batch["audio_mask"][row][~real].any()
        text = real & (batch["audio_mask"][row] == 0)
        assert set(batch["target_segments"][row][text]) == set(range(1, numbers.max() + 1))
    assert seen == expected
    with pytest.raises(ValueError, match="preference pairs cannot be packed with other tasks"):
        made(tmp_path / "x", coder, [Stream("a", Listed(records), ("preference", "asr"))])


def test_broken_records_are_skipped_counted_and_listed(tmp_path, coder):
    beyond = Part("Hm.", codes=Codes(np.array([1024, 0]), np.array([1, 2, 3])))
    outside = RECORDS[9]._replace(turns=(Turn("human", (beyond,)), RECORDS[9].turns[1]))
    records = [RECORDS[0], None, conversation(1)._replace(turns=RECORDS[1].turns[:1]), *RECORDS[2:20], outside]
    index = made(tmp_path, coder, [Stream("a", Listed(records), ("aqtaa",))])
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (report["records"], report["done"], report["skipped"]) == (22, 19, 3) and len(report["problems"]) == 3
    assert report["problems"][0] == {"where": "record 1", "why": "listed: record 1 is broken"}
    assert "no question and answer" in report["problems"][1]["why"]
    assert "linguistic code 1024 is outside 0 .. 1023" in report["problems"][2]["why"]
    assert len(index.streams["a"][0]) == 19
    with pytest.raises(ValueError, match="record 1 is broken"):
        made(tmp_path / "strict", coder, [Stream("a", Listed(records), ("aqtaa",))], strict=True)


def test_an_empty_shard_is_no_problem_an_empty_stream_is(tmp_path, coder):
    records = [None] * 16 + RECORDS[:10] + [None] * 6
    data = made(tmp_path / "one", coder, [Stream("a", Listed(records), ("asr",))], per_shard=8)
    assert len(data.streams["a"][0]) == 10
    Reader(data, batch=2, seed=0)(0)
    with pytest.raises(ValueError, match="no example fits a row of 192"):
        made(tmp_path / "none", coder, [Stream("a", Listed([None, None]), ("asr",))])
    with pytest.raises(ValueError, match="unknown task 'sing'"):
        made(tmp_path / "unknown", coder, [Stream("a", Listed(RECORDS), ("sing",))])


def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path, coder, monkeypatch):
    whole = made(tmp_path / "whole", coder)

    class Stops(Listed):
        def __getitem__(self, index):
            if index == 35:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut", coder, [Stream("talk", Stops(RECORDS), ("asr", "aqtaa"))])
    assert not (tmp_path / "cut" / packed.INDEX).exists()
    kept = tmp_path / "cut" / "talk" / "units-00000.npy"
    before = kept.stat().st_mtime_ns
    data = made(tmp_path / "cut", coder)
    assert kept.stat().st_mtime_ns == before
    assert data.streams["talk"][0].sha256 == whole.streams["talk"][0].sha256
    with pytest.raises(ValueError, match="begun with tasks"):
        made(tmp_path / "cut", coder, [Stream("talk", Listed(RECORDS), ("asr",))])


def test_another_row_length_reuses_the_units(tmp_path, coder):
    made(tmp_path, coder)
    shard = tmp_path / "talk" / "units-00000.npy"
    before = shard.stat().st_mtime_ns
    assert made(tmp_path, coder, length=256).length == 256 and shard.stat().st_mtime_ns == before


def test_partial_and_damaged_folders_are_named(tmp_path, coder):
    with pytest.raises(FileNotFoundError, match="not a \\(whole\\) packed dataset"):
        Packed(tmp_path / "nothing")
    made(tmp_path, coder)
    shard = tmp_path / "talk" / "units-00001.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-40])
    with pytest.raises(ValueError, match=r"units-00001.npy: cut short"):
        Packed(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"units-00001.npy: missing"):
        Packed(tmp_path)
    shard.write_bytes(content)
    plan = tmp_path / "talk" / packed.PLAN
    with np.load(plan) as data:
        np.savez(plan, **{**{k: data[k] for k in data.files}, "dataset": np.array("other")})
    with pytest.raises(ValueError, match="planned for other units"):
        Packed(tmp_path)


def test_a_dataset_travels_to_workers_as_its_path(talk):
    assert len(pickle.dumps(talk)) < 300
    with pytest.raises(ValueError, match="cannot be shared by host 0 of 5"):
        Reader(talk, batch=12, seed=0, hosts=5)
