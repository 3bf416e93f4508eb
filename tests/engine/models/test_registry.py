"""Which architectures are known, what their configs default to, and what is refused."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.rope_config import RopeKind
from rhizome_engine.models.family import Family
from rhizome_engine.models.refused import COMPUTED_THROUGH, NEUTRAL
from rhizome_engine.models.registry import ARCHITECTURES, family_of, parse_model_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def parse(architecture, **values):
    return parse_model_config(JsonFields({"architectures": [architecture], **SIZES, **values}, "config.json"))


def section(title):
    """Return the part of the page under a heading."""
    return re.split(r"^## ", DOCS.read_text().split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_entry_leads_to_a_family(architecture):
    assert isinstance(family_of(architecture), Family)
    assert parse(architecture).architecture == architecture


def test_the_page_lists_what_the_registry_knows():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)\.py` \| .+ \|$", section("Families"), re.MULTILINE)
    assert len(rows) == len(ARCHITECTURES)
    assert {name: f"rhizome_engine.models.{file}" for name, file in rows} == ARCHITECTURES


def test_the_page_lists_the_kinds_of_rotary_embeddings():
    assert set(re.findall(r"^\| `(\w+)` \|", section("Rotary embeddings"), re.MULTILINE)) == set(
        get_args(RopeKind)
    )


def test_the_recipe_shows_the_shortest_family_as_it_is():
    files = {Path(str(import_module(module).__file__)) for module in ARCHITECTURES.values()}
    shortest = min(files, key=lambda file: file.stat().st_size)
    assert f"This is all of `models/{shortest.name}`" in section("Adding a family")
    assert f"```python\n{shortest.read_text()}```" in section("Adding a family")


@pytest.mark.parametrize("names", [["MambaForCausalLM"], [], None, "LlamaForCausalLM"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(names):
    fields = JsonFields({"architectures": names, "model_type": "mamba", **SIZES}, "dir/config.json")
    with pytest.raises(CheckpointError) as caught:
        parse_model_config(fields)
    assert str(caught.value) == (
        f"dir/config.json: no supported architecture in architectures {names or []!r} (model_type 'mamba'); "
        f"supported: {', '.join(ARCHITECTURES)}"
    )


def test_the_first_known_one_of_several_architectures_is_taken():
    fields = JsonFields({"architectures": ["Other", "Qwen2ForCausalLM"], **SIZES}, "config.json")
    assert parse_model_config(fields).architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_absent_keys_take_the_defaults_of_the_class_in_transformers(architecture):
    """Only sizes are given; what else a forward pass depends on comes from the defaults."""
    given = {**SIZES}
    if architecture == "MinistralForCausalLM":
        given["head_dim"] = 16  # its class does not divide
    config_class = getattr(transformers, architecture).config_class
    if "text_config" in getattr(config_class, "sub_configs", {}):
        reference = config_class(text_config={**given, "pad_token_id": 0}).text_config
    else:
        reference = config_class(**given, pad_token_id=0)
    config = parse(architecture, **given)
    assert config.max_position_embeddings == reference.max_position_embeddings
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.tie_word_embeddings == reference.tie_word_embeddings
    assert config.head_dim == (getattr(reference, "head_dim", None) or 16)
    ropes = reference.rope_parameters
    thetas = (
        [ropes["rope_theta"]]
        if "rope_theta" in ropes
        else [
            ropes["full_attention"]["rope_theta"],
            ropes["sliding_attention"]["rope_theta"],
        ]
    )
    assert [rope.theta for rope in config.ropes] == thetas
    window = reference.sliding_window or 0 if hasattr(reference, "sliding_window") else 0
    everywhere = "sliding_attention" if window else "full_attention"
    types = getattr(reference, "layer_types", None) or [everywhere] * 12
    windows = [window if kind == "sliding_attention" else 0 for kind in types]
    assert [layer.window for layer in config.layers] == windows
    if getattr(reference, "no_rope_layers", None) is not None:
        assert [layer.rope is not None for layer in config.layers] == list(
            map(bool, reference.no_rope_layers)
        )
    if config.experts is not None:
        assert config.experts.num_experts == reference.num_local_experts
        assert config.experts.experts_per_token == reference.num_experts_per_tok
        assert config.experts.normalise == getattr(reference, "norm_topk_prob", True)
        assert config.experts.intermediate_size == getattr(reference, "moe_intermediate_size", 112)


def test_null_is_not_absent_where_the_default_is_not_none():
    assert {layer.window for layer in parse("MistralForCausalLM").layers} == {4096}
    assert {layer.window for layer in parse("MistralForCausalLM", sliding_window=None).layers} == {0}
    absent = parse("Gemma2ForCausalLM")
    assert (absent.attention_softcap, absent.logits_softcap) == (50.0, 30.0)
    null = parse("Gemma2ForCausalLM", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (null.attention_softcap, null.logits_softcap) == (0.0, 0.0)


@pytest.mark.parametrize("key", sorted(NEUTRAL))
def test_a_setting_that_changes_the_result_is_refused_where_it_is_not_computed(key):
    value = "alibi" if key == "position_embedding_type" else 7
    if key in ("layer_types", "no_rope_layers"):
        value = ["chunked_attention"] * 12 if key == "layer_types" else [1, 0] * 6
    elif key == "query_pre_attn_scalar":
        value = 256
    elsewhere = {
        "attention_bias": "MistralForCausalLM",
        "mlp_bias": "MistralForCausalLM",
        "attention_out_bias": "MistralForCausalLM",
    }
    with pytest.raises(
        CheckpointError, match=f"^config.json: {key} .* is not supported for this architecture"
    ):
        parse(elsewhere.get(key, "LlamaForCausalLM"), **{key: value})


@pytest.mark.parametrize("key", sorted(NEUTRAL))
def test_a_neutral_value_is_no_reason_to_refuse(key):
    architecture = "MistralForCausalLM" if key in ("attention_bias", "mlp_bias") else "LlamaForCausalLM"
    for value in (*NEUTRAL[key], None):
        if key == "layer_types" and value is not None:
            value = value * 12
        assert parse(architecture, **{key: value}) == parse(architecture)


def test_every_setting_that_some_family_computes_is_refused_elsewhere():
    assert set(COMPUTED_THROUGH) <= set(NEUTRAL)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("LlamaForCausalLM", {"mup_base_width": 256}, "mup_base_width 256 is not supported .*, absent"),
        ("LlamaForCausalLM", {"sliding_window": 512}, "sliding_window 512 is not supported"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ("MistralForCausalLM", {"attention_bias": True}, "attention_bias true is not supported"),
        ("Qwen2ForCausalLM", {"num_experts": 60}, "num_experts 60 is not supported"),
        (
            "Qwen2ForCausalLM",
            {"layer_types": ["full_attention"] * 11 + ["linear_attention"]},
            "layer_types holds 'linear_attention', .* known: full_attention, sliding_attention",
        ),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types must be a list of 12 types"),
        (
            "MistralForCausalLM",
            {"sliding_window": None, "layer_types": ["sliding_attention"] * 12},
            "sliding_window must be an integer of at least 1, but it is absent",
        ),
        ("MistralForCausalLM", {"sliding_window": [8, 16]}, "sliding_window must be an integer"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers must be a list of 12 integers"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": "all"}, "no_rope_layers must be a list of integers"),
        ("Qwen3MoeForCausalLM", {"num_experts_per_tok": 129}, "num_experts_per_tok must be at most .* 128"),
        ("Qwen3MoeForCausalLM", {"shared_expert_intermediate_size": 5}, "shared_expert_interm"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2, "x": 1}}, "x is not supported"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_compute_is_refused_in_words(architecture, values, message):
    with pytest.raises(CheckpointError, match=message):
        parse(architecture, **values)
