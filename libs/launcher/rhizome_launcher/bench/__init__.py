"""`rhizome bench` and `rhizome eval`: how fast a server or an engine is, and how good a model stays.

`bench serve` is a load generator: `workload` and `calibration` make prompts, `load` sends them in time with
`arrivals`, `client` and `sse` read the answers into `records`, `figures` reduces those to numbers, `report`
and `plot` show them. `bench engine` and `eval` ask a process of the engine (`engine_process`), because only
the engine may load torch.
"""
