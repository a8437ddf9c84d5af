"""Records as TensorFlow Datasets, ours and foreign ones, with TensorFlow nowhere in sight."""

import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from conversations import conversation
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from aqaa_jax.data.builders import base, manifest, pocket, stepeval
from aqaa_jax.data.corpus import Item
from aqaa_jax.data.datasets import Dataset, shard_path, write_info, write_shard
from aqaa_jax.data.espeak import Utterance
from aqaa_jax.data.records import waveform
from aqaa_jax.data.sources import opened
from aqaa_jax.data.stepeval import StepEvalSource
from aqaa_jax.dsp import wav

RATE = 8000
TONE = (0.3 * np.sin(np.arange(2400) * 0.2)).astype(np.float32)


def written(folder, shards):
    for number, records in enumerate(shards):
        write_shard(shard_path(folder, "codes", number, len(shards)), records)
    write_info(folder, [len(s) for s in shards], [1 for _ in shards])
    return Dataset(folder)


def test_shards_are_a_tfds_dataset_that_tfds_itself_reads(tmp_path):
    records = [conversation(n, rejected=n % 2 == 0) for n in range(5)]
    data = written(tmp_path, [records[:3], [], records[3:]])
    assert len(data) == 5 and [data[i].id for i in range(5)] == [r.id for r in records]
    np.testing.assert_array_equal(data[4].rejected[0].codes.semantic, records[4].rejected[0].codes.semantic)
    source = tfds.builder_from_directory(tmp_path).as_data_source("train[:50%]")
    assert source[0]["id"] == b"r0" and source[0]["linguistic"].dtype == np.int32
    again = Dataset(tmp_path)
    assert again.fingerprint() == data.fingerprint()
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        Dataset(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="not a \\(whole\\) dataset"):
        Dataset(tmp_path / "x")


def test_tensorflow_is_never_imported():
    code = "import sys, aqaa_jax.data.builders.manifest; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def stored(value):
    """One column of a stored example."""
    feature = tf_feature_pb2.Feature()
    if isinstance(value, bytes):
        feature.bytes_list.value.append(value)
    elif np.issubdtype(value.dtype, np.integer):
        feature.int64_list.value.extend(value.tolist())
    else:
        feature.float_list.value.extend(value.tolist())
    return feature


def foreign(folder, examples, features=None, file_format="array_record"):
    """A prepared set as TFDS leaves it; written by hand, since TFDS makes audio features with TensorFlow only."""
    writer = ArrayRecordWriter(str(folder / "set-train_clean100.array_record-00000-of-00001"), "group_size:1")
    for example in examples:
        columns = {name: stored(value) for name, value in example.items()}
        message = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=columns))
        writer.write(message.SerializeToString())
    writer.close()
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features or {}}}))
    info = {"fileFormat": file_format, "splits": [{"name": "train_clean100", "shardLengths": [str(len(examples))]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_speech_with_transcripts_becomes_records(tmp_path):
    audio = {"pythonClassName": "...Audio", "audio": {"dtype": "int64", "sampleRate": "8000", "shape": {}}}
    samples = np.round(TONE * 32768).astype(np.int64)
    examples = [{"speech": samples, "text": f"HELLO {n}".encode(), "id": f"1-{n}".encode()} for n in range(3)]
    folder = foreign(tmp_path, examples, {"speech": audio})
    source = opened(folder, "train_clean100", "librispeech")
    record = source[1]
    assert len(source) == 3 and [t.role for t in record.turns] == ["human"] and record.id == "1-1"
    sound, rate = waveform(record.turns[0].parts[0].sound)
    assert rate == RATE and record.turns[0].text == "HELLO 1"
    np.testing.assert_allclose(sound, TONE, atol=2**-15)
    assert pickle.loads(pickle.dumps(source))[2].id == "1-2"
    for split, shape, message in (
        ("train_clean100", "audio=sound", "no column 'sound'; it has id, speech, text"),
        ("train_clean100", None, "no records; name its columns"),
        ("train_clean100", "songs", "shape 'songs' is none of librispeech, spoken_qa"),
        ("train_clean100", "audio=speech,rate=high", "rate=high"),
        ("test", "librispeech", "no split 'test'; it has train_clean100"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(folder, split, shape)
    with pytest.raises(ValueError, match="prepared as tfrecord; expected"):
        opened(foreign(tmp_path, examples, file_format="tfrecord"), "train_clean100", "librispeech")


def test_spoken_questions_have_answers_and_bad_ones_are_named(tmp_path):
    wav.write(tmp_path / "q.wav", TONE, RATE)
    fine = {"question_audio": TONE, "question": b"Who?", "answer": b"Me.", "id": b"a"}
    bad = [{**fine, "question_audio": TONE[:0]}, {**fine, "question_audio": b"no audio"}]
    folder = foreign(tmp_path, [fine, {**fine, "question_audio": (tmp_path / "q.wav").read_bytes()}, *bad])
    source = opened(folder, "train_clean100", "audio=question_audio,text=question,answer=answer,id=id,rate=8000")
    for index in (0, 1):  # samples, and the bytes of a file
        assert [(t.role, t.text) for t in source[index].turns] == [("human", "Who?"), ("assistant", "Me.")]
        np.testing.assert_allclose(waveform(source[index].turns[0].parts[0].sound)[0], TONE, atol=2**-15)
    for index, message in ((2, "record 'a': .* zero duration"), (3, "question_audio is not readable audio")):
        with pytest.raises(ValueError, match=message):
            source[index]
    with pytest.raises(ValueError, match="column 'question_audio' has no sample rate"):
        opened(folder, "train_clean100", "spoken_qa")[0]


def test_a_manifest_becomes_a_dataset_and_bad_lines_are_listed(tmp_path):
    wav.write(tmp_path / "a.wav", TONE, RATE)
    lines = [{"id": f"r{n}", "turns": [{"role": "human", "text": str(n), "audio": "a.wav"}]} for n in range(4)]
    lines[2]["turns"][0]["audio"] = "b.wav"
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def builder(name):
        return manifest.spoken_manifest(name, {"train": str(tmp_path / "m.jsonl")}, str(tmp_path / "out"))

    data = base.prepare(builder("talk"))
    assert sorted(data[i].id for i in range(len(data))) == ["r0", "r1", "r3"]
    np.testing.assert_allclose(waveform(data[0].turns[0].parts[0].sound)[0], TONE, atol=2**-15)
    report = json.loads((data.folder / "report.json").read_text())
    assert report["skipped"] == 1 and "b.wav: no such file" in report["problems"][0]["why"]
    assert len(base.prepare(builder("talk"))) == 3  # prepared once
    with pytest.raises(ValueError, match=r"b.wav: no such file"):
        base.prepare(builder("strict"), strict=True)


class Silence:
    """Stands in for rendered clips."""

    def __init__(self, utterances, cache, rates, workers):
        self.utterances = utterances

    def __getitem__(self, index):
        from aqaa_jax.data.rendering import Clip

        return Clip({16000: np.full(1600, 0.25, np.float32)}, (), 0.1)


def test_pocket_items_are_records_with_the_answers_they_ask_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pocket, "render", Silence)
    data = base.prepare(pocket.pocket_speech(str(tmp_path), questions=6, voice=2))
    records = [data[i] for i in range(len(data))]
    assert len(records) == 6 and all([t.role for t in r.turns] == ["human", "assistant"] for r in records)
    asked, answer = records[0].turns[0].parts[0], records[0].turns[1].parts[0]
    assert answer.text.endswith(".") and answer.style and len(asked.sound.samples) == 1600
    assert len(answer.sound.samples) == 1600 + round(pocket.TAIL_SECONDS * 16000)
    voice = Dataset(data.folder, "voice")
    assert len(voice) == 2 and [t.role for t in voice[0].turns] == ["assistant"]
    with pytest.raises(IndexError):
        pocket.PocketSource([Item("x", Utterance("Hi.", "en-us", 150, 50))], tmp_path)[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_step_eval_rows_become_conversations(tmp_path, as_json):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    wav.write(tmp_path / "q1.wav", TONE, RATE)
    with tarfile.open(tmp_path / "audios.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "q1.wav", "audios/q1.wav")
    turns = [
        [
            {"role": "user", "content": "唱一首歌", "audio": "audios/q1.wav"},
            {"role": "assistant", "content": "好的", "audio": None},
        ],
        [{"role": "user", "content": "hm", "audio": "gone.wav"}],
    ]
    (tmp_path / "data").mkdir()
    column = [json.dumps(t) for t in turns] if as_json else turns
    table = pyarrow.table({"conversation_id": ["c1", "c2"], "category": ["singing", "x"], "messages": column})
    parquet.write_table(table, tmp_path / "data" / "test.parquet")
    builder = stepeval.step_eval(tmp_path, str(tmp_path / "out"))
    builder.download_and_prepare()
    data = Dataset(builder.data_dir, "test")
    assert len(data) == 1 and len(builder.problems) == 1 and "gone.wav" in builder.problems[0].why
    record = data[0]
    assert record.id == "c1" and [t.role for t in record.turns] == ["human", "assistant"]
    assert record.turns[0].parts[0].style == "singing" and record.turns[0].text == "唱一首歌"
    assert len(record.turns[0].parts[0].sound.samples) == len(TONE) and record.turns[1].parts[0].sound is None


def test_other_parquet_is_refused_with_its_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    with pytest.raises(FileNotFoundError, match=r"data: no parquet files, so .* is no clone of StepEval-Audio-360"):
        StepEvalSource(tmp_path)
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({"name": ["a"], "score": [1.0]}), tmp_path / "data" / "x.parquet")
    with pytest.raises(ValueError, match="no column for category among name, score; expected category or dimension"):
        StepEvalSource(tmp_path)[0]
    turns = [{"role": "user", "text": "hm"}, {"role": "assistant", "text": None}]
    for role, message in (("user", ""), ("chair", "a turn has role 'chair'; expected one of system, user")):
        turns[0]["role"] = role
        table = pyarrow.table({"id": ["a"], "category": ["x"], "turns": [turns]})
        parquet.write_table(table, tmp_path / "data" / "x.parquet")
        if message:
            with pytest.raises(ValueError, match=message):
                StepEvalSource(tmp_path)[0]
        else:  # the empty turn is the place of an answer
            assert [turn.role for turn in StepEvalSource(tmp_path)[0].turns] == ["human"]
