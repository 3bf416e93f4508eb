"""Masks of a whole step."""

import numpy as np
import pytest

from rhizome_engine.grammar.masks import fill_masks, mask_buffer
from rhizome_grammar.spec import Grammar


def bits_of(masks, row):
    return np.flatnonzero(np.unpackbits(masks.bits[row].view(np.uint8), bitorder="little")).tolist()


def test_each_row_gets_its_own_matchers_mask(byte_speaker):
    letters = "abcdefghij"
    rows = [(2 * i, byte_speaker.matcher(Grammar("regex", c + "!"))) for i, c in enumerate(letters)]
    masks = fill_masks(rows, byte_speaker.vocab_size)
    assert masks.rows.dtype == np.int64 and masks.rows.tolist() == list(range(0, 20, 2))
    assert masks.bits.dtype == np.int32 and masks.bits.shape == (10, 11)
    assert [bits_of(masks, row) for row in range(10)] == [[ord(c)] for c in letters]


def test_bit_31_of_a_word_is_token_31(byte_speaker):
    matcher = byte_speaker.matcher(Grammar("regex", "\x1f"))
    masks = fill_masks([(0, matcher)], byte_speaker.vocab_size)
    assert masks.bits[0, 0] == np.int32(-(2**31)) and not masks.bits[0, 1:].any()


def test_no_rows_give_no_masks(byte_speaker):
    masks = fill_masks([], byte_speaker.vocab_size)
    assert masks.rows.shape == (0,) and masks.bits.shape == (0, 11)


def test_a_buffer_is_overwritten_and_not_copied(byte_speaker):
    buffer = mask_buffer(4, byte_speaker.vocab_size)
    buffer[:] = -1
    matcher = byte_speaker.matcher(Grammar("regex", "a"))
    masks = fill_masks([(0, matcher)], byte_speaker.vocab_size, buffer)
    assert np.shares_memory(masks.bits, buffer)
    assert bits_of(masks, 0) == [ord("a")]
    assert (buffer[1:] == -1).all()


def test_another_vocabulary_than_the_compilers_is_refused(byte_speaker):
    with pytest.raises(ValueError, match="another vocabulary"):
        fill_masks([(0, byte_speaker.matcher(Grammar("regex", "a")))], 64)
