"""What happens at one site: scores, counts, who stays, and what they take over from those that leave. Part of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from atp.budget.allocate import allocate_adaptive, fixed_counts
from atp.engine.facts import Facts, Place, merge
from atp.engine.standing import Finite
from atp.engine.words import word_counts, word_tokens
from atp.errors import AtpError, InvalidPlan
from atp.methods.base import Method
from atp.plan import Step
from atp.tokens import Tokens
from atp.trace import Record
from atp.tracing import clock, traced


@dataclass
class Chooser:
    """Scores and chooses at the sites of one plan.

    Attributes:
        method: the method.
        template: ids that ask no question, on the host.
        score_all: whether to score at sites where nothing leaves.
        spent: FLOPs of choosing so far.
        packed: stacks in which padding ran through attention only.
        levelled: stacks in which all inputs of a batch kept as many as the largest, for want of a mask.
    """

    method: Method
    template: frozenset[int] = frozenset()
    score_all: bool = False
    spent: float = 0.0
    levelled: set[str] = field(default_factory=set)
    packed: set[str] = field(default_factory=set)
    finite: Finite = field(default_factory=Finite)

    def choose(self, step: Step, place: Place, forward: int) -> tuple[Record, Tensor]:
        """Decide who stays at a step, change the census, and return what was done and the states to go on with."""
        begin = clock()
        census, view, hidden = place.census, place.view, place.hidden
        before, counts, scores, keep, measured = census.alive, None, None, census.alive, None
        if not step.adaptive:
            counts = fixed_counts(step, census.started, census.counts)
        rates = self.score_all or (self.method.carries and view.name == "vision")
        if counts != census.counts or (rates and "visual" in self.method.kinds):
            with torch.no_grad():
                tokens = self._tokens(place, counts)
                scores = self._scores(tokens)
                measured = self.method.measure(scores, tokens) if step.adaptive or self.score_all else None
                chosen, counts = self._counted(step, place, tokens, scores, counts, measured)
                if counts != census.counts:
                    keep = self.method.select(scores, tokens, chosen)
            if counts != census.counts and self.method.merges(view.name):
                hidden, census.sizes = merge(self.method, place, tokens, keep, scores)
            if not traced():
                self.spent += self.facts.flops(tokens, place, counts)
            census.rated = scores, before
        assert counts is not None
        census.alive, census.counts, census.history[step.site.layer] = keep, counts, counts
        record = Record(
            forward=forward,
            stack=view.name,
            layer=step.site.layer,
            input_index=list(range(len(counts))),
            started=list(census.started),
            counts=list(counts),
            keep=keep,
            raw_scores=scores,
            alive=before,
            seconds=clock() - begin,
            measured=measured,
        )
        return record, hidden

    def spell(self, step: Step, place: Place, forward: int) -> Record | None:
        """Decide which text tokens stay at a step, and change the census; None = the step leaves text alone."""
        begin, words = clock(), place.census.words
        if step.text == 1 or words is None:
            return None
        before, scores, keep, counts = words.alive, None, words.alive, word_counts(step.text, words)
        if counts != words.counts:
            with torch.no_grad():
                tokens, spent = word_tokens(self.method, place, self.template)
                scores = self._scores(tokens)
                self.finite.note(step.site, scores, tokens.alive)
                free = torch.tensor([a - b for a, b in zip(counts, words.least, strict=True)], device=scores.device)
                keep = self.method.select(scores, tokens, free) | words.held
            self.spent += spent
        place.census.spell(keep, counts, step.site.layer)
        return Record(
            forward=forward,
            stack="text",
            layer=step.site.layer,
            input_index=list(range(len(counts))),
            started=list(words.started),
            counts=list(counts),
            keep=keep,
            raw_scores=scores,
            alive=before,
            seconds=clock() - begin,
        )

    def _counted(
        self,
        step: Step,
        place: Place,
        tokens: Tokens,
        scores: Tensor,
        counts: list[int] | None,
        measured: Tensor | None,
    ) -> tuple[Tensor, list[int]]:
        """Return how many tokens each input keeps, on the device and on the host.

        Raises:
            InvalidPlan: a count of the method's own where scores are recorded to calibrate thresholds; an absolute threshold
                for a method that measures nothing.
        """
        census, view = place.census, place.view
        if counts is None:
            assert step.threshold is not None
            own = self.method.count(scores, tokens, step.threshold)
            if own is not None and self.score_all:
                raise InvalidPlan(
                    f"method {self.method.name!r} counts by a rule of its own at {step.site}, which cannot be calibrated; "
                    "use a fixed plan, or choose thresholds yourself and leave record_all_scores away"
                )
            if step.absolute and measured is None:
                raise InvalidPlan(
                    f"step at {step.site}: method {self.method.name!r} measures nothing there that an absolute threshold could "
                    "be compared with; set the step's absolute to False, or its threshold to None"
                )
            started = torch.tensor(census.started, device=scores.device)
            bars = measured if step.absolute and measured is not None else scores
            chosen, counts = allocate_adaptive(bars, census.alive, step, started, own)
        else:
            chosen = torch.tensor(counts, device=scores.device)
            self.finite.note(step.site, scores, census.alive)
        if not view.maskable and len(set(counts)) > 1:  # nothing can hide padding: the batch's largest count for all
            counts = [max(counts)] * len(counts)
            self.levelled.add(view.name)
            chosen = torch.full_like(chosen, counts[0])
        return chosen, counts

    def _scores(self, tokens: Tokens) -> Tensor:
        scores = self.method.score(tokens)
        if scores.shape != tokens.alive.shape:
            raise AtpError(
                f"method {self.method.name!r} at {tokens.stack}:{tokens.layer} returned scores of shape {list(scores.shape)}, "
                f"expected {list(tokens.alive.shape)}: one row an input, one column a token"
            )
        return scores.detach()

    @property
    def facts(self) -> Facts:
        """What tells the method of a site."""
        return Facts(self.method, self.template)

    def _tokens(self, place: Place, counts: list[int] | None) -> Tokens:
        tokens, spent = self.facts.tokens(place, counts)
        if not traced():
            self.spent += spent
        return tokens
