"""Reasoning patterns in what models write, in games and in math: the analysis of the SPIRAL paper (arXiv 2506.24119,
section 4.1 and appendix F).

1. [`~.traces.read_traces`]: all replies of a seat in a game, or a solution, is one trace.
2. [`~.discovery.discover`]: a judge names the patterns of sampled traces, bottom up, as a draft of a rubric.
3. [`~.labelling.label_by_judge`]: a judge votes on every trace by a rubric; a verdict of presence counts only with a quote
   that stands in the trace. [`~.labelling.label_by_rules`] is an offline heuristic.
4. [`~.prevalence.measure`]: shares by checkpoint and success with intervals, their change over training, and games
   against math; [`~.agreement.measure_agreement`]: kappa against labels of people.

Answers are kept on disk by a hash of what was asked ([`~.cache.AnswerCache`]): nothing is asked, or paid for, twice.
"""

from .agreement import (
    Agreement,
    Labelled,
    cohen_kappa,
    fleiss_kappa,
    matched,
    measure_agreement,
    read_labelled,
    votes_kappa,
    write_sample,
)
from .cache import AnswerCache
from .discovery import Discovered, Discovery, discover, discovery_requests
from .judge import Judge, Plan, Request
from .labelling import HEURISTIC, Label, Labelling, classification_requests, label_by_judge, label_by_rules
from .prevalence import Change, Measures, Prevalence, Rate, Transfer, measure
from .rubric import LexicalRules, Pattern, Rubric, load_rubric, rubric_yaml
from .traces import DOMAINS, Trace, order_checkpoints, read_traces, sample_traces


__all__ = [
    "DOMAINS",
    "HEURISTIC",
    "Agreement",
    "AnswerCache",
    "Change",
    "Discovered",
    "Discovery",
    "Judge",
    "Label",
    "Labelled",
    "Labelling",
    "LexicalRules",
    "Measures",
    "Pattern",
    "Plan",
    "Prevalence",
    "Rate",
    "Request",
    "Rubric",
    "Trace",
    "Transfer",
    "classification_requests",
    "cohen_kappa",
    "discover",
    "discovery_requests",
    "fleiss_kappa",
    "label_by_judge",
    "label_by_rules",
    "load_rubric",
    "matched",
    "measure",
    "measure_agreement",
    "order_checkpoints",
    "read_labelled",
    "read_traces",
    "rubric_yaml",
    "sample_traces",
    "votes_kappa",
    "write_sample",
]
