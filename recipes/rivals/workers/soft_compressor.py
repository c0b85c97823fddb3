"""PISCO, OSCAR, COCOM, and CLaRa's released Base and Instruct by their own code: weights and code
in `model/` beside this file (`hf download naver/pisco-mistral --local-dir model`)."""

import os

from protocol import class_in, serve, texts_of

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")


def open_rival(hello):
    """Load once; each question reads every passage it comes with."""
    model = class_in(FOLDER).from_pretrained(FOLDER)
    device = os.environ.get("RIVAL_DEVICE", "cuda")
    model = model.to(device).eval()
    config = model.config
    rate = getattr(config, "compr_rate", None) or 1
    tokens = (getattr(config, "doc_max_length", 0) or 0) // rate

    def answer(request):
        texts = texts_of(request)
        said = model.generate_from_text(
            questions=[request["question"]],
            documents=[texts],
            max_new_tokens=hello["max_new_tokens"],
        )
        return {"answer": said[0], "context_tokens": tokens * len(texts)}

    return answer


if __name__ == "__main__":
    serve(open_rival)
