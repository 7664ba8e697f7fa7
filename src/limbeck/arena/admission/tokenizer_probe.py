"""The child process of the tokenizer check: `python -m limbeck.arena.admission.tokenizer_probe CANDIDATE TEACHER`.

It prints `teacher loaded` when the trusted half is done, and as its last line a JSON object: the digests of both
tokenizers and `differs_on`, the first reference text that they cut differently; or `error`, or `teacher_error`. It has
no network (the Hub's offline switch) and 60 s of processor time for the candidate's half.
"""

import json
import os
import resource
import sys

CPU_SECONDS = 60
REFERENCE_TEXTS = (
    "The quick brown fox jumps over the lazy dog. 0123456789",
    'def greet(name: str) -> str:\n    return f"Hello, {name}!"  # a comment\n',
    "蒸留とは、液体を沸騰させ、その蒸気を集めることである。",
    "∑_{i=1}^{n} x_i² ≤ 3.14159e\u221210 \\frac{a}{b}",
    "  leading, \t tabs\t and trailing spaces   \n\n\n",
    "emoji 👩‍🔬🧪 and accents: àéîõü ß Ω",
    "<|user|>Hello<|assistant|>Hi<|endoftext|>",
    "",
)


def main(candidate: str, teacher: str) -> None:
    """Compare two tokenizer folders and print the answer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
    from limbeck.errors import UserError

    try:
        original = load_tokenizer(teacher)
    except UserError as error:
        print(json.dumps({"teacher_error": str(error)}))
        return
    print("teacher loaded", flush=True)
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS))
    try:
        copy = load_tokenizer(candidate)
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return
    differing = (text for text in REFERENCE_TEXTS if copy(text)["input_ids"] != original(text)["input_ids"])
    answer = {"digest": tokenizer_digest(copy), "teacher_digest": tokenizer_digest(original)}
    print(json.dumps({**answer, "differs_on": next(differing, None)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
