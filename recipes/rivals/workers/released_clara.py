"""CLaRa's released E2E checkpoint by its own code, which picks the passages it reads: weights and
code in `model/` beside this file (its `compression-16` folder, with `modeling_clara.py`)."""

import os

from protocol import class_in, serve, texts_of

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")


def open_rival(hello):
    """Load once; each question picks `generation_top_k` of its passages."""
    model = class_in(FOLDER).from_pretrained(FOLDER)
    model = model.to(os.environ.get("RIVAL_DEVICE", "cuda")).eval()
    tokens = model.config.doc_max_length // model.config.compr_rate

    def answer(request):
        said, places = model.generate_from_questions(
            questions=[request["question"]],
            documents=[texts_of(request)],
            max_new_tokens=hello["max_new_tokens"],
        )
        picks = [str(int(place)) for place in places[0]]
        return {"answer": said[0], "picks": picks, "context_tokens": tokens * len(picks)}

    return answer


if __name__ == "__main__":
    serve(open_rival)
