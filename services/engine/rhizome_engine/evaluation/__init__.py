"""Measures the engine in its own process: how fast it is, how well a checkpoint predicts and answers.

`python -m rhizome_engine.evaluation speed|perplexity|skills` prints one JSON object; `rhizome bench engine`
and `rhizome eval` run it and show the result.
"""
