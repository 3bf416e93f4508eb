"""Choosing tokens on a GPU: what `draw` and `logit_edits` define, in a few kernels without a host in between.

A step of n rows takes two launches, four where rows may have penalties:

    penalties   change the logits of tokens that occurred, as many as a row's history is long
    scan        reads every logit once; per block of a row: largest logit, winner of the race, sum of weights
    decide      one program per row: puts the blocks together; rows with filters look again at what they need

Triton compiles or interprets a kernel when its module is imported, so nothing here is imported before
`kernels.triton.runtime.why_not` has been asked.
"""
