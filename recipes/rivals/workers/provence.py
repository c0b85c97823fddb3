"""Provence prunes the sentences of each passage that do not help with the question: weights and
code in `model/` beside this file (`hf download naver/provence-reranker-debertav3-v1 ...`)."""

import os

from protocol import class_in, serve

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")


def open_rival(hello):
    """Load once; each passage is pruned by itself."""
    model = class_in(FOLDER).from_pretrained(FOLDER)
    model = model.to(os.environ.get("RIVAL_DEVICE", "cuda")).eval()

    def answer(request):
        left = []
        for passage in request["passages"]:
            pruned = model.process(request["question"], passage["text"])["pruned_context"]
            left.append({"id": passage["id"], "text": pruned})
        return {"passages": left}

    return answer


if __name__ == "__main__":
    serve(open_rival)
