"""The shipped checkpoint at work: held-out word problems, answers as they come, and which of them are right.

Usage: python examples/demo.py [MODEL]
"""

import sys
from itertools import islice
from pathlib import Path
from statistics import median

import mla_jax
from mla_jax.tasks.arithmetic import final_answer, problems

QUESTIONS = 5


def main(model: str | Path) -> None:
    llm = mla_jax.LLM(model, max_model_len=256, max_num_seqs=1)
    params = mla_jax.SamplingParams(max_tokens=128, temperature=0.0)
    right, rates = 0, []
    for problem in islice(problems("test", "demo"), QUESTIONS):
        print(f"\n{problem.question}\n", flush=True)
        prompt = llm.encode_chat([{"role": "user", "content": problem.question}])
        text = ""
        for piece in llm.stream(prompt, params):
            text += piece.text
            print(piece.text, end="", flush=True)
        rates.append(piece.generation_tps)
        if final_answer(text) == str(problem.answer):
            right += 1
            print("   [right]")
        else:
            print(f"   [wrong: it is {problem.answer}]")
    # The first answer waited for the compiler.
    print(f"\n{right} of {QUESTIONS} right, {median(rates[1:]):.0f} tokens/s")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("usage: demo.py [MODEL]")
    main(sys.argv[1] if len(sys.argv) == 2 else Path(__file__).resolve().parent / "arithmetic")
