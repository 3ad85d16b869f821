"""Does what stays lie on what is asked about, and do answers rest on it? `python -m atp.evals.grounding`.

Share, recall and the pointing game at every site, GQA's grounding score, each beside chance and beside the unpruned model's own
attention at equal counts; and the deletion test.
"""
