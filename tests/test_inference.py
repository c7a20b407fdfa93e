"""Predictions, activations and neighbours against NumPy's float64, and the commands that give them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from models.builders import made, narrow
from PIL import Image
from small_networks import CONTRACTS, PLACES, SIDE, images_of, logits, network, probabilities

from alexnet_jax import cli, figures, inference
from alexnet_jax.data import pictures
from alexnet_jax.weights import Weights, open_weights, save_safetensors

COUNT = 7


def small(contract="centre", classes=7):
    """The small network, and as `Network`."""
    one = network(contract, classes=classes, sharpness=0.3)
    return one, inference.Network(one.structure, one.params, one.mean_image, one.classes)


@pytest.fixture
def noise(tmp_path):
    """Images of noise as files of the small network's size, a broken one among them."""
    split = images_of(COUNT)
    for number, image in enumerate(split.images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "2x.png").write_bytes(b"no image")
    return split, pictures.find([str(tmp_path)])


def read(found, batch_size=3):
    return pictures.batches(found, size=SIDE, rule="warp", batch_size=batch_size)


@pytest.mark.parametrize("crops", ["centre", "ten"])
@pytest.mark.parametrize("contract", CONTRACTS)
def test_probabilities_are_those_of_float64(contract, crops, noise):
    split, found = noise
    trained, one = small(contract)
    rows = [row for _, rows in inference.probabilities(one, read(found), crops=crops) for row in rows]
    np.testing.assert_allclose(rows, probabilities([trained], split, crops), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_activations_come_in_order_whatever_the_batch(batch_size, noise):
    split, found = noise
    trained, one = small()
    streamed = list(inference.activations(one, read(found, batch_size), "logits"))
    wanted = np.array([logits(trained, image, PLACES[-1], False) for image in split.images])
    np.testing.assert_allclose(np.concatenate([rows for _, rows in streamed]), wanted, rtol=1e-4, atol=1e-5)
    assert np.concatenate([batch.indices for batch, _ in streamed]).tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_a_layer_that_there_is_not_is_refused_with_those_there_are(noise):
    with pytest.raises(ValueError, match=r"a layer of small must be one of .*conv1.*logits.*'fc9'"):
        inference.activations(small()[1], read(noise[1]), "fc9")


@pytest.mark.parametrize("contract", CONTRACTS)
def test_without_a_mean_image_the_contract_s_pixel_is_subtracted(contract):
    spec = dataclasses.replace(narrow("paper"), input=dataclasses.replace(CONTRACTS[contract], mean=(10.0, 20.0, 30.0)))
    found = np.asarray(inference.mean_pixel(spec.input))
    pixel = np.array([10.0, 20.0, 30.0]) * 255 / spec.input.scale
    pixel = pixel[::-1] if spec.input.channel_order == "bgr" else pixel
    np.testing.assert_allclose(found, np.broadcast_to(pixel, (SIDE, SIDE, 3)), rtol=1e-6)


def test_a_mean_image_of_another_size_is_refused():
    weights = Weights(made(narrow("paper")), "made", (), mean_image=np.zeros((9, 9, 3), np.float32))
    with pytest.raises(ValueError, match=r"the mean image is \(9, 9, 3\), and paper resizes images to 77"):
        inference.Network.of(weights)


def test_the_top_are_the_likeliest_the_lower_label_first():
    found = inference.top(np.array([0.1, 0.3, 0.3, 0.05, 0.25]), 3)
    assert found == [(1, 0.3), (2, 0.3), (4, 0.25)]


def test_the_nearest_are_those_of_a_full_search():
    draw = np.random.default_rng(0)
    queries, rows = (
        draw.standard_normal((3, 2, 5)).astype(np.float32),
        draw.standard_normal((40, 2, 5)).astype(np.float32),
    )
    rows[9] = rows[4]  # as near
    nearest = inference.Nearest(queries, 6)
    for start in range(0, 40, 7):
        nearest.add(np.arange(start, min(start + 7, 40)), rows[start : start + 7], {1: 4})
    for number, query in enumerate(queries):
        apart = np.sqrt(np.square(rows.astype(np.float64) - query).sum((1, 2)))
        wanted = [index for index in np.argsort(apart, kind="stable") if (number, index) != (1, 4)][:6]
        assert [index for _, index in nearest.found[number]] == wanted
        np.testing.assert_allclose([d for d, _ in nearest.found[number]], apart[wanted], rtol=1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with weights of a narrow network, photographs in folders of classes, and a broken one."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("place")
    names = ("china", "flower", "other", "another", "日本", "$x_1$", "last")
    save_safetensors(Weights(made(narrow("half")), "made", (), classes=names), folder / "w.safetensors")
    save_safetensors(Weights(made(narrow("half")), "made", ()), folder / "numbers.safetensors")
    for name, photo in zip(names[:2], load_sample_images().images, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(3):
            crop = photo[30 * number : 30 * number + 200, 60 * number : 60 * number + 300]
            Image.fromarray(crop).save(folder / "photos" / name / f"{number}.jpg")
    (folder / "broken").mkdir()
    shutil.copy(folder / "photos" / "china" / "0.jpg", folder / "broken" / "good.jpg")
    (folder / "broken" / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a command in that folder: its exit code, output and errors."""
    monkeypatch.chdir(place)

    def command(*arguments):
        code = cli.main(list(map(str, arguments)))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def width(path):
    """Pixels of a picture."""
    with Image.open(path) as image:
        return image.size[0]


def test_predict_prints_five_classes_an_image_and_draws_them(run, tmp_path):
    code, out, err = run("predict", "photos", "--weights=w.safetensors", "--figure", tmp_path / "a.png")
    assert (code, err) == (0, "")
    assert "photos/china/0.jpg  (true class: china)" in out
    assert out.count(" %\n") == 30
    assert width(tmp_path / "a.png") > 500


def test_predict_as_json_is_what_the_model_says(run, place):
    code, out, _ = run("predict", "photos/flower/1.jpg", "broken", "--weights=w.safetensors", "--json")
    found = json.loads(out)
    assert code == 1  # an image is broken
    assert [one["image"] for one in found["images"]] == ["photos/flower/1.jpg", "broken/bad.jpg", "broken/good.jpg"]
    assert found["images"][1] == {"image": "broken/bad.jpg", "error": "not an image that Pillow reads"}
    assert "true_class" not in found["images"][2]
    from alexnet_jax import preprocess

    model = open_weights(place / "w.safetensors").model
    scores = np.asarray(model(preprocess(np.asarray(Image.open(place / "photos/flower/1.jpg")), model)))[0]
    wanted = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    top = found["images"][0]["top"]
    assert [line["label"] for line in top] == np.argsort(-wanted)[:5].tolist()
    np.testing.assert_allclose([line["probability"] for line in top], np.sort(wanted)[::-1][:5], rtol=1e-3)


def test_a_true_class_is_red_in_the_figure(tmp_path):
    image = np.zeros((20, 20, 3), np.uint8)

    def reds(truth):
        top = [("a", 0.9), ("b", 0.1)]
        figures.predictions([figures.Predicted(image, "n.png", truth, top)], tmp_path / "a.png")
        drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        return int(((drawn[..., 0] > 180) & (drawn[..., 1] < 120)).sum())

    assert reds("a") > 5 * reds("b") > 0
    assert reds("c") == reds(None) == 0


def test_features_are_the_model_s_activations_by_name(run, place, tmp_path):
    out = tmp_path / "f.npz"
    arguments = ("features", "photos", "broken", "--weights=w.safetensors", "--layer=pool5", "--out", out)
    code, _, err = run(*arguments)
    assert code == 2
    assert "1 of 8 images can't be used, more than --max-broken 0.01 allows (broken/bad.jpg" in err
    assert not list(tmp_path.iterdir())
    code, said, err = run(*arguments, "--max-broken=0.2", "--batch-size=3")
    assert (code, err) == (0, "alexnet-jax features: broken/bad.jpg: not an image that Pillow reads\n")
    assert "1 broken images" in said
    found = np.load(out)
    names = [f"photos/{name}/{n}.jpg" for name in ("china", "flower") for n in range(3)] + ["broken/good.jpg"]
    assert found["names"].tolist() == names
    assert str(found["layer"]) == "pool5"
    from alexnet_jax import preprocess

    model = open_weights(place / "w.safetensors").model
    photos = [np.asarray(Image.open(place / name)) for name in names]
    wanted = model.activations(preprocess(photos, model), ["pool5"])[1]["pool5"]
    np.testing.assert_allclose(found["features"], wanted, rtol=1e-4, atol=1e-4)
    assert run(*arguments)[0] == 2  # it is there already


def test_neighbours_of_an_image_are_not_itself(run, tmp_path):
    query = ("neighbours", "photos/china/1.jpg", "--among", "photos", "--weights=w.safetensors", "--count=3")
    code, out, err = run(*query, "--json", "--figure", tmp_path / "n.png")
    assert (code, err) == (0, "")
    nearest = json.loads(out)["queries"][0]["nearest"]
    assert len(nearest) == 3
    assert "photos/china/1.jpg" not in [one["image"] for one in nearest]
    assert sorted(one["distance"] for one in nearest) == [one["distance"] for one in nearest]
    assert width(tmp_path / "n.png") > 400
    assert "photos/china/" in run(*query)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "photos"], "--weights"),
        (["predict", "photos", "--weights=gone"], "there is no such file or folder"),
        (["predict", "gone.jpg", "--weights=w.safetensors"], "gone.jpg: there is no such file"),
        (["predict", "http://a.b/c.png", "--weights=w.safetensors"], "is a URL"),
        (["predict", "photos", "--weights=w.safetensors", "--figure=a.txt"], "must end in .png"),
        (["predict", "photos", "--weights=w.safetensors", "--figure=no/a.png"], "can't be written"),
        (["predict", "photos", "--weights=w.safetensors", "--batch-size=0"], "must be at least 1"),
        (["predict", "photos", "--weights=w.safetensors", "--corps=ten"], "did you mean"),
        (["predict", "photos", "--weights=w.safetensors", "--classes=w.safetensors"], "--classes w.safetensors"),
        (["predict", "photos", "--weights=w.safetensors", "--classes=gone"], "--classes gone can't be read"),
        (["predict", "photos", "--weights=w.safetensors", "--variant=paper"], "give that one"),
        (["features", "photos", "--weights=w.safetensors", "--out=a.csv"], "must end in .npz"),
        (["features", "photos", "--weights=w.safetensors", "--out=a.npz", "--layer=fc9"], "fc9"),
        (["features", "photos", "--weights=w.safetensors", "--out=a.npz", "--max-broken=2"], "from 0 to 1"),
        (["features", "broken/bad.jpg", "--weights=w.safetensors", "--out=a.npz", "--max-broken=1"], "none of the 1"),
        (["neighbours", "broken/bad.jpg", "--among=photos", "--weights=w.safetensors"], "not an image"),
        (["neighbours", "photos", "--among=photos", "--weights=w.safetensors", "--count=0"], "at least 1"),
        (["convert", "w.safetensors", "a.pth"], "its suffix is none of"),
        (["convert", "w.safetensors", "w.safetensors"], "is there already"),
        (["convert", "w.safetensors", "a.onnx", "--names=torchvision"], "--names is for safetensors"),
        (["convert", "gone", "a.onnx"], "there is no such file or folder"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line_and_nothing_is_written(arguments, words, run, place):
    before = sorted(place.iterdir())
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == (2 if "--max-broken=1" in arguments else 1)  # the image has a line too
    assert sorted(place.iterdir()) == before


def test_a_list_of_names_gives_names_to_weights_without(run, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"name {n}" for n in range(7)) + "\n", encoding="utf-8")
    out = run("predict", "photos/china/0.jpg", "--weights=numbers.safetensors", "--classes", tmp_path / "names.txt")[1]
    assert out.count("name ") == 5
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    err = run("predict", "photos/china/0.jpg", "--weights=numbers.safetensors", "--classes", tmp_path / "names.txt")[2]
    assert "has 2 lines, the network has 7 classes" in err


def test_convert_there_and_back(run, tmp_path):
    from safetensors.numpy import load_file

    for names in ("torchvision", "native"):
        source = "w.safetensors" if names == "torchvision" else tmp_path / "torchvision.safetensors"
        code, out, err = run("convert", source, tmp_path / f"{names}.safetensors", "--names", names)
        assert (code, err) == (0, "")
        assert "7 classes with names" in out
    first, last = load_file("w.safetensors"), load_file(tmp_path / "native.safetensors")
    for name, value in first.items():
        np.testing.assert_array_equal(last[name], value, strict=True)
    assert run("convert", "w.safetensors", tmp_path / "x", "--to=stablehlo")[0] == 0
    assert run("convert", "w.safetensors", tmp_path / "x", "--to=safetensors", "--force")[0] == 0
    assert open_weights(tmp_path / "x").classes == open_weights("w.safetensors").classes


@pytest.mark.parametrize("name", ["paper", "bvlc_alexnet"])
def test_kernels_are_drawn_in_rgb(name, run, tmp_path):
    model = made(narrow(name))
    channel = 0 if name == "paper" else 2  # red
    kernel = np.zeros(model.conv1.kernel[...].shape, np.float32)
    kernel[:, :, channel] = 1
    model.conv1.kernel[...] = kernel
    save_safetensors(Weights(model, "made", ()), tmp_path / "w.safetensors")
    code, _, err = run("kernels", "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "k.png")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "k.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    reds = (drawn[..., 0] > 250) & (abs(drawn[..., 1] - 128) < 3) & (abs(drawn[..., 2] - 128) < 3)
    assert reds.sum() > 8 * 50 * 50  # eight kernels of 11 × 11 at five pixels a side
    assert run("kernels", "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "k.png")[0] == 2
