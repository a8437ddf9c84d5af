"""A small set in the published layout of StepEval-Audio-360."""

import shutil
import tarfile

import pytest

from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.stepeval import DIMENSIONS


@pytest.fixture
def stepeval_clone():
    """``stepeval_clone(folder, wav, packed=False)``: a conversation per dimension, the last of two user turns."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    def write(folder, wav, *, packed=False):
        audios, rows = folder / "audios", []
        for i, name in enumerate(DIMENSIONS):
            turns = [{"role": "user", "text": f"Question {i}", "audio_filename": f"{i}_0.wav"}]
            if i == 8:
                turns.append({"role": "user", "text": "And then?", "audio_filename": "8_1.wav"})
                turns.append({"role": "assistant", "text": "what somebody said", "audio_filename": None})
            for turn in turns:
                if turn["audio_filename"]:
                    wavs.write(audios / turn["audio_filename"], wav, 16000)
            category = name.title().replace("-", " ")
            rows.append({"conversation_id": f"id {i}", "category": category, "conversation": turns})
        (folder / "data").mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(rows[::-1]), folder / "data" / "test-00000-of-00001.parquet")
        if packed:
            with tarfile.open(folder / "audios.tar.gz", "w:gz") as archive:
                for path in audios.iterdir():
                    archive.add(path, path.name)
            shutil.rmtree(audios)
        return folder

    return write
