"""Image generation from the command line: train, resume, evaluate, draw, compare, store and export."""

import json
import signal
import time

import pytest
from click.testing import CliRunner
from PIL import Image

import rankfold
from rankfold.cli.main import cli
from tests.support import killing
from tests.support.killing import start
from tests.support.picture_models import CAPTIONS, write_pictures, write_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WEIGHTS = "adapter_model.safetensors"
STEPS, EVERY = 12, 4
OPTIONS = ("--kind-set", "side=16", "--kind-set", "samples=2", "--kind-set", "sample_steps=2")


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result


def refuse(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code in (1, 2), result.stdout
    return result.stderr


def train_words(base, data, out, *more, options=OPTIONS):
    words = ["train", "--model", base, "--data", data, "--method", "lora", "--out", out, *options]
    return [*words, "--batch-size", 4, "--learning-rate", 0.01, "--threads", 1, "--validate", "end", *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("base") / "pixels", "pixels")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "train", 16)
    write_pictures(folder / "validation", 4)
    return folder


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lora"
    call(*train_words(base, data, out, "--steps", STEPS, "--checkpoint-every", EVERY))
    return out


def read_record(folder):
    return json.loads((folder / "run.json").read_text("utf-8"))


def test_adapter_lowers_the_loss_of_the_base_on_the_same_noise(trained):
    record = read_record(trained)
    assert record["task"]["kind"] == "image_generation"
    assert record["task"]["settings"] == {"side": 16}
    assert record["metrics"]["denoising_loss"] < record["baselines"]["base"]
    losses = [item["label"] for item in record["predictions"]]
    assert record["baselines"]["base"] == pytest.approx(sum(losses) / len(losses))
    evaluated = json.loads(call("evaluate", trained, "--json").stdout)
    assert evaluated["metrics"] == record["metrics"]


def test_run_that_is_killed_goes_on_to_the_same_adapter(trained, base, data, tmp_path):
    out = tmp_path / "killed"
    words = train_words(base, data, out, "--steps", STEPS, "--checkpoint-every", EVERY)
    child = start(killing.call, words)
    unfinished = out.with_name(f"{out.name}.unfinished")
    while child.is_alive() and not list(unfinished.glob(f"**/checkpoint-{EVERY}/complete.json")):
        time.sleep(0.005)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    call("train", "--resume", "--out", out)
    assert (out / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_captions_are_drawn_into_a_folder_with_their_seed(trained, tmp_path):
    out = tmp_path / "pictures"
    words = ["predict", trained, "--denoising-steps", 2, "--seed", 5]
    call(*words, "--text", CAPTIONS[0], "--text", CAPTIONS[1], "--out", out)
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [line["seed"] for line in lines] == [5, 5]
    pixels = []
    for line in lines:
        with Image.open(out / line["prediction"]) as picture:
            assert picture.size == (16, 16)
            pixels.append(picture.tobytes())
    # One caption alone is drawn as among others, and the same in Python.
    (answer,) = rankfold.load(trained).predict(CAPTIONS[1], denoising_steps=2, seed=5)
    assert answer["picture"].tobytes() == pixels[1]
    assert "exists" in refuse(*words, "--text", "a", "--out", out)
    assert "name a folder" in refuse(*words, "--text", "a", "--out", tmp_path / "a.jsonl")
    assert "do not depend on 'temperature'" in refuse(
        *words, "--text", "a", "--temperature", 0.5, "--out", tmp_path / "other"
    )


def test_comparison_shows_the_pictures_of_all_methods_beside_each_other(base, data, without_charts, tmp_path):
    out = tmp_path / "compared"
    words = ["compare", "--model", base, "--data", data, "--out", out, "--seeds", 0, *OPTIONS]
    call(*words, "--method", "lora r=2", "--method", "tlora r=2", "--steps", 2, "--batch-size", 8)
    page = (out / "report.html").read_text("utf-8")
    assert page.count('src="data:image/webp;base64,') == 2 * 4  # captions × (data, base, two methods)
    run = next(path.parent for path in out.glob("*/run.json"))
    call("report", run)
    assert (run / "report.html").read_text("utf-8").count('src="data:image/webp;base64,') == 2 * 3


def test_stored_and_exported_adapter_draws_the_same(trained, data, tmp_path):
    store = tmp_path / "adapters.db"
    call("store", "put", store, "squares", trained)
    stored = json.loads(call("evaluate", f"{store}#squares", "--data", data, "--json").stdout)
    assert stored["metrics"] == read_record(trained)["metrics"]
    for to in ("diffusers", "kohya"):
        certificate = json.loads(call("export", trained, tmp_path / to, "--to", to, "--json").stdout)
        assert certificate["logits"]["largest"] < 1e-5


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux", "pixart"])
def test_every_family_learns_and_draws(family, data, tmp_path):
    base = write_pipeline(tmp_path / "base", family)
    call(*train_words(base, data, tmp_path / "run", "--steps", 4))
    record = read_record(tmp_path / "run")
    assert record["metrics"]["denoising_loss"] < record["baselines"]["base"]
    lines = (tmp_path / "run" / "examples.jsonl").read_text("utf-8").splitlines()
    assert set(json.loads(lines[0])["pictures"]) == {"data", "base", "adapter"}
    words = ("params", "--model", base, "--kind", "image_generation", "--method", "lora", "--json")
    assert json.loads(call(*words).stdout)["trainable"] == record["parameters"]["trainable"]


def test_what_cannot_be_trained_is_refused_by_name(base, data, tmp_path):
    def words(*more, model=base):
        return [*train_words(model, data, tmp_path / "out", "--steps", 1, options=()), *more]

    assert "unknown option 'sides' of image_generation. Did you mean 'side'?" in refuse(
        *words("--kind-set", "sides=8")
    )
    assert "min_snr is -1" in refuse(*words("--kind-set", "min_snr=-1"))
    assert "multiples of" in refuse(*words("--kind-set", "side=9"))
    assert "is no pipeline" in refuse(*words("--kind", "image_generation", model="minilm"))
    labels = ("--kind", "classification", "--text-column", "file_name", "--label-column", "text")
    assert "draws pictures" in refuse(*words(*labels))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "KandinskyPipeline", "vae": ["a", "b"]}')
    assert "a KandinskyPipeline, which is not trained here" in refuse(*words(model=other))


def test_flow_matching_has_no_min_snr(data, tmp_path):
    base = write_pipeline(tmp_path / "base", "sd3")
    words = train_words(base, data, tmp_path / "run", "--steps", 1, "--kind-set", "min_snr=5")
    assert "flow matching" in refuse(*words)
