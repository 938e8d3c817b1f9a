"""The page of an evaluation, in one step."""

from collections.abc import Sequence

from finetune_jobs.evaluation.behaviour.comparison import Behaviour
from finetune_jobs.evaluation.conclusion import Conclusion
from finetune_jobs.evaluation.page import EvaluationSubject, lay_out
from finetune_jobs.evaluation.page_parts import render_page
from finetune_jobs.evaluation.report import Evaluated


def evaluation_html(
    evaluated: Evaluated,
    questions: Sequence[str],
    subject: EvaluationSubject,
    behaviour: Behaviour | None = None,
    shots: Sequence[tuple[str, str]] = (),
    goals: Sequence[Conclusion] = (),
) -> str:
    """As the stage writes it."""
    return render_page(lay_out(evaluated, questions, subject, behaviour, shots), goals)
