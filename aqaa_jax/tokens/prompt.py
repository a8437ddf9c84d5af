"""Prompts: turns to ids. The three published formats, and the formats this project trains on.

Published: the chat script (``stepaudio.py``), the tokenizer's chat template, text-to-speech (``tts.py``).
A turn is ``<|BOT|>{role}\\n{content}<|EOT|>``, where the user's role is spelled ``human``; audio content is bare
audio ids; a prompt ends with an open assistant turn. The chat script puts one BOS in front, the template none.
Differences: text content can not spell control or audio ids (upstream parses them), and ``content`` may mix
text and audio parts. The published encoder sees role and content as one string; encoding them apart gives the
same ids because no piece of the model contains a newline.

Training formats (ours; the papers publish none). The chat script's format, the task told by control ids
in front of the human turn's content (``TASK_IDS``); a spoken question without a task id asks for a woven
answer. Texts follow the turn's header directly; spoken answers are woven by ``interleave``; every answer ends
with ``EOT``, which is a target, as is every id of the answer and nothing of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from aqaa_jax.config import WeaveConfig
from aqaa_jax.tokens.interleave import Segment, join, weave_answer
from aqaa_jax.tokens.vocab import AQTA, ASR, BOS, BOT, EOT, TEXT_END, TEXT_START, TQAA, TTS, as_ids

ROLES: Mapping[str, str] = {"system": "system", "user": "human", "human": "human", "assistant": "assistant"}
DEFAULT_SYSTEM = "You are a helpful assistant."  # of the chat template
TASK_IDS: Mapping[str, tuple[int, ...]] = {
    "asr": (ASR,),  # audio -> its text
    "tts": (TTS,),  # text -> audio of it
    "aqta": (AQTA,),  # spoken question -> written answer
    "aqtaa": (),  # spoken question -> woven answer
    "tqta": (),  # written question -> written answer, as in the published chat format
    "tqtaa": (TQAA,),  # written question -> woven answer
    "transcript_first": (ASR, TQAA),  # spoken question -> its text, then the woven answer
}
# The weights were trained on these exact strings (published tts.py), tags and punctuation included.
RAP_SYSTEM = "请参考对话历史里的音色，用RAP方式将文本内容大声说唱出来。"
HUMMING_SYSTEM = "请参考对话历史里的音色，用哼唱的方式将文本内容大声唱出来。"
_TTS_TAGS = (
    ("情感标签涵盖了多种情绪状态", ("高兴1", "高兴2", "生气1", "生气2", "悲伤1", "撒娇1")),
    ("语种或方言标签包含多种语言或方言", ("中文", "英文", "韩语", "日语", "四川话", "粤语", "广东话")),
    ("音乐哼唱标签包含多种类型歌曲哼唱", ("RAP", "哼唱")),
    ("语音调整标签", ("慢速1", "慢速2", "快速1", "快速2")),
)
RAP, HUMMING = "RAP", "哼唱"
_LEADING_TAG = re.compile(r"[（(]([^()]*)[）)]")


class TextEncoder(Protocol):
    """What prompts need of a text tokenizer; ``text.TextTokenizer`` is one."""

    def encode(self, text: str, *, bos: bool = False) -> list[int]: ...

    def encode_span(self, text: str) -> list[int]: ...


class Turn(NamedTuple):
    """One message: text, ids of woven audio, a list of both, or None for a turn left open."""

    role: str
    content: Any


class Example(NamedTuple):
    """Ids of one training document, int32, and where the id is a training target, bool."""

    ids: np.ndarray
    loss_mask: np.ndarray


def chat_prompt(turns: Sequence[Turn], text: TextEncoder) -> list[int]:
    """The chat script's ids: BOS, the turns, an open assistant turn (unless the last one is just that)."""
    ids = [BOS, *(i for turn in turns for i in _turn(turn, text))]
    opened = bool(turns) and turns[-1].content is None and turns[-1].role == "assistant"
    return ids if opened else ids + _header("assistant", text)


def template_prompt(turns: Sequence[Turn], text: TextEncoder, *, generate: bool = True) -> list[int]:
    """The chat template's ids: a default system turn if there is none, no BOS, an open turn if ``generate``."""
    if not turns or turns[0].role != "system":
        turns = [Turn("system", DEFAULT_SYSTEM), *turns]
    ids = [i for turn in turns for i in _turn(turn, text)]
    return ids + _header("assistant", text) if generate else ids


def tts_prompt(
    target: str, prompt_text: str, prompt_audio: ArrayLike, text: TextEncoder, *, speaker: str = "", bos: bool = True
) -> list[int]:
    """The text-to-speech model's ids: a voice prompt as a past exchange, then the text to speak.

    ``bos``: every separately encoded piece keeps its own BOS, as the published script with the published
    tokenizer settings does; False leaves only the first one. ``speaker`` names a built-in voice; empty for
    a cloned one. A leading tag of ``target`` may ask for rap or humming.
    """

    def encode(piece: str) -> list[int]:
        return text.encode(piece, bos=bos)

    prefix = len(encode("\n"))  # of a string start; content is encoded behind a newline that is cut off
    human, assistant = encode("human\n"), encode("assistant\n")
    said, wanted = encode("\n" + prompt_text)[prefix:], encode("\n" + target)[prefix:]
    ids = [BOS, BOT, *encode("system\n" + tts_system(target, speaker)), EOT]
    ids += [BOT, *human, *said, EOT, BOT, *assistant, *as_ids(prompt_audio).tolist(), EOT]
    return [*ids, BOT, *human, *wanted, EOT, BOT, *assistant]


def voice_turns(prompt_text: str, prompt_audio: ArrayLike) -> tuple[Turn, Turn]:
    """A voice prompt as a past exchange, as ``tts_prompt`` has it: the text asked for, and the audio that spoke it.

    For the history of ``task_prompt`` or ``chat_prompt``: the decoder then goes on speaking in that voice. No paper
    says how AQAA would be given one.
    """
    return Turn("human", prompt_text), Turn("assistant", as_ids(prompt_audio))


def leading_tag(target: str) -> str:
    """The tag of ``（高兴1）text`` or ``(RAP)text``, or an empty string."""
    match = _LEADING_TAG.match(target)
    return match[1].strip("（）") if match and match[1] else ""


def music_speaker(target: str, speaker: str) -> str | None:
    """The voice entry that rap or humming needs (with the music vocoder), None for plain speech."""
    tag = leading_tag(target)
    return speaker + tag if tag in (RAP, HUMMING) else None


def tts_system(target: str, speaker: str = "") -> str:
    """The system prompt that the published script chooses for ``target``."""
    if leading_tag(target) in (RAP, HUMMING):
        return HUMMING_SYSTEM if HUMMING in target else RAP_SYSTEM  # anywhere in the text, as published
    head = "作为一名卓越的声优演员，你的任务是根据文本中（）或()括号内标注的情感、语种或方言、音乐哼唱、语音调整"
    head += "等标签，以丰富细腻的情感和自然顺畅的语调来朗读文本。"
    lists = [f"# {title}，包括但不限于：\n" + "\n".join(f'- "{tag}"' for tag in tags) for title, tags in _TTS_TAGS]
    voice = f"使用[{speaker}]的声音，" if speaker else ""
    tail = f"请在朗读时，{voice}根据这些情感标签的指示，调整你的情感、语气、语调和哼唱节奏，"
    tail += "以确保文本的情感和意义得到准确而生动的传达，如果没有()或（）括号，则根据文本语义内容自由演绎。"
    return f"{head}\n" + "\n\n".join([*lists, tail])


def task_prompt(
    task: str, content: Any, text: TextEncoder, *, system: str = "", history: Sequence[Turn] = ()
) -> list[int]:
    """The ids before an answer: BOS, system and earlier turns, the question with its task ids, an open turn.

    Raises ``ValueError`` on an unknown task.
    """
    if task not in TASK_IDS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASK_IDS)}")
    question = [*TASK_IDS[task], *_content(content, text)]
    first = [Turn("system", system)] if system else []
    return chat_prompt([*first, *history, Turn("human", question)], text)


def example(prompt: ArrayLike, answer: ArrayLike) -> Example:
    """A document whose targets are the ids of ``answer``."""
    ids = np.concatenate([as_ids(prompt), as_ids(answer)]).astype(np.int32)
    return Example(ids, np.arange(len(ids)) >= len(as_ids(prompt)))


def asr(audio: ArrayLike, transcript: str, text: TextEncoder, *, system: str = "") -> Example:
    """Audio ids to their text."""
    return example(task_prompt("asr", as_ids(audio), text, system=system), [*text.encode_span(transcript), EOT])


def tts(transcript: str, audio: ArrayLike, text: TextEncoder, *, system: str = "") -> Example:
    """Text to audio ids, in one pair of markers."""
    answer = weave_answer([], audio, WeaveConfig(pattern="audio_only"))
    return example(task_prompt("tts", transcript, text, system=system), answer)


def written_answer(question: Any, answer: str, text: TextEncoder, *, system: str = "", history=()) -> Example:
    """A written answer: AQTA if the question is audio ids, TQTA if it is a string."""
    task = "tqta" if isinstance(question, str) else "aqta"
    prompt = task_prompt(task, question, text, system=system, history=history)
    return example(prompt, [*text.encode_span(answer), EOT])


def spoken_answer(
    question: Any,
    segments: Sequence[Segment],
    text: TextEncoder,
    weave: WeaveConfig,
    *,
    transcript: str | None = None,
    system: str = "",
    history: Sequence[Turn] = (),
) -> Example:
    """A woven answer: AQTAA if the question is audio ids, TQTAA if it is a string.

    ``segments`` are (text ids, audio ids) pairs, joined as ``weave.joining`` says. With ``transcript`` (of a spoken
    question) the answer starts with ``<text_start> transcript <text_end>``.
    """
    answer = join(segments, weave)
    if transcript is None:
        task = "tqtaa" if isinstance(question, str) else "aqtaa"
    else:
        task = "transcript_first"
        quote = [TEXT_START, *text.encode_span(transcript), TEXT_END]
        answer = np.concatenate([np.asarray(quote, np.int32), answer])
    return example(task_prompt(task, question, text, system=system, history=history), answer)


def continuation(parts: Sequence[str | ArrayLike], text: TextEncoder) -> Example:
    """A document to continue: texts and audio in a row, each audio part in markers; all after BOS is a target."""
    only_audio = WeaveConfig(pattern="audio_only")
    ids = [text.encode_span(p) if isinstance(p, str) else weave_answer([], p, only_audio)[:-1] for p in parts]
    return example([BOS], [*(int(i) for part in ids for i in part), EOT])


def _header(role: str, text: TextEncoder) -> list[int]:
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}; expected one of {', '.join(ROLES)}")
    return [BOT, *text.encode_span(f"{ROLES[role]}\n")]


def _turn(turn: Turn, text: TextEncoder) -> list[int]:
    header = _header(turn.role, text)
    if turn.content is None:
        return header
    content = _content(turn.content, text)
    end = [] if content and content[-1] == EOT else [EOT]  # a woven answer brings its own
    return [*header, *content, *end]


def _content(content: Any, text: TextEncoder) -> list[int]:
    """Text, ids, or a list of texts and id arrays, as ids."""
    if isinstance(content, str):
        return text.encode_span(content) if content else []
    if isinstance(content, Sequence) and any(not isinstance(part, int | np.integer) for part in content):
        return [i for part in content for i in _content(part, text)]
    return as_ids(content).reshape(-1).tolist()
