import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from diffusers.models.attention_processor import AttnProcessor
from tiny_pipeline import tiny_pipeline

from ard import customize as customizing
from ard import customize_all as module
from ard.adapters import layout, learned_weights
from ard.attention import attention_loss, masked_loss, plain_attention, resize_mask, stored_attention
from ard.customize import (Concept, CustomizeConfig, Lesson, MODULES, clip_each, customize, customize_together, encode, framed,
                           sample_union)
from ard.customize_all import batches, customize_all, groups
from ard.deltas import BLOCK, Delta, DeltaError, apply_delta, installed_tokens, load_delta, remove_delta, rounded, save_delta
from ard.exemplars import Exemplar, write_mask
from ard.files import Ledger

CONFIG = CustomizeConfig(token_steps=2, weight_steps=2, batch=3, token_lr=1e-2, weight_lr=1e-2)


def exemplar_image(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3)).astype(np.uint8)


def concept(token="<v1>", name="cat", rows=slice(4, 20)):
    mask = np.zeros((32, 32), bool)
    mask[rows, 8:24] = True
    return Concept(token, name, mask)


def digest(pipe) -> str:
    h = hashlib.sha256()
    for model in (pipe.unet, pipe.text_encoder, pipe.vae):
        for name, value in sorted(model.state_dict().items()):
            h.update(name.encode() + value.numpy().tobytes())
    return h.hexdigest() + str(len(pipe.tokenizer))


def picture(pipe, prompt):
    out = pipe(prompt, num_inference_steps=2, guidance_scale=2.0, output_type="np", height=32, width=32,
               generator=torch.Generator().manual_seed(0))
    return out.images[0]


@pytest.mark.parametrize("form", ["published", "area"])
def test_masked_loss_equals_brute_force(form):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    mask = (torch.rand(2, 4, 4, generator=g) > 0.5).float()
    total, per_image = 0.0, []
    for i in range(2):
        error = sum(float(a[i, c, y, x] - b[i, c, y, x]) ** 2
                    for c in range(3) for y in range(4) for x in range(4) if mask[i, y, x])
        total += error
        per_image.append(error / (3 * float(mask[i].sum())))
    expected = total / a.numel() if form == "published" else np.mean(per_image)
    assert float(masked_loss(a, b, mask, form)) == pytest.approx(expected, rel=1e-5)


def test_mask_sizes():
    mask = torch.zeros(8, 8)
    mask[:3, :4] = 1
    assert resize_mask(mask, (4, 4), "area")[1].tolist() == [0.5, 0.5, 0, 0]
    assert resize_mask(mask, (4, 4), "max")[1].tolist() == [1, 1, 0, 0]
    assert set(resize_mask(mask, (4, 4), "nearest").flatten().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="expected 'nearest'"):
        resize_mask(mask, (4, 4), "cubic")


def test_stored_maps_are_the_softmax_and_change_nothing(pipe):
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 16, generator=g)
    seen = {}

    def spy(name):
        return lambda module, inputs, kwargs: seen.update({name: (inputs[0], kwargs["encoder_hidden_states"])})

    layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith("attn2")}
    hooks = [m.register_forward_pre_hook(spy(n), with_kwargs=True) for n, m in layers.items()]
    with torch.no_grad():
        plain = pipe.unet(x, 5, text).sample
        with stored_attention(pipe.unet) as maps:
            stored = pipe.unet(x, 5, text).sample
            kept = maps.take()
    for hook in hooks:
        hook.remove()
    assert torch.allclose(plain, stored, atol=1e-5)
    assert kept.shape == (2, 8, 8, 5)
    by_hand = []
    for name, (hidden, context) in seen.items():
        if hidden.shape[1] == 64:
            m = layers[name]
            q, k = (f(v).view(2, -1, m.heads, f.out_features // m.heads) for f, v in ((m.to_q, hidden), (m.to_k, context)))
            logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / (m.to_q.out_features // m.heads) ** 0.5
            by_hand.append(logits.softmax(-1).mean(1))
    assert len(by_hand) >= 2
    assert torch.allclose(torch.stack(by_hand).mean(0).view(2, 8, 8, 5), kept, atol=1e-5)


def test_attention_loss_reaches_to_k(pipe):
    keys = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
    keys.requires_grad_(True)
    with stored_attention(pipe.unet, 4) as maps:
        pipe.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 5, 16))
        own = maps.take()
    assert own.shape[1:3] == (4, 4)
    masks = torch.zeros(2, 1, 32, 32)
    masks[..., :16] = 1
    loss = attention_loss(own, torch.tensor([[1], [2]]), masks, torch.ones(2, 1, dtype=torch.bool))
    grads = torch.autograd.grad(loss, [keys], allow_unused=True)[0]
    assert grads is None or torch.isfinite(grads).all()
    deep = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight
    with stored_attention(pipe.unet) as maps:
        pipe.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 5, 16))
        loss = attention_loss(maps.take(), torch.tensor([[1], [2]]), masks, torch.ones(2, 1, dtype=torch.bool))
    assert torch.autograd.grad(loss, [keys])[0].abs().sum() > 0
    assert deep is not keys


def test_attention_loss_by_hand():
    maps = torch.zeros(1, 2, 2, 3)
    maps[0, :, :, 1] = torch.tensor([[0.5, 0.25], [0.0, 0.0]])
    masks = torch.zeros(1, 1, 2, 2)
    masks[0, 0, 0] = 1
    present = torch.ones(1, 1, dtype=torch.bool)
    assert float(attention_loss(maps, torch.tensor([[1]]), masks, present)) == pytest.approx(0.25 / 4)
    assert float(attention_loss(maps, torch.tensor([[1]]), masks, ~present)) == 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mode", ["lora", "kv", "full", "token"])
def test_pipeline_is_left_as_it_was_and_apply_remove_is_exact(tmp_path, mode, kind):
    pipe = tiny_pipeline(tmp_path, kind)
    before, flags = digest(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    delta = customize(pipe, exemplar_image(), [concept()], CustomizeConfig(**{**CONFIG.__dict__, "mode": mode}), seed=3)
    assert digest(pipe) == before
    assert [p.requires_grad for p in pipe.unet.parameters()] == flags
    assert all(a.__class__.__name__ != "StoringProcessor" for a in pipe.unet.attn_processors.values())
    assert mode == "token" or delta.vector.abs().max() > 0
    base = picture(pipe, "a photo of a cat")
    apply_delta(pipe, delta)
    assert digest(pipe) != before
    assert mode == "token" or not np.array_equal(picture(pipe, "a photo of a cat"), base)
    with pytest.raises(DeltaError, match="already wears"):
        apply_delta(pipe, delta)
    remove_delta(pipe)
    assert digest(pipe) == before
    assert np.array_equal(picture(pipe, "a photo of a cat"), base)


def test_token_phase_changes_the_token_row_only(pipe):
    config = CustomizeConfig(**{**CONFIG.__dict__, "mode": "token"})
    delta = customize(pipe, exemplar_image(), [concept()], config, seed=3)
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    start = table[pipe.tokenizer("cat", add_special_tokens=False).input_ids[0]]
    weights = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    apply_delta(pipe, delta)
    after = pipe.text_encoder.get_input_embeddings().weight
    new = pipe.tokenizer.convert_tokens_to_ids("<v1>")
    assert new == len(table) and torch.equal(after[: len(table)], table)
    assert not torch.allclose(after[new], start, atol=1e-3)
    assert all(torch.equal(p, weights[n]) for n, p in pipe.unet.named_parameters())
    remove_delta(pipe)


def test_training_hook_equals_merged_delta(pipe):
    config = CustomizeConfig(modules=r"unet\..*(attn2\.to_[qkv]|conv1|text_encoder)", rank=2)
    parts = layout(pipe, "lora", config.modules, 2)
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with learned_weights(pipe, "lora", parts, [g]) as (weights, change), torch.no_grad():
        for w in weights:
            w.copy_(torch.randn(w.shape, generator=g) * 0.1)
        hooked, vector = pipe.unet(x, 5, text).sample, change()[0]
    from ard.adapters import layout_hash
    from ard.deltas import Delta

    meta = {"tokens": [], "mode": "lora", "modules": config.modules, "rank": 2, "layout": layout_hash(parts)}
    delta = Delta(torch.zeros(0, 16), vector, meta)
    with torch.no_grad():
        plain = pipe.unet(x, 5, text).sample
        merged = apply_delta(pipe, delta).unet(x, 5, text).sample
    remove_delta(pipe)
    assert torch.allclose(hooked, merged, atol=1e-4) and not torch.allclose(plain, merged, atol=1e-3)


def test_each_lesson_of_a_batch_has_weights_of_its_own(pipe):
    parts = layout(pipe, "lora", r"unet\..*(attn[12]\.to_[qkv]|conv[12]|time_emb_proj|downsamplers.*conv)$", 2)
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(6, 4, 8, 8, generator=g), torch.randn(6, 5, 16, generator=g)
    values = [torch.randn(3, *shape, generator=g) * 0.1 for _, shape in parts]

    def run(lessons):
        with learned_weights(pipe, "lora", parts, [g] * len(lessons)) as (weights, _), torch.no_grad():
            for w, value in zip(weights, values):
                w.copy_(value[lessons])
            mine = [2 * k + i for k in lessons for i in range(2)]
            return pipe.unet(x[mine], 5, text[mine]).sample

    together, alone = run([0, 1, 2]), torch.cat([run([k]) for k in range(3)])
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together[:2], together[2:4], atol=1e-2)


def test_lessons_learned_together_are_those_learned_alone(pipe):
    config = CustomizeConfig(**{**CONFIG.__dict__, "modules": MODULES["attn+conv"], "rank": 2, "keep": 0.5, "frame": 0.4, "flip": 0.5,
                                "prompts": ("A photo of {}.", "A picture of {}."), "clip": 0.05})
    lessons = [Lesson(exemplar_image(k), [concept(name=name)], seed=k) for k, name in enumerate(("cat", "dog", "cat"))]
    before = digest(pipe)
    together = customize_together(pipe, lessons, config)
    assert digest(pipe) == before
    for lesson, delta in zip(lessons, together):
        alone = customize(pipe, lesson.image, lesson.concepts, config, lesson.seed)
        assert delta.meta == {**alone.meta, "loss": delta.meta["loss"]}
        assert torch.allclose(delta.rows.float(), alone.rows.float(), atol=2e-3)
        # rounding to four bits may fall to either side
        assert float((delta.vector - alone.vector).abs().mean()) < 0.02 * float(alone.vector.abs().mean())
    assert not torch.allclose(together[0].vector, together[2].vector, atol=1e-3)


def test_what_cannot_be_learned_together_is_named(pipe):
    one, two = (Lesson(exemplar_image(), [concept(token)], seed=0) for token in ("<v1>", "<v2>"))
    with pytest.raises(ValueError, match="same tokens"):
        customize_together(pipe, [one, two], CONFIG)
    with pytest.raises(ValueError, match="one lesson at a time"):
        customize_together(pipe, [one, one], CustomizeConfig(**{**CONFIG.__dict__, "mode": "kv"}))


def test_gradients_are_clipped_lesson_by_lesson():
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2, 2, 2))]
    for p in parameters:
        p.grad = torch.stack([torch.full(p.shape[1:], 2.0), torch.full(p.shape[1:], 0.01)])
    clip_each(parameters, 1.0, 2)
    norms = sum(p.grad.flatten(1).pow(2).sum(1) for p in parameters).sqrt()
    assert torch.allclose(norms, torch.tensor([1.0, 0.01 * 7**0.5]), rtol=1e-4)


def test_delta_file_round_trip_size_and_errors(pipe, tmp_path):
    delta = customize(pipe, exemplar_image(), [concept()], CONFIG, seed=3)
    path = tmp_path / "a.safetensors"
    save_delta(delta, path)
    assert path.stat().st_size <= 60_000
    apply_delta(pipe, delta)
    wanted = picture(pipe, "a photo of a <v1> cat")
    remove_delta(pipe)
    apply_delta(pipe, path)
    assert np.array_equal(picture(pipe, "a photo of a <v1> cat"), wanted)
    remove_delta(pipe)
    with pytest.raises(DeltaError, match="lower the rank"):
        save_delta(delta, tmp_path / "b.safetensors", max_bytes=1000)
    assert not (tmp_path / "b.safetensors").exists()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DeltaError, match="a.safetensors: not a delta"):
        load_delta(path)
    other = load_delta_with(delta, layout="0")
    with pytest.raises(DeltaError, match="another base model"):
        apply_delta(pipe, other)


def test_a_file_keeps_numbers_to_a_fourteenth_of_their_block(tmp_path):
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 1000)
    near = rounded(numbers)
    for start in range(0, 1000, BLOCK):
        block = slice(start, start + BLOCK)
        assert float((near - numbers)[block].abs().max()) <= 1.001 / 14 * float(numbers[block].abs().max())
    assert torch.allclose(rounded(near), near, rtol=1e-6, atol=0) and torch.equal(rounded(torch.zeros(5)), torch.zeros(5))
    for length in (1000, 999, 1):  # two numbers share a byte
        save_delta(Delta(torch.zeros(1, 4), near[:length], {"rank": 1}), tmp_path / "d.safetensors")
        stored = load_delta(tmp_path / "d.safetensors").vector  # a block that was cut short has a scale of its own
        assert torch.allclose(stored, near[:length], rtol=2**-11, atol=0)


def test_the_pull_acts_outside_the_mask_alone(pipe):
    everywhere = Concept("<v1>", "cat", np.ones((32, 32), bool))
    free, pulled = (customize(pipe, exemplar_image(), [everywhere], CustomizeConfig(**{**CONFIG.__dict__, "keep": k}), seed=0)
                    for k in (0.0, 100.0))
    assert torch.equal(free.vector, pulled.vector), "where the mask is whole there is nothing to keep"


def test_a_strong_pull_keeps_the_model_near_its_base(pipe):
    def change(keep):
        recipe = CustomizeConfig(**{**CONFIG.__dict__, "weight_steps": 12, "keep": keep, "attention_weight": 0.0})
        delta = customize(pipe, exemplar_image(), [concept()], recipe, seed=0)
        generator = torch.Generator().manual_seed(1)
        noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, pipe.unet.config.cross_attention_dim,
                                                                             generator=generator)
        with torch.no_grad():
            before = pipe.unet(noisy, 500, text).sample
            after = apply_delta(pipe, delta).unet(noisy, 500, text).sample
        remove_delta(pipe)
        return float((after - before).pow(2).mean())
    assert 0 < change(100.0) < 0.5 * change(0.0)


def load_delta_with(delta, **changes):
    return type(delta)(delta.rows, delta.vector, {**delta.meta, **changes})


def test_same_seed_same_bytes(pipe):
    a, b, c = (customize(pipe, exemplar_image(), [concept()], CONFIG, seed=s) for s in (5, 5, 6))
    assert torch.equal(a.vector, b.vector) and torch.equal(a.rows, b.rows) and a.meta == b.meta
    assert not torch.equal(a.vector, c.vector)


def test_union_sampling_draws_every_non_empty_subset():
    drawn = sample_union(2, 300, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in drawn.tolist()} == {(True, False), (False, True), (True, True)}
    assert sample_union(1, 5, torch.Generator()).all()


def test_two_concepts_of_one_image_and_prior(pipe):
    config = CustomizeConfig(**{**CONFIG.__dict__, "prior_weight": 1.0})
    two = [concept(), concept("<v2>", "teddy bear", slice(20, 30))]
    prior = ("a photo of a dog", torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    delta = customize(pipe, exemplar_image(), two, config, seed=0, prior=prior)
    assert delta.rows.shape == (2, 16) and delta.meta["tokens"] == ["<v1>", "<v2>"]
    with pytest.raises(ValueError, match="no prior"):
        customize(pipe, exemplar_image(), two, config, seed=0)


def test_bad_exemplars(pipe):
    empty = Concept("<v1>", "cat", np.zeros((32, 32), bool))
    with pytest.raises(ValueError, match="non-empty"):
        customize(pipe, exemplar_image(), [empty], CONFIG, seed=0)
    with pytest.raises(ValueError, match="square"):
        customize(pipe, exemplar_image()[:16], [concept()], CONFIG, seed=0)
    with pytest.raises(ValueError, match="no module"):
        layout(pipe, "lora", "nothing", 1)


def make_exemplars(root, n=3):
    rows = []
    for i in range(n):
        Image.fromarray(exemplar_image(i)).save(root / f"{i}.png")
        write_mask(root / f"masks/e{i}.png", concept().mask)
        rows.append(Exemplar(f"e{i}", f"{i}.png", "cat", (8.0, 4.0, 24.0, 20.0), 0.9, f"masks/e{i}.png", 256))
    return rows


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.*"))}


def test_loop_killed_and_resumed_ends_in_the_same_bytes(pipe, tmp_path, monkeypatch):
    rows = make_exemplars(tmp_path)
    whole, part = tmp_path / "whole", tmp_path / "part"
    customize_all(pipe, rows, tmp_path, whole, CONFIG, Ledger(tmp_path / "whole.jsonl"))
    real, calls = module.customize_together, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "customize_together", killed)
    with pytest.raises(KeyboardInterrupt):
        customize_all(pipe, rows, tmp_path, part, CONFIG, Ledger(tmp_path / "part.jsonl"))
    assert not (part / "deltas.jsonl").exists()
    customize_all(pipe, rows, tmp_path, part, CONFIG, Ledger(tmp_path / "part.jsonl"))
    assert len(calls) == 4  # the finished one is not learned again
    assert contents(part) == contents(whole) and len(contents(whole)) == 5


def test_items_learned_side_by_side_go_on_after_a_kill(pipe, tmp_path, monkeypatch):
    rows = make_exemplars(tmp_path)
    def run(name):
        return customize_all(pipe, rows, tmp_path, tmp_path / name, CONFIG, Ledger(tmp_path / f"{name}.jsonl"), together=2)
    run("whole")
    real, calls = module.customize_together, []

    def killed(pipe, lessons, *rest):
        calls.append(len(lessons))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(pipe, lessons, *rest)

    monkeypatch.setattr(module, "customize_together", killed)
    with pytest.raises(KeyboardInterrupt):
        run("part")
    (tmp_path / "part" / "e0.safetensors").unlink()  # a file that was lost is made again, with its neighbour
    assert len(run("part")[0]) == 3 and calls == [2, 1, 2, 1]
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_one_bad_item_does_not_spoil_its_batch(pipe, tmp_path):
    rows = make_exemplars(tmp_path)
    (tmp_path / "1.png").write_bytes(b"not an image")
    done, failed = customize_all(pipe, rows, tmp_path, tmp_path / "out", CONFIG, Ledger(tmp_path / "l.jsonl"), together=3)
    assert [r["exemplar_id"] for r in done] == ["e0", "e2"] and "1.png" in failed[0]["reason"]


def test_batches_hold_neighbours_of_one_size():
    one, two = ["x"], ["x", "x"]
    assert batches([one, one, one, two, one], 2) == [[one, one], [one], [two], [one]]


def test_two_workers_end_in_the_same_bytes_as_one(tmp_path):
    (tmp_path / "words").mkdir()
    pipe = tiny_pipeline(tmp_path / "words")
    pipe.save_pretrained(tmp_path / "model")
    rows = make_exemplars(tmp_path)
    (tmp_path / "1.png").write_bytes(b"not an image")
    one = customize_all(tmp_path / "model", rows, tmp_path, tmp_path / "one", CONFIG, Ledger(tmp_path / "1.jsonl"))
    two = customize_all(tmp_path / "model", rows, tmp_path, tmp_path / "two", CONFIG, Ledger(tmp_path / "2.jsonl"), workers=2)
    assert one == two and contents(tmp_path / "one") == contents(tmp_path / "two") and len(one[1]) == 1
    with pytest.raises(ValueError, match="folder of the generator"):
        customize_all(pipe, rows, tmp_path, tmp_path / "out", CONFIG, Ledger(tmp_path / "l.jsonl"), workers=2)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text("""
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from threading import Thread
from ard import customize_all

def start():
    Thread(target=customize_all._end_with_parent, daemon=True).start()

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), start)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
""")
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and " Z " in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlived its parent")


def test_loop_lists_bad_items_and_refuses_other_settings(pipe, tmp_path):
    rows = make_exemplars(tmp_path)
    (tmp_path / "1.png").write_bytes(b"not an image")
    ledger = Ledger(tmp_path / "l.jsonl")
    done, failed = customize_all(pipe, rows, tmp_path, tmp_path / "out", CONFIG, ledger)
    assert [r["exemplar_id"] for r in done] == ["e0", "e2"]
    assert len(failed) == 1 and "1.png" in failed[0]["reason"]
    with pytest.raises(ValueError, match="other settings"):
        customize_all(pipe, rows, tmp_path, tmp_path / "out", CONFIG, ledger, seed=1)
    with pytest.raises(ValueError, match="allowed are 60000"):
        customize_all(pipe, rows, tmp_path, tmp_path / "out", CustomizeConfig(mode="full"), ledger)
    with pytest.raises(ValueError, match="no exemplars"):
        customize_all(pipe, [], tmp_path, tmp_path / "out", CONFIG, ledger)


def test_groups_share_an_image_only_when_asked(tmp_path):
    rows = make_exemplars(tmp_path, 2)
    same = [rows[0], Exemplar(**{**rows[1].__dict__, "file": "0.png"})]
    assert [len(g) for g in groups(same, False)] == [1, 1] and [len(g) for g in groups(same, True)] == [2]


def test_a_framed_exemplar_stands_in_the_middle_at_its_share_with_its_mask():
    rng = np.random.default_rng(0)
    image, mask = np.full((64, 64, 3), 30, np.uint8), np.zeros((2, 64, 64), bool)
    mask[0, 8:28, 40:60], mask[1, 28:33, 40:50] = True, True  # the common box is 20 wide, 25 high, off the middle
    image[mask[0]], image[mask[1]] = (220, 40, 40), (40, 40, 220)
    moved, masks = framed(image, mask, 0.25)
    ys, xs = np.nonzero(masks.any(0))
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert abs((box[2] - box[0]) * (box[3] - box[1]) / 64 ** 2 - 0.25) < 0.02
    assert np.allclose((box[:2] + box[2:]) / 2, 32, atol=0.6)
    for k, colour, off in ((0, (220, 40, 40), 2), (1, (40, 40, 220), 10)):  # bicubic sampling overshoots in the thin one
        inner = masks[k] & ~masks[1 - k]
        assert np.median(np.abs(moved[inner].astype(int) - colour).max(1)) <= off, "the pixels went where the mask went"
    assert np.abs(moved[~masks.any(0)].astype(int) - 30).mean() < 12
    noise = rng.integers(0, 256, image.shape, dtype=np.uint8)
    as_is, same = framed(noise, mask, 0.0)
    assert np.array_equal(as_is, noise) and np.array_equal(same, mask)


def test_a_long_exemplar_still_fits_the_frame():
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64), bool)
    mask[0, 30:34, 2:62] = True
    ys, xs = np.nonzero(framed(image, mask, 0.39)[1][0])
    assert abs(np.ptp(xs) + 1 - 0.85 * 64) <= 2 and np.ptp(ys) + 1 <= 5


def test_a_soft_mask_weighs_a_mean():
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(masked_loss(torch.full((2, 3, 4, 4), 5.0), torch.full((2, 3, 4, 4), 3.0), mask, "area")) == pytest.approx(4.0)


def test_the_map_of_each_concept_is_held_against_its_own_maximum():
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, :, :, 1] = torch.tensor([[0.8, 0.4], [0.0, 0.0]])
    maps[0, :, :, 3] = torch.tensor([[0.0, 0.0], [0.01, 0.02]])  # faint, and as right as the other
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, 0], masks[0, 1, 1] = 1, 1
    both = attention_loss(maps, torch.tensor([[1, 3]]), masks, torch.ones(1, 2, dtype=torch.bool))
    assert float(both) == pytest.approx(2 * 0.25 / 4)


def test_attention_is_plain_within_the_block_alone(pipe):
    before = pipe.unet.attn_processors
    with plain_attention(pipe.unet):
        assert all(type(one) is AttnProcessor for one in pipe.unet.attn_processors.values())
    assert pipe.unet.attn_processors == before


def test_a_mirrored_view_shows_picture_and_mask_mirrored(pipe):
    mask = np.zeros((32, 32), bool)
    mask[4:20, 2:14] = True
    one = customize(pipe, exemplar_image(), [Concept("<v1>", "cat", mask)], replace(CONFIG, flip=1.0), seed=0)
    other = customize(pipe, exemplar_image()[:, ::-1], [Concept("<v1>", "cat", mask[:, ::-1].copy())], CONFIG, seed=0)
    assert torch.equal(one.vector, other.vector) and torch.equal(one.rows, other.rows)


def test_rates_fall_linearly_and_times_are_spread_over_the_whole_noise(pipe, monkeypatch):
    rates, times, step, noised = [], [], torch.optim.AdamW.step, pipe.scheduler.add_noise
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *rest: rates.append(
        (self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"])) or step(self, *rest))
    monkeypatch.setattr(pipe.scheduler, "add_noise", lambda x, n, t: times.append(t.sort().values) or noised(x, n, t))
    customize(pipe, exemplar_image(), [concept()], replace(CONFIG, mode="token", token_steps=10, batch=5, weight_decay=0.3), seed=0)
    share = np.array([rate for rate, _ in rates]) / CONFIG.token_lr
    assert share[0] == 1 and np.allclose(np.diff(share), share[1] - 1) and CONFIG.lr_end <= share[-1] < CONFIG.lr_end + 0.1
    assert {decay for _, decay in rates} == {0.3}
    assert len(times) == 10 and all((t // 200).tolist() == [0, 1, 2, 3, 4] for t in times)
    assert not torch.equal(times[0], times[1])


def test_what_the_base_model_makes_of_the_class_is_held_on_to(pipe):
    prior = ("a photo of a dog", torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    one, other = (customize(pipe, exemplar_image(), [concept()], replace(CONFIG, prior_weight=w), seed=0, prior=prior) for w in (1.0, 50.0))
    assert not torch.allclose(one.vector, other.vector, atol=1e-4)


def test_prompts_name_the_concepts_that_are_present(pipe, monkeypatch):
    named, fill = set(), customizing.fill
    monkeypatch.setattr(customizing, "fill", lambda prompt, noun: named.add(noun) or fill(prompt, noun))
    two = [concept(), concept("<v2>", "teddy bear", slice(20, 30))]
    customize(pipe, exemplar_image(), two, replace(CONFIG, batch=8), seed=0)
    assert named == {"<v1> cat", "<v2> teddy bear", "<v1> cat and a <v2> teddy bear"}


def test_the_encoder_sees_black_as_minus_one_and_white_as_one():
    seen = []
    vae = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(scaling_factor=2.0), encode=lambda x: seen.append(x) or SimpleNamespace(
        latent_dist=SimpleNamespace(mode=lambda: x)))
    pipe = SimpleNamespace(unet=SimpleNamespace(device="cpu"), vae=vae)
    latents = encode(pipe, np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(3, 3))
    assert seen[0][0, :, 0].tolist() == [[-1.0, 1.0]] * 3 and latents[0, 0, 0].tolist() == [-2.0, 2.0]


def test_a_delta_of_another_length_or_with_a_word_twice_or_known_is_refused(pipe):
    delta = customize(pipe, exemplar_image(), [concept()], CONFIG, seed=0)
    with pytest.raises(DeltaError, match="another base model"):
        apply_delta(pipe, Delta(delta.rows, delta.vector[:-1], delta.meta))
    size = len(pipe.tokenizer)
    for words in (["<v1>", "<v1>"], ["<v1>", next(iter(pipe.tokenizer.get_vocab()))]):
        with pytest.raises(DeltaError, match="already knows one of them, or one stands there twice"):
            with installed_tokens(pipe, words, torch.zeros(2, 16)):
                pass
    assert len(pipe.tokenizer) == size


def test_a_delta_of_another_length_or_with_a_word_twice_is_refused(pipe):
    delta = customize(pipe, exemplar_image(), [concept()], CONFIG, seed=0)
    with pytest.raises(DeltaError, match="another base model"):
        apply_delta(pipe, Delta(delta.rows, delta.vector[:-1], delta.meta))
    size = len(pipe.tokenizer)
    with pytest.raises(DeltaError, match="already knows one of them, or one stands there twice"):
        with installed_tokens(pipe, ["<v1>", "<v1>"], torch.zeros(2, 16)):
            pass
    assert len(pipe.tokenizer) == size


@pytest.mark.parametrize("size, corner", [((60, 90), (8, 70)), ((90, 60), (70, 8)), ((60, 90), (20, 30)), ((120, 120), (90, 3))])
def test_a_picture_of_any_shape_is_cut_square_around_its_mask(size, corner):
    """The thing is the one red square of its picture: wherever it stands, it stands under its mask afterwards, as square as it was."""
    picture, mask, (y, x) = np.full((*size, 3), 20, np.uint8), np.zeros(size, bool), corner
    picture[y : y + 18, x : x + 18, 0] = 220
    mask[y : y + 18, x : x + 18] = True
    moved, (there,) = module.squared(picture, [mask], 32)
    side = 18 * 32 / min(size)
    assert moved.shape == (32, 32, 3) and there.shape == (32, 32) and there.sum() == pytest.approx(side**2, rel=0.25)
    assert moved[there][:, 0].mean() > 180 and moved[~there][:, 0].mean() < 30
    ys, xs = np.nonzero(there)
    assert np.ptp(ys) == pytest.approx(np.ptp(xs), abs=1)
    if corner == (20, 30):
        assert (xs.min() + xs.max() + 1) / 2 == pytest.approx(16, abs=1), "in the middle, where there is room on both sides"


def test_a_picture_that_is_square_already_stays_and_one_without_a_mask_is_named(pipe, tmp_path):
    picture, mask = exemplar_image(), np.ones((32, 32), bool)
    same, (there,) = module.squared(picture, [mask], 32)
    assert same is picture and there is mask
    wide, kept = np.zeros((20, 40, 3), np.uint8), []
    wide[:] = exemplar_image()[:20, :20].repeat(2, 1)
    for name, seen in (("good", np.eye(20, 40, dtype=bool)), ("empty", np.zeros((20, 40), bool)), ("other", np.ones((9, 9), bool))):
        Image.fromarray(wide).save(tmp_path / f"{name}.png")
        write_mask(tmp_path / f"{name}-mask.png", seen)
        kept.append(Exemplar(name, f"{name}.png", "cat", (0.0, 0.0, 9.0, 9.0), 1.0, f"{name}-mask.png", 1))
    done, failed = customize_all(pipe, kept, tmp_path, tmp_path / "out", CONFIG, Ledger(tmp_path / "l.jsonl"))
    assert [row["exemplar_id"] for row in done] == ["good"] and [row["exemplar_id"] for row in failed] == ["empty", "other"]
