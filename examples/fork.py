"""Read a document once, let eight reviewers go on from it, and sum up what they say.

    python examples/fork.py LICENSE --model smollm2-135m

The reviewers' prompts begin with the same document: it is prefilled for the first of them alone.
"""

import argparse
from pathlib import Path

import psynth_jax as ps

ASKED = (
    "What is it about?",
    "Who may use it?",
    "What must one do?",
    "What must one not do?",
    "Which words does it define?",
    "What does it say of patents?",
    "What does it say of warranty?",
    "When does it end?",
)


def main(path, model, adapter, tokens):
    """Print each review, the summary, and what was prefilled."""
    document = Path(path).read_text(encoding="utf-8")
    with ps.Engine(ps.load_model(model), adapter) as engine:
        handles = []
        for index, question in enumerate(ASKED):
            prompt = f"{document}\n\n{question} Answer in one sentence."
            request = ps.Request(prompt, index=index, max_new_tokens=tokens, keep=True)
            handles.append(engine.submit(request))
        written = []
        for question, handle in zip(ASKED, handles, strict=True):
            print(f"{question}\n    {handle.result().text.strip()}", flush=True)
            if handle.branch is not None:
                written.append(handle.branch)
        question = "What should a reader know?"
        request = ps.Request(question, ps.Branches.join(*written), max_new_tokens=tokens)
        print(f"{question}\n    {engine.submit(request).result().text.strip()}")
        asked = sum(handle.result().prompt_tokens for handle in handles)
        run = sum(handle.result().prefilled_tokens for handle in handles)
        print(f"the reviewers' prompts have {asked:,} tokens, of which {run:,} were prefilled")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", help="text file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", help="directory or hub id")
    parser.add_argument("--tokens", type=int, default=32, help="that each of them writes")
    args = parser.parse_args()
    main(args.document, args.model, args.adapter, args.tokens)
