"""A rival to fill in: two functions, `load` and `answer_question`. For xRAG, LCLM, ComprExIT,
ARC-Encoder, Latent Memory, PCC and programs of your own."""

from protocol import serve, texts_of


def load(hello):
    """Load the weights by the rival's own code. `hello` has top_k and max_new_tokens."""
    raise NotImplementedError("fill in load() and answer_question() of rival.py")


def answer_question(model, question, texts, hello):
    """(answer, places of the texts it read, tokens that stood for them in the prompt)."""
    raise NotImplementedError


def open_rival(hello):
    """The two of them as the protocol wants it."""
    model = load(hello)

    def answer(request):
        said, places, tokens = answer_question(model, request["question"], texts_of(request), hello)
        picks = [request["passages"][place]["id"] for place in places]
        return {"answer": said, "picks": picks, "context_tokens": tokens}

    return answer


if __name__ == "__main__":
    serve(open_rival)
