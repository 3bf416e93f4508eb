"""Whether a checkpoint answers questions to the letter, greedily, through the engine.

Questions are JSON lines `{"skill": ..., "messages": [...], "tools": [...] or null, "answer": ...}`. The
bundled model's corpus is a Python module that makes such questions; it is run in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhizome_engine.llm import LLM
from rhizome_engine.sampling.params import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)
_SLACK_TOKENS = 2
_CORPUS_TIMEOUT_S = 300
_MAKE_QUESTIONS = """
import dataclasses, json, sys
import corpus
for skill in corpus.SKILLS:
    for instance in corpus.eval_instances(skill, int(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(dataclasses.asdict(instance)))
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One question and the only answer that counts."""

    skill: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answer: str


def read_questions(path: Path, n: int, seed: int) -> list[Question]:
    """Read JSON lines, or run a corpus module that makes them.

    Args:
        path: a `.jsonl` file or a `corpus.py` with `SKILLS` and `eval_instances`. The module is executed.
        n: questions of each skill; of a file the first so many.
        seed: which questions, where a module makes them.

    Raises:
        ValueError: the file cannot be read, or the module fails.
    """
    lines = _lines_of_corpus(path, n, seed) if path.suffix == ".py" else _lines_of_file(path)
    asked: dict[str, int] = {}
    questions = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            question = Question(fields["skill"], fields["messages"], fields.get("tools"), fields["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no question with {error}") from None
        asked[question.skill] = asked.get(question.skill, 0) + 1
        if asked[question.skill] <= n:
            questions.append(question)
    return questions


def score_skills(
    llm: LLM, questions: Iterable[Question], progress: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask the questions skill by skill; yield each skill with how many answers were exact.

    Raises:
        ValueError: the checkpoint has no chat template.
    """
    by_skill: dict[str, list[Question]] = {}
    for question in questions:
        by_skill.setdefault(question.skill, []).append(question)
    for skill, members in by_skill.items():
        progress(f"{skill}: {len(members)} questions")
        right = _right_answers(llm, members)
        yield skill, {"asked": len(members), "right": right, "share": right / len(members)}


def _right_answers(llm: LLM, questions: list[Question]) -> int:
    longest = max(len(llm.tokenizer.encode(question.answer)) for question in questions)
    prompts = []
    for question in questions:
        template = llm.tokenizer.chat_template(tools=bool(question.tools))
        if template is None:
            raise ValueError("the checkpoint has no chat template; skills are asked as conversations")
        prompts.append(llm.tokenizer.encode(template.render(question.messages, question.tools)))
    answers = llm.generate(prompts, _GREEDY, max_tokens=longest + _SLACK_TOKENS)
    return sum(answer.text == question.answer for answer, question in zip(answers, questions, strict=True))


def _lines_of_file(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"the questions cannot be read from {path}: {error}") from None


def _lines_of_corpus(path: Path, n: int, seed: int) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: give --corpus the corpus.py of the demo model, or a JSONL file"
        )
    done = subprocess.run(
        [sys.executable, "-c", _MAKE_QUESTIONS, str(n), str(seed)],
        cwd=path.resolve().parent,
        capture_output=True,
        text=True,
        timeout=_CORPUS_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(f"{path} makes no questions: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.splitlines()
