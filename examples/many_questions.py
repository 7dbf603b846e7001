"""Answer fifty questions at once: two workers each, and a synthesis as soon as both have written.

    python examples/many_questions.py --model smollm2-135m

Workers and syntheses of all questions share the steps of one engine.
"""

import argparse
import asyncio
import time

import psynth_jax as ps

ROLES = ("Solve it step by step.", "Name the numbers that are given, and what is asked.")


async def last_event(engine, request):
    """Return how a request ended."""
    async for event in engine.stream(request):
        last = event
    return last


async def answer(engine, question, tokens):
    """Let two workers write about a question, and answer it from what they wrote."""
    requests = []
    for index, role in enumerate(ROLES):
        prompt = f"{role}\n\n{question}"
        requests.append(ps.Request(prompt, index=index, max_new_tokens=tokens, keep=True))
    ends = await asyncio.gather(*(last_event(engine, request) for request in requests))
    branches = ps.Branches.join(*(end.branch for end in ends if end.branch is not None))
    end = await last_event(engine, ps.Request(question, branches, max_new_tokens=tokens))
    print(f"{question}\n    {end.result.text.strip()}", flush=True)


async def main(model, adapter, count, tokens):
    """Answer all questions."""
    begin = time.perf_counter()
    with ps.Engine(ps.load_model(model), adapter) as engine:
        questions = []
        for n in range(count):
            questions.append(f"{3 + n} boxes hold {2 + n % 7} pens each. How many pens are there?")
        await asyncio.gather(*(answer(engine, question, tokens) for question in questions))
        written, seconds = engine.stats()["decode_tokens"], time.perf_counter() - begin
        print(f"{count} questions, {written} tokens in {seconds:.0f} s, all included")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", help="directory or hub id")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=32, help="that each of them writes")
    args = parser.parse_args()
    asyncio.run(main(args.model, args.adapter, args.questions, args.tokens))
