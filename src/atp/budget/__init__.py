"""What a model costs, and the plan for a cost: FLOPs, plans for a budget, counts per input, calibration.

Knows shapes, counts and score tensors; nothing of transformers, adapters or methods.
"""
