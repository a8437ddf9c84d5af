"""A model's answers as files: the shipped model on questions, conversations, the codec, and what it cannot answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from aqaa_jax import Aqaa
from aqaa_jax.cli.main import main
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.answering import Answering
from aqaa_jax.evaluation.cases import Case, CaseSet, Turn
from aqaa_jax.evaluation.pocket import SPLITS, PocketSets
from aqaa_jax.evaluation.run import about_model, begin
from aqaa_jax.evaluation.stepeval import DIMENSIONS

pytestmark = pytest.mark.long  # many shapes to compile
QUESTION = str(Path(__file__).parents[2] / "examples" / "question.wav")


@pytest.fixture(scope="module")
def model():
    return Aqaa.load()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    wavs.write(folder / "silent.wav", np.zeros(16000, np.float32), 16000)
    asked = (Turn(audio=QUESTION),)
    cases = (
        Case("spoken", asked),
        Case("silent", (Turn(audio=str(folder / "silent.wav")),)),
        Case("written", (Turn(text="What is two plus two?"),), task="tqtaa", speak=False),
        Case("heard", asked, task="asr", speak=False),
        Case("turns", (*asked, Turn(text="What is one plus one?")), task="tqtaa"),
        Case("history", (*asked, Turn("assistant", "It is so."), Turn(audio=QUESTION))),
        Case("codec", asked, task="resynthesis"),
        Case("shuffled", asked, task="shuffled_tokens"),
    )
    run = begin(folder / "run", CaseSet("few", cases), about_model(None))
    Answering(model).answer(run, lambda text: None)
    return run


def test_an_answer_is_what_the_model_answers_alone(model, run):
    line, alone = run.answers.results()["spoken"], model.ask(QUESTION)
    assert line["text"] == alone.text and line["stopped"] and not line["repaired"]
    wav, rate = wavs.read(run.wav("spoken"))
    assert rate == alone.sample_rate
    np.testing.assert_allclose(wav, np.clip(alone.wav, -1, 1), atol=1e-3)


def test_a_question_that_cannot_be_heard_is_a_failure_beside_the_others(run):
    failures = run.answers.failures()
    assert list(failures) == ["silent"] and "silent.wav: silent:" in failures["silent"]


def test_tasks_without_speech_have_none_and_the_codec_has_no_text(run):
    lines = run.answers.results()
    assert "wav" not in lines["written"] and "wav" not in lines["heard"] and lines["heard"]["text"]
    assert lines["codec"]["text"] == "" and (run.folder / lines["codec"]["wav"]).is_file()
    true, shuffled = wavs.read(run.wav("codec"))[0], wavs.read(run.wav("shuffled"))[0]
    assert len(true) == len(shuffled) and np.abs(true - shuffled).max() > 0.05


def test_a_conversation_is_answered_turn_by_turn(model, run):
    lines = run.answers.results()
    assert len(lines["turns"]["own_turns"]) == 1 and "own_turns" not in lines["history"]
    audio = model.hear([wavs.read(QUESTION)[0]], wavs.read(QUESTION)[1])[0]
    (first,) = model.respond("tqtaa", [audio])
    assert lines["turns"]["own_turns"] == [first.text]


def test_an_answered_case_is_not_asked_again(model, run):
    before = (run.folder / "answers.jsonl").read_text()

    Answering(model).answer(run, lambda text: None)
    lines = (run.folder / "answers.jsonl").read_text()[len(before) :].splitlines()
    assert len(lines) == 1 and "silent" in lines[0]


def test_the_pocket_sets_are_whole_and_the_same_again(tmp_path):
    first = PocketSets(tmp_path, questions=10).all(pairs=4, limit=5)
    assert PocketSets(tmp_path, questions=10).all(pairs=4, limit=5) == first
    groups = {case.group for case in first.cases}
    assert groups >= {*SPLITS, "new_voices, hearing", "new_questions, thinking", "voice control"}
    assert sum(bool(case.compared_to) for case in first.cases) == 4
    assert all(Path(turn.audio).is_file() for case in first.cases for turn in case.turns if turn.audio)
    assert all(case.answer in first.sentences[case.domain] for case in first.cases if case.spoken)


def test_stepeval_goes_through_every_step(tmp_path, stepeval_clone, capsys):
    wav = wavs.resample(*wavs.read(QUESTION), 16000)
    clone = stepeval_clone(tmp_path / "clone", wav)
    arguments = ["eval", "run", str(tmp_path / "run"), "--set", f"stepeval:{clone}", "--judges", "exact"]
    assert main(arguments) == 0 == main(arguments)  # the second time from files
    assert capsys.readouterr().err.count("[answers] 9/9") == 1
    found = json.loads((tmp_path / "run" / "report.json").read_text())["run"]
    assert list(found["groups"]) == list(DIMENSIONS) and found["groups"]["gaming"]["alignment_wer"]["n"] == 1
    assert "speech exact" not in found["groups"]["gaming"]  # open questions have no right answer
    assert (tmp_path / "run" / "radar_stop_rate.png").is_file()
    assert main(["eval", "page", str(tmp_path / "run")]) == 0
