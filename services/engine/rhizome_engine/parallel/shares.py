"""What each rank gets of a model: whole heads, a slice of every feed-forward, a range of the vocabulary.

    matrix                    cut by   the rank has
    queries, keys, values     rows     its heads; with more ranks than key-value heads, some have the same
    attention's output        columns  those of its heads; results are added over all ranks
    gate and up               rows     its slice, of every expert too
    down                      columns  the same slice; results are added over all ranks
    embedding, output layer   rows     its range of the vocabulary

Norms, routers and the biases of what is added stay whole; of the latter only rank 0 adds them.
"""

from __future__ import annotations

from dataclasses import replace

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.models.family import TensorNames
from rhizome_engine.weights.choose import StoredFormat
from rhizome_engine.weights.format import WeightFormat
from rhizome_engine.weights.share import Share, Span
from rhizome_engine.weights.targets import ModelTargets, VectorTarget

MAX_RANKS = 64
_VOCABULARY_MULTIPLE = 16
"""A rank's rows of the vocabulary are a multiple of it, so that rows of logits begin on whole vectors."""


def config_of_rank(config: ModelConfig, size: int) -> ModelConfig:
    """Return the sizes that one of `size` ranks computes with; the vocabulary and what is shared stay.

    Raises:
        ValueError: the model cannot be shared out so; the message says by what, and among how many it can.
    """
    problem = _problem(config, size)
    if problem:
        possible = [str(other) for other in range(2, MAX_RANKS + 1) if not _problem(config, other)]
        among = ", ".join(possible) or "no number of ranks"
        raise ValueError(f"--tensor-parallel {size}: {problem}; this model can be shared out among {among}")
    experts = config.experts
    if experts is not None:
        experts = replace(experts, intermediate_size=experts.intermediate_size // size)
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(config.num_kv_heads // size, 1),
        intermediate_size=config.intermediate_size // size,
        experts=experts,
    )


def _problem(config: ModelConfig, size: int) -> str:
    """Say why a model cannot be shared out among so many ranks; nothing where it can."""
    if not 2 <= size <= MAX_RANKS:
        return f"ranks are 2 to {MAX_RANKS}"
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % size:
        return f"{heads} query heads are no multiple of {size}"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} key-value heads can neither be shared out among {size} nor repeated evenly"
    if config.experts is not None and config.experts.intermediate_size % size:
        return f"an expert's intermediate size {config.experts.intermediate_size} is no multiple of {size}"
    if not all(layer.experts for layer in config.layers) and config.intermediate_size % size:
        return f"the intermediate size {config.intermediate_size} is no multiple of {size}"
    return ""


def vocabulary_rows(vocab_size: int, size: int) -> int:
    """Return the rows of the vocabulary that each rank has; those beyond the end stand for no token."""
    return -(-vocab_size // (size * _VOCABULARY_MULTIPLE)) * _VOCABULARY_MULTIPLE


def vocabulary_span(vocab_size: int, rank: int, size: int) -> Span:
    """Return the tokens of a rank."""
    rows = vocabulary_rows(vocab_size, size)
    return min(rank * rows, vocab_size), min((rank + 1) * rows, vocab_size)


def shares_of_rank(config: ModelConfig, names: TensorNames, rank: int, size: int) -> dict[str, Share]:
    """Return what a rank has of each module of the checkpoint that is cut.

    Args:
        config: of the whole model.
        names: of its modules.
        rank: which.
        size: how many there are.
    """
    hidden, own = config.hidden_size, config_of_rank(config, size)
    tokens = vocabulary_span(config.vocab_size, rank, size)
    shares = {names.embedding: _rows((config.vocab_size, hidden), [tokens])}
    if not config.tie_word_embeddings:
        shares[names.head] = shares[names.embedding]
    attention = _attention_shares(config, own, names, rank, size)
    feed_forward = _feed_forward_shares(
        names.gate_up, names.down, hidden, config.intermediate_size, own.intermediate_size, rank
    )
    expert: dict[str, Share] = {}
    if config.experts is not None and own.experts is not None:
        whole, part = config.experts.intermediate_size, own.experts.intermediate_size
        expert = _feed_forward_shares(names.expert_gate_up, names.expert_down, hidden, whole, part, rank)
    for index, layer in enumerate(config.layers):
        prefix = names.layer.format(layer=index)
        shares |= {prefix + name: share for name, share in attention.items()}
        if not layer.experts:
            shares |= {prefix + name: share for name, share in feed_forward.items()}
            continue
        assert config.experts is not None, "the layer has experts"
        for number in range(config.experts.num_experts):
            before = prefix + names.expert.format(expert=number)
            shares |= {before + name: share for name, share in expert.items()}
    return shares


def _attention_shares(
    config: ModelConfig, own: ModelConfig, names: TensorNames, rank: int, size: int
) -> dict[str, Share]:
    width, hidden = config.head_dim, config.hidden_size
    q_size, kv_size = config.num_heads * width, config.num_kv_heads * width
    queries = _span(rank * own.num_heads * width, own.num_heads * width)
    # With more ranks than key-value heads several have the same one.
    keys = _span(rank * config.num_kv_heads // size * width, own.num_kv_heads * width)
    output = Share((hidden, q_size), ((0, hidden),), queries)
    if len(names.qkv) == 3:
        q, k, v = names.qkv
        of_keys = _rows((kv_size, hidden), [keys])
        return {q: _rows((q_size, hidden), [queries]), k: of_keys, v: of_keys, names.output: output}
    fused = [queries, _moved(keys, q_size), _moved(keys, q_size + kv_size)]
    return {names.qkv[0]: _rows((q_size + 2 * kv_size, hidden), fused), names.output: output}


def _feed_forward_shares(
    gate_up: tuple[str, ...], down: str, hidden: int, whole: int, part: int, rank: int
) -> dict[str, Share]:
    own = _span(rank * part, part)
    shares = {down: Share((hidden, whole), ((0, hidden),), own)}
    if len(gate_up) == 1:
        return shares | {gate_up[0]: _rows((2 * whole, hidden), [own, _moved(own, whole)])}
    return shares | {name: _rows((whole, hidden), [own]) for name in gate_up}


def _rows(shape: tuple[int, int], spans: list[Span]) -> Share:
    return Share(shape, tuple(spans), (0, shape[1]))


def _span(start: int, length: int) -> Span:
    return start, start + length


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def formats_of_rank(stored: StoredFormat, shares: dict[str, Share]) -> StoredFormat:
    """Return what says how this rank's columns of a module are kept as they are in the checkpoint.

    Raises, when it is called:
        ValueError: columns that share a scale would lie on two ranks.
    """

    def kept(name: str, in_features: int) -> WeightFormat | None:
        share = shares.get(name)
        if share is None:
            return stored(name, in_features)
        return share.kept_format(name, stored(name, share.shape[1]))

    return kept


def cut_targets(targets: ModelTargets, shares: dict[str, Share], rank: int) -> ModelTargets:
    """Say of each target which part of the checkpoint's tensor fills it.

    Args:
        targets: of a model with the sizes of one rank.
        shares: of that rank, by module.
        rank: only rank 0 keeps the biases of results that are added over all ranks.
    """
    matrices = {name: replace(target, share=shares.get(name)) for name, target in targets.matrices.items()}
    vectors: dict[str, VectorTarget] = {}
    for name, target in targets.vectors.items():
        share = shares.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
        if share is not None and share.cuts_columns:
            if rank:
                target.tensor.zero_()
            share = None if rank == 0 else replace(share, rows=())
        vectors[name] = replace(target, share=share)
    return ModelTargets(matrices, vectors)
