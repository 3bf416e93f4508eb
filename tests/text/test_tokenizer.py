import hashlib
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from rhizome_text.chat_template import ChatTemplateError
from rhizome_text.tokenizer import Tokenizer, TokenizerError
from rhizome_text.tokenizer_files import read_tokenizer_files, tokenizer_sha256


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": "config"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not part of the tokenizer")
    return tmp_path


def test_only_the_tokenizers_files_are_read(checkpoint: Path) -> None:
    assert set(read_tokenizer_files(checkpoint)) == {"tokenizer.json", "tokenizer_config.json"}


def test_a_checkpoint_without_tokenizer_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        read_tokenizer_files(tmp_path)


def test_the_hash_is_the_one_of_the_contract() -> None:
    files = {"b": b"22", "a": b"1"}
    expected = b"a\0" + (1).to_bytes(8, "little") + b"1" + b"b\0" + (2).to_bytes(8, "little") + b"22"
    assert tokenizer_sha256(files) == hashlib.sha256(expected).hexdigest()


def test_special_tokens_are_added_only_on_request(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_directory(checkpoint)
    assert tokenizer.encode("a", add_special_tokens=True) == [tokenizer.bos_id, *tokenizer.encode("a")]
    assert tokenizer.eos_id == 257
    assert tokenizer.vocab_size == 258


def test_special_tokens_and_unknown_ids_leave_no_text(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_directory(checkpoint)
    ids = tokenizer.encode("<bos>hi", add_special_tokens=False)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode([*ids, 5_000]) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>hi"


def test_the_template_file_wins_over_the_config(checkpoint: Path) -> None:
    template = Tokenizer.from_directory(checkpoint).chat_template()
    assert template is not None and template.render([]) == "config"
    (checkpoint / "chat_template.jinja").write_text("file {{ eos_token }}")
    template = Tokenizer.from_directory(checkpoint).chat_template()
    assert template is not None and template.render([]) == "file <eos>"


@pytest.mark.parametrize("folder", ["chat_templates", "additional_chat_templates"])
def test_named_templates_may_be_files_of_a_folder(checkpoint: Path, folder: str) -> None:
    (checkpoint / "chat_template.jinja").write_text("d")
    (checkpoint / folder).mkdir()
    (checkpoint / folder / "tool_use.jinja").write_text("t")
    assert f"{folder}/tool_use.jinja" in read_tokenizer_files(checkpoint)
    tokenizer = Tokenizer.from_directory(checkpoint)
    rendered = [t.render([]) for tools in (False, True) if (t := tokenizer.chat_template(tools=tools))]
    assert rendered == ["d", "t"]


def with_added_tokens(checkpoint: Path, tokens: dict[str, dict[str, object]]) -> Path:
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": tokens}))
    return checkpoint


def test_tokens_that_only_the_config_adds_are_tokens(checkpoint: Path) -> None:
    tokens = {
        "257": {"content": "<eos>", "special": True},
        "258": {"content": "<tool>", "special": True, "lstrip": False},
        "259": {"content": "<think>", "special": False},
    }
    tokenizer = Tokenizer.from_directory(with_added_tokens(checkpoint, tokens))
    assert tokenizer.encode("<tool><think>") == [258, 259]
    assert tokenizer.decode([258, 259, 257]) == "<think>"
    assert tokenizer.vocab_size == 260


def test_an_added_token_with_an_id_of_its_own_is_refused(checkpoint: Path) -> None:
    tokens = {"300": {"content": "<far>", "special": True}}
    with pytest.raises(TokenizerError, match=r"gives .<far>. the id 300, .* can only be 258"):
        Tokenizer.from_directory(with_added_tokens(checkpoint, tokens))


def test_a_template_of_its_own_for_tools_is_used(checkpoint: Path) -> None:
    files = dict(read_tokenizer_files(checkpoint))
    files["tokenizer_config.json"] = json.dumps(
        {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    ).encode()
    tokenizer = Tokenizer.from_files(files)
    rendered = [t.render([]) for tools in (False, True) if (t := tokenizer.chat_template(tools=tools))]
    assert rendered == ["d", "t"]


def test_a_broken_template_fails_only_who_uses_it(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{% for %}")
    tokenizer = Tokenizer.from_directory(checkpoint)
    assert tokenizer.encode("a")
    with pytest.raises(ChatTemplateError):
        tokenizer.chat_template()


def test_broken_files_say_so() -> None:
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_files({"tokenizer.json": b"{}"})
    with pytest.raises(TokenizerError, match="missing"):
        Tokenizer.from_files({})
