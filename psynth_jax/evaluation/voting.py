"""What a question gets without any synthesizer: the workers' majority, and the best that choosing among them could reach.

    branch -> `Task.vote_key` -> one vote
    branch -> `Task.judged`   -> its scores

Knows texts only, no model.
"""

from __future__ import annotations

from collections import Counter

from psynth_jax.evaluation.tasks import Question, Task


def elected(task: Task, question: Question) -> str:
    """Return the text of a branch that gives the most frequent answer.

    Among answers of equally many branches, that of the branch which comes first wins, and of the branches which give the
    winning answer the first one is returned.  A branch without an answer has no vote; "" if none has one.
    """
    votes: Counter[str] = Counter()
    first: dict[str, str] = {}
    for text in question.texts:
        answer = task.vote_key(text, question)
        if not answer:
            continue
        votes[answer] += 1
        first.setdefault(answer, text)
    if not votes:
        return ""
    # `max` returns the first of several largest, and a Counter keeps the order in which answers came.
    winner = max(votes, key=lambda answer: votes[answer])
    return first[winner]


def best_worker(task: Task, question: Question) -> str:
    """Return the text of the branch with the best scores, the first of several; "" without a branch."""
    best = ""
    best_scores: tuple[float, ...] = ()
    for text in question.texts:
        scores = tuple(task.judged(text, question)[1].values())
        if scores > best_scores:
            best, best_scores = text, scores
    return best
