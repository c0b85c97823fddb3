"""The protocol between `clara bench` and a rival in an environment of its own: one JSON object a
line, on standard input and output. Needs nothing but Python 3.8; copy it beside `rival.py`.

    in   {"protocol": 1, "top_k": 5, "max_new_tokens": 16}
    out  {"ready": true}
    in   {"id": 1, "question": "...", "passages": [{"id": "0", "text": "..."}, ...]}
    out  {"id": 1, "answer": "...", "picks": ["3", "0"], "context_tokens": 80}
    or   {"id": 1, "error": "out of memory"}

`picks` are the ids of the passages read, best first (left out: all, as given); `context_tokens`
what stood for them in the prompt. A compressor of text answers {"id": 1, "passages": [{"id": "0",
"text": "what is left"}, ...]} instead. The end of the input is the end of the program.
"""

import json
import os
import sys
import traceback


def serve(open_rival):
    """Answer until the input ends. `open_rival(hello)` loads the weights and returns a function
    from a request to the fields of its reply. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(record):
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    answer = open_rival(json.loads(sys.stdin.readline()))
    send({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(request)
        except Exception as error:  # of this question; the next one may be answered
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        send({"id": request["id"], **reply})


def texts_of(request):
    """The texts of a request's passages, in order."""
    return [passage["text"] for passage in request["passages"]]


def class_in(folder, kind="AutoModel"):
    """The model class that lies as code in a folder of weights: the one its config.json names for
    `kind`. It is imported from the folder you named; nothing is fetched."""
    import importlib.util
    import types

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as stream:
        named = json.load(stream)["auto_map"][kind]
    module, _, name = named.rpartition("--")[2].rpartition(".")
    package = types.ModuleType("rival_code")
    package.__path__ = [folder]
    sys.modules["rival_code"] = package
    path = os.path.join(folder, module + ".py")
    spec = importlib.util.spec_from_file_location("rival_code." + module, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)
