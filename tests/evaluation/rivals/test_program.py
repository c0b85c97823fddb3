"""Rivals in an environment of their own: a stand-in environment, made here, that follows the
protocol, and ones that break it."""

from __future__ import annotations

import json
import os
import shutil
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara_cli.bench_records import BenchResult
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.rivals import build, program
from clara_cli.evaluation.rivals.program import Program, ProgramError

ROOT = Path(__file__).parents[3]
WORKERS = ROOT / "recipes" / "rivals" / "workers"

GOOD = """
from protocol import serve

def open_rival(hello):
    print("libraries print what they like")
    def answer(request):
        if "Redwater" in request["question"]:
            raise MemoryError("out of memory")
        best = [p for p in request["passages"] if request["question"].split()[-1][:-1] in p["text"]]
        name = best[0]["text"].rsplit(" ", 2)[1:]
        picks = [p["id"] for p in best][: hello["top_k"]]
        return {"answer": " ".join(name).strip("."), "picks": picks, "context_tokens": 8}
    return answer

serve(open_rival)
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without packages, as a user makes one."""
    folder = tmp_path_factory.mktemp("environment") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


@pytest.fixture
def environment(python: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder with that environment's Python, the protocol and a worker of this code."""

    def make(code: str) -> Path:
        folder = tmp_path / "rival"
        shutil.copytree(python, folder, symlinks=True, dirs_exist_ok=True)
        shutil.copy(WORKERS / "protocol.py", folder)
        (folder / "rival.py").write_text(code)
        return folder

    return make


def go(mayors: Path, checkpoint: Path, report: Any, system: str, **changes: Any) -> BenchResult:
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint)}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 2}
    settings["system"] = f"closed-book,{system}"
    done = bench.run(BenchConfig(**{**settings, **changes}), report)
    assert isinstance(done, BenchResult)
    return done


def lines(folder: Path, system: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [line for line in found if line["system"] == system]


def test_a_rival_answers_and_picks_in_its_own_environment(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, environment: Any
) -> None:
    done = go(mayors, checkpoint, report, f"pisco={environment(GOOD)}", out=tmp_path / "o")
    card = done.systems[1]
    assert (card.name, card.ratio, card.context_tokens) == ("pisco", 16, 8)
    assert (card.em, card.unanswered) == (1.0, 1)
    assert card.error == "MemoryError: out of memory"
    told = lines(tmp_path / "o", "pisco")
    assert [line["id"] for line in told if line["prediction"] is None] == ["q4"]
    assert all(line["hits"] == line["gold"] for line in told if line["prediction"] is not None)


def test_long_paragraphs_keep_their_ids(
    checkpoint: Path, tmp_path: Path, report: Any, environment: Any
) -> None:
    """A paragraph cut into several passages is one hit."""
    code = GOOD.replace("[:-1] in p", "[:0] in p")
    text = "The mayor of Elmgate is Nora Velden. " * 4
    record = {"id": "q", "question": "Who is it?", "answer": "Nora Velden"}
    record["paragraphs"] = [{"id": "long", "text": text, "gold": True}]
    data = tmp_path / "q.jsonl"
    data.write_text(json.dumps(record) + "\n")
    done = go(data, checkpoint, report, f"external={environment(code)}", out=tmp_path / "o")
    assert (done.systems[1].error, done.systems[1].ratio) == ("", None)
    assert [line["hits"] for line in lines(tmp_path / "o", "external")] == [["long"]]


def test_provence_prunes_and_the_backbone_reads(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, environment: Any
) -> None:
    """The worker of the recipe on a stand-in for the weights' own code."""
    folder = environment((WORKERS / "provence.py").read_text())
    stand_in(
        folder,
        "modeling_provence.Provence",
        """
    def process(self, question, text):
        return {"pruned_context": text if question.split()[-1][:-1] in text else ""}
    """,
    )
    done = go(mayors, checkpoint, report, f"text,provence={folder}", out=tmp_path / "o")
    _, text, pruned = done.systems
    assert pruned.error == "" and 0 < pruned.context_tokens < text.context_tokens
    told = lines(tmp_path / "o", "provence")
    assert all(line["hits"] == line["gold"] for line in told)


def stand_in(folder: Path, named: str, methods: str) -> None:
    """Weights with code of their own, in the form of the published ones."""
    module, _, name = named.partition(".")
    (folder / "model").mkdir()
    settings = {"auto_map": {"AutoModel": named}, "compr_rate": 16, "doc_max_length": 128}
    (folder / "model" / "config.json").write_text(json.dumps(settings))
    (folder / "model" / "sizes.py").write_text("RATE, LONGEST = 16, 128\n")
    (folder / "model" / f"{module}.py").write_text(f"""
from .sizes import LONGEST, RATE

class config:
    compr_rate, doc_max_length = RATE, LONGEST

class {name}:
    config = config
    @classmethod
    def from_pretrained(cls, folder):
        return cls()
    def to(self, device):
        return self
    def eval(self):
        return self
{methods}
""")


@pytest.mark.parametrize("worker", ["soft_compressor", "released_clara"])
def test_the_recipes_workers_run_the_code_that_comes_with_the_weights(
    worker: str, mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, environment: Any
) -> None:
    folder = environment((WORKERS / f"{worker}.py").read_text())
    stand_in(
        folder,
        "modelling_pisco.PISCO",
        """
    def generate_from_text(self, questions, documents, max_new_tokens):
        assert max_new_tokens == 2 and len(questions) == len(documents) == 1
        return [documents[0][0].rsplit(" is ", 1)[1].strip(".")]
    def generate_from_questions(self, questions, documents, max_new_tokens):
        return self.generate_from_text(questions, documents, max_new_tokens), [[2, 0]]
    """,
    )
    system = "oscar" if worker == "soft_compressor" else "released-clara"
    done = go(mayors, checkpoint, report, f"{system}={folder}", limit=1, out=tmp_path / "o")
    card = done.systems[1]
    ratio = 16 if system == "oscar" else None  # CLaRa's comes at 16 and at 128
    assert (card.error, card.em, card.ratio) == ("", 1.0, ratio)
    (line,) = lines(tmp_path / "o", system)
    assert line["hits"] == (["0", "1", "2"] if system == "oscar" else ["2", "0"])
    assert card.context_tokens == 8 * len(line["hits"])


TORCH = "bfloat16 = None\n"
TRANSFORMERS = """
class Ids:
    def __init__(self, rows):
        self.rows, self.shape = rows, (len(rows), len(rows[0]))
        self.input_ids = self
    def to(self, device):
        return self
    def __getitem__(self, row):
        return self.rows[row]

class AutoTokenizer:
    @classmethod
    def from_pretrained(cls, folder):
        return cls()
    def __call__(self, text, add_special_tokens, return_tensors):
        return Ids([text.split()])
    def decode(self, words, skip_special_tokens):
        return " ".join(words)
"""
AUTO_COMPRESSOR = """
from transformers import Ids

class LlamaAutoCompressorModel:
    @classmethod
    def from_pretrained(cls, folder, torch_dtype):
        return cls()
    def eval(self):
        return self
    def to(self, device):
        return self
    def __call__(self, ids, output_softprompt):
        self.softprompt = Ids([ids[0][-3:]])
        return self
    def generate(self, prompt, do_sample, softprompt, max_new_tokens):
        assert not do_sample and prompt[0][-1] == "Answer:"
        return [prompt[0] + softprompt[0][:max_new_tokens + 1]]
"""


def test_autocompressors_worker_answers_from_summary_vectors(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, environment: Any
) -> None:
    """Stand-ins for torch, transformers and the repository's class: the last three words of the
    passages are the summary, which is also the answer."""
    folder = environment((WORKERS / "autocompressor.py").read_text())
    for name, code in (
        ("torch", TORCH),
        ("transformers", TRANSFORMERS),
        ("auto_compressor", AUTO_COMPRESSOR),
    ):
        (folder / f"{name}.py").write_text(code)
    done = go(mayors, checkpoint, report, f"autocompressor={folder}", limit=1, out=tmp_path / "o")
    card = done.systems[1]
    assert (card.error, card.context_tokens) == ("", 3)
    (line,) = lines(tmp_path / "o", "autocompressor")
    assert line["prediction"] == "is Una Holt." and line["hits"] == ["0", "1", "2"]


def test_an_unfilled_template_says_so(
    mayors: Path, checkpoint: Path, report: Any, environment: Any
) -> None:
    folder = environment((WORKERS / "template.py").read_text())
    card = go(mayors, checkpoint, report, f"lclm={folder}", limit=1).systems[1]
    assert "fill in load()" in card.error and card.unanswered == 1


def test_no_key_or_token_of_ours_reaches_it(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLARA_LLM_API_KEY", "sk-1")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RIVAL_DEVICE", "cpu")
    folder = environment("""
import os
from protocol import serve
serve(lambda hello: lambda request: {"answer": " ".join(sorted(os.environ))})
""")
    made = Program(folder, {}, 20, 20)
    names = made.ask({"question": "", "passages": []})["answer"].split()
    made.close()
    assert "RIVAL_DEVICE" in names and "PATH" in names
    assert not {"CLARA_LLM_API_KEY", "HF_TOKEN", "PYTHONPATH"} & set(names)


DIES = "from protocol import serve\nimport os, sys\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no CUDA here')", "ended with code 1: no CUDA here"),
        (
            DIES + "serve(lambda hello: lambda request: os._exit(9))",
            "the program ended with code 9",
        ),
        ("print('hello', flush=True)\nimport time\ntime.sleep(60)", "not JSON"),
        ("import sys\nsys.stdin.readline()\nprint('[1]', flush=True)", "no object"),
        ("import sys\nsys.stdin.readline()\nprint('{}', flush=True)", "not ready: {}"),
        (
            "import sys\nsys.stdin.readline()\nprint('{\"ready\": true}', flush=True)\n"
            'sys.stdin.readline()\nprint(\'{"id": 7, "answer": "x"}\', flush=True)',
            "to request 1",
        ),
        ("import time\ntime.sleep(60)", "did not answer within 0.5 s"),
        (
            DIES + "import time\nserve(lambda hello: lambda request: time.sleep(60))",
            "did not answer within 0.5",
        ),
    ],
)
def test_a_program_that_dies_hangs_or_says_something_else_is_its_rows_error(
    code: str,
    said: str,
    mayors: Path,
    checkpoint: Path,
    report: Any,
    environment: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "PATIENCE", 0.5)
    monkeypatch.setattr(build, "STARTING", 1 if said.endswith("0.5 s") else 40)
    timeout = 0.5 if "within" in said else 20.0
    folder = environment(code)
    done = go(mayors, checkpoint, report, f"pcc={folder}", answer_timeout=timeout, limit=2)
    card = done.systems[1]
    assert said in card.error, card.error
    assert (card.em, card.unanswered, done.systems[0].error) == (None, 2, "")


@pytest.mark.parametrize(
    "reply",
    [
        {"answer": 3},
        {"picks": ["0"]},
        {"answer": "x", "picks": ["9"]},
        {"answer": "x", "picks": [0]},
        {"answer": "x", "context_tokens": -1},
        {"answer": "x", "context_tokens": "many"},
    ],
)
def test_a_reply_of_another_form_is_no_wrong_answer(
    reply: dict[str, Any], mayors: Path, checkpoint: Path, report: Any, environment: Any
) -> None:
    code = f"from protocol import serve\nserve(lambda hello: lambda request: {reply!r})"
    card = go(mayors, checkpoint, report, f"xrag={environment(code)}", limit=2).systems[1]
    assert "another form" in card.error
    assert (card.em, card.unanswered) == (None, 2)


def test_it_is_ended_with_its_children(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PATIENCE", 0.5)
    folder = environment("""
import os, subprocess, sys, signal
from protocol import serve
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
serve(lambda hello: lambda request: {"answer": f"{os.getpid()} {child.pid}"})
import time; time.sleep(600)
""")
    made = Program(folder, {}, 20, 20)
    pids = [int(pid) for pid in made.ask({"question": "", "passages": []})["answer"].split()]
    assert all(alive(pid) for pid in pids)
    made.close()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and waits to be counted does not)."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_a_folder_that_is_no_environment_is_refused_with_the_guide(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no bin/python") as caught:
        Program(tmp_path, {}, 1, 1)
    assert "recipes/rivals" in caught.value.hint


def test_a_program_that_reads_nothing_does_not_hold_us(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds is sent to one that never reads."""
    monkeypatch.setattr(program, "PATIENCE", 0.2)
    folder = environment("""
import sys, time
sys.stdin.readline()
print('{"ready": true}', flush=True)
time.sleep(60)
""")
    made = Program(folder, {}, 0.5, 20)
    with pytest.raises(ProgramError, match="did not answer within 0.5 s"):
        made.ask({"question": "x" * 2**20, "passages": []})
