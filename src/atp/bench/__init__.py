"""`atp bench`: how much faster a model becomes, next to what the FLOPs promise, both sides in one process, in turn.

Uses the public API, the adapters' parts and the run's report; nothing of methods or of the engine's inside.
"""
