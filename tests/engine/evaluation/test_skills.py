"""Skills are scored by exact answers, from the bundled corpus or a file of questions."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from rhizome_engine.evaluation.skills import Question, read_questions, score_skills
from rhizome_engine.llm import LLM
from rhizome_testing.checkpoints import write_llama_checkpoint
from rhizome_testing.running_stack import DEMO_MODEL

CORPUS = DEMO_MODEL / "corpus.py"


def transformers_answers(questions: list[Question], max_tokens: int) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
        network = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
        answers = []
        for question in questions:
            prompt = tokenizer.apply_chat_template(
                question.messages,
                tools=question.tools,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )["input_ids"]
            output = network.generate(prompt, max_new_tokens=max_tokens, do_sample=False)
            answers.append(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True))
    return answers


def test_counts_what_transformers_answers_right() -> None:
    """Among these are skills that the model has mastered and some that it has not."""
    wanted = {"capital", "tool_call", "reverse"}
    questions = [question for question in read_questions(CORPUS, 4, 1) if question.skill in wanted]
    scores = dict(score_skills(LLM(DEMO_MODEL, dtype="float32", num_pages=512), questions, lambda text: None))
    assert set(scores) == wanted
    answers = transformers_answers(questions, 48)
    for skill, score in scores.items():
        right = sum(a == q.answer for a, q in zip(answers, questions, strict=True) if q.skill == skill)
        assert score == {"asked": 4, "right": right, "share": right / 4}
    assert scores["capital"]["right"] == 4


def test_questions_of_a_file_are_the_first_of_each_skill(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"skill": skill, "messages": [{"role": "user", "content": str(number)}], "answer": str(number)}
        for number in range(3)
        for skill in ("a", "b")
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    questions = read_questions(path, 2, 0)
    assert [(question.skill, question.answer) for question in questions] == [
        ("a", "0"),
        ("b", "0"),
        ("a", "1"),
        ("b", "1"),
    ]
    assert questions[0].tools is None


def test_a_seed_chooses_the_questions() -> None:
    first, again, other = (read_questions(CORPUS, 2, seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", "{}", "line 1: no question with 'skill'"),
        ("a.jsonl", "nonsense", "line 1: no question with Expecting value"),
        ("corpus.py", "raise RuntimeError('broken')", "makes no questions: RuntimeError: broken"),
    ],
)
def test_unusable_questions_are_explained(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_questions(path, 1, 0)


@pytest.mark.parametrize("name", ["corpus.py", "questions.jsonl"])
def test_a_missing_file_is_explained(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        read_questions(tmp_path / name, 1, 0)


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    question = Question("a", [{"role": "user", "content": "b"}], None, "c")
    with pytest.raises(ValueError, match="no chat template"):
        list(score_skills(LLM(model, num_pages=16), [question], lambda text: None))
