"""Robustness: disturbed pictures and questions, contrast questions, and what they do to a pruned model.

Begin at `disturb.py` (one disturbance by name) and `metrics.py` (pruned against unpruned).
"""
